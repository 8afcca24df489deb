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
#[path = "waiters_tests.rs"]
mod tests;
