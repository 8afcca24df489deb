//! Wakes the requests that wait for a change of a payment.
//!
//! * A record of PaymentTopic wakes the waiters of its payment; they then read the row. No waiter polls the database.
//! * A waiter misses no change: it reads the row after it is registered and the topic is followed, and again whenever the
//!   topic is followed anew, as after an outage of Kafka.
//! * An event may come before its row is visible: Postgres streams a commit before readers see it, by more than a moment
//!   where it waits for a standby. So an event says which version to read, and a waiter reads until it is there.
//! * The topic is followed only while somebody waits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use brokers::Brokers;
use prometheus::IntGauge;
use saga::CancellationToken;
use saga::consumer::{Follower, Record};
use saga::contract::{EventType, HEADER_ID, HEADER_SUBJECT};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use crate::saga::Status;

/// The first and the longest pause between two reads of a row that does not show its event yet.
const REREAD_PAUSE_MIN: Duration = Duration::from_millis(5);
const REREAD_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The requests that wait, by payment.
#[derive(Clone)]
pub struct Waiters {
    registry: Arc<Registry>,
    /// How often the topic was begun to be followed.
    beginnings: watch::Receiver<u64>,
}

struct Registry {
    payments: Mutex<HashMap<Uuid, Audience>>,
    /// Whether anybody waits.
    demand: watch::Sender<bool>,
    waiting: IntGauge,
}

/// Those who wait for one payment.
#[derive(Default)]
struct Audience {
    changes: watch::Sender<Change>,
    waiters: usize,
}

/// The newest event of a payment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    version: i32,
    is_terminal: bool,
}

impl Waiters {
    /// Starts to follow `topic` for those who will wait.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        brokers: Brokers,
        group_id: String,
        topic: String,
        waiting: IntGauge,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (demand, demanded) = watch::channel(false);
        let (begun, beginnings) = watch::channel(0);
        let registry = Arc::new(Registry { payments: Mutex::default(), demand, waiting });
        let woken = registry.clone();
        let follower = Follower { brokers, group_id, topic, demand: demanded, beginnings: begun, shutdown };
        follower.start(move |record| woken.wake(record))?;
        Ok(Self { registry, beginnings })
    }

    /// Registers a request that waits for this payment.
    pub fn register(&self, payment_id: Uuid) -> Waiter {
        let mut payments = self.registry.payments();
        let audience = payments.entry(payment_id).or_default();
        audience.waiters += 1;
        let changes = audience.changes.subscribe();
        self.registry.waiting.inc();
        self.registry.demand.send_if_modified(|demand| !std::mem::replace(demand, true));
        let mut beginnings = self.beginnings.clone();
        // The caller reads the row after this, so only a later beginning counts.
        beginnings.mark_unchanged();
        Waiter { payment_id, changes, registry: self.registry.clone(), beginnings, behind_since: None }
    }
}

impl Registry {
    /// The map stays whole whatever panicked while it was locked.
    fn payments(&self) -> MutexGuard<'_, HashMap<Uuid, Audience>> {
        self.payments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, record: &Record<'_>) {
        let subject = record.header(HEADER_SUBJECT).and_then(|text| text.parse().ok());
        let (Some(payment_id), Some(version)) = (subject, record.header(HEADER_ID).and_then(version)) else {
            return;
        };
        let event_type = record.event_type().and_then(EventType::parse);
        self.changed(payment_id, Change { version, is_terminal: event_type.is_some_and(is_terminal) });
    }

    fn changed(&self, payment_id: Uuid, change: Change) {
        if let Some(audience) = self.payments().get(&payment_id) {
            // An event that is emitted again must not hide what came since.
            audience.changes.send_modify(|last| {
                last.version = last.version.max(change.version);
                last.is_terminal |= change.is_terminal;
            });
        }
    }

    fn remove(&self, payment_id: Uuid) {
        let mut payments = self.payments();
        if let Entry::Occupied(mut audience) = payments.entry(payment_id) {
            audience.get_mut().waiters -= 1;
            if audience.get().waiters == 0 {
                audience.remove();
            }
        }
        self.waiting.dec();
        if payments.is_empty() {
            self.demand.send_if_modified(|demand| std::mem::replace(demand, false));
        }
    }
}

/// The version of the row, which the id of an event ends with.
fn version(event_id: &str) -> Option<i32> {
    event_id.rsplit('/').next()?.parse().ok()
}

/// Whether a payment ends with this event.
fn is_terminal(event_type: EventType) -> bool {
    let status = event_type.as_str().strip_prefix("payment.").and_then(|name| name.strip_suffix(".v1"));
    status.and_then(Status::parse).is_some_and(Status::is_terminal)
}

/// One request that waits for a payment. It is no longer woken once it is dropped.
pub struct Waiter {
    payment_id: Uuid,
    changes: watch::Receiver<Change>,
    registry: Arc<Registry>,
    beginnings: watch::Receiver<u64>,
    /// Since when the row does not show the newest event.
    behind_since: Option<Instant>,
}

impl Waiter {
    /// Waits until the row, which was read last with version `read`, has to be read: a newer event, or the topic is
    /// followed anew. False at `deadline`.
    pub async fn changed(&mut self, read: i32, deadline: Instant) -> bool {
        self.until(deadline, |change| change.version > read).await
    }

    /// As [`Waiter::changed`], for a row that was read last before the end of its payment: only that end counts.
    pub async fn ended(&mut self, deadline: Instant) -> bool {
        self.until(deadline, |change| change.is_terminal).await
    }

    async fn until(&mut self, deadline: Instant, is_due: impl Fn(&Change) -> bool) -> bool {
        if is_due(&self.changes.borrow()) {
            let now = Instant::now();
            let Some(since) = self.behind_since else {
                // The event may have come during the last read, so the next one is likely to show it.
                self.behind_since = Some(now);
                return now < deadline;
            };
            let pause = since.elapsed().clamp(REREAD_PAUSE_MIN, REREAD_PAUSE_MAX);
            sleep_until(deadline.min(now + pause)).await;
            return Instant::now() < deadline;
        }
        self.behind_since = None;
        let (changes, beginnings) = (&mut self.changes, &mut self.beginnings);
        let woken = async {
            tokio::select! {
                Ok(_) = changes.wait_for(is_due) => {}
                () = begun(beginnings) => {}
            }
        };
        timeout_at(deadline, woken).await.is_ok()
    }
}

/// Waits until the topic is begun to be followed, for the first time or again.
async fn begun(beginnings: &mut watch::Receiver<u64>) {
    if beginnings.changed().await.is_err() {
        // The process ends. The waiter's caller learns that by its own token.
        std::future::pending::<()>().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.registry.remove(self.payment_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiters() -> (Waiters, watch::Receiver<bool>, watch::Sender<u64>) {
        let (demand, demanded) = watch::channel(false);
        let (begun, beginnings) = watch::channel(1);
        let waiting = IntGauge::new("waiting", "Of this test.").unwrap();
        let registry = Arc::new(Registry { payments: Mutex::default(), demand, waiting });
        (Waiters { registry, beginnings }, demanded, begun)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[tokio::test]
    async fn a_change_wakes_those_who_wait_for_its_payment_and_no_others() {
        let (waiters, _demanded, _begun) = waiters();
        let (payment, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut all = [waiters.register(payment), waiters.register(payment), waiters.register(other)];
        waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
        let woken = [
            all[0].changed(1, soon()).await,
            all[1].changed(1, soon()).await,
            all[2].changed(1, soon()).await,
        ];
        assert_eq!(woken, [true, true, false]);
        assert!(!all[0].changed(2, soon()).await, "the row shows the event");
        waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
        assert!(!all[0].changed(2, soon()).await, "the event is emitted again");
    }

    #[tokio::test]
    async fn a_row_that_does_not_show_its_event_yet_is_read_again() {
        let (waiters, _demanded, _begun) = waiters();
        let payment = Uuid::from_u128(1);
        let (mut waiter, deadline) = (waiters.register(payment), Instant::now() + Duration::from_secs(60));
        waiters.registry.changed(payment, Change { version: 3, is_terminal: true });
        let began = Instant::now();
        for _ in 0..4 {
            assert!(waiter.changed(2, deadline).await, "version 3 is there, and was read as 2");
        }
        assert!(began.elapsed() >= 2 * REREAD_PAUSE_MIN, "after the first, reads pause");
        assert!(waiter.ended(deadline).await);
        assert!(!waiter.changed(2, Instant::now()).await, "the deadline holds");
        assert!(!waiter.changed(3, soon()).await, "it was read");
    }

    #[test]
    fn the_id_of_an_event_ends_with_its_version() {
        assert_eq!(version("payments/payments/01a2062e-b407-7262-acff-35a6a1c53fdc/3"), Some(3));
        assert_eq!([version(""), version("payments/payments/x/"), version("5/y")], [None; 3]);
    }

    #[tokio::test]
    async fn an_end_is_not_hidden_by_an_event_that_is_emitted_again() {
        let (waiters, _demanded, _begun) = waiters();
        let payment = Uuid::from_u128(1);
        let mut waiter = waiters.register(payment);
        waiters.registry.changed(payment, Change { version: 3, is_terminal: true });
        waiters.registry.changed(payment, Change { version: 2, is_terminal: false });
        assert!(waiter.ended(Instant::now() + Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn a_waiter_reads_again_once_the_topic_is_followed_anew() {
        let (waiters, _demanded, begun) = waiters();
        let mut waiter = waiters.register(Uuid::from_u128(1));
        assert!(!waiter.changed(1, soon()).await, "it is followed already");
        begun.send_modify(|count| *count += 1);
        assert!(waiter.ended(soon()).await && !waiter.ended(soon()).await);
        drop(begun);
        assert!(!waiter.changed(1, soon()).await, "the process ends");
    }

    #[tokio::test]
    async fn there_is_demand_while_somebody_waits_and_nothing_is_kept_after() {
        let (waiters, demanded, _begun) = waiters();
        let payment = Uuid::from_u128(1);
        assert!(!*demanded.borrow());
        let (first, second) = (waiters.register(payment), waiters.register(payment));
        drop(first);
        assert!(*demanded.borrow());
        drop(second);
        assert!(!*demanded.borrow() && waiters.registry.payments().is_empty());
        assert_eq!(waiters.registry.waiting.get(), 0);
    }

    #[test]
    fn a_payment_ends_with_four_of_its_events() {
        let ends: Vec<&str> =
            EventType::ALL.iter().filter(|event| is_terminal(**event)).map(|event| event.as_str()).collect();
        let expected =
            ["payment.completed.v1", "payment.rejected.v1", "payment.failed.v1", "payment.cancelled.v1"];
        assert_eq!(ends, expected);
    }
}
