//! The events of payments whose trace is not sent yet.
//!
//! * An event that comes again replaces itself.
//! * A payment is finished when it has ended and every event's cause is here; or when it has ended and the rest did not come
//!   within [`REST_TIMEOUT`]; or when nothing came within [`AGE_MAX`], as of a payment that waits for its gateway. What comes
//!   after that is sent by itself, under the same root.
//! * Memory is bounded by the number of events.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::saga::{Context, Fact, Span, is_whole, spans};

/// How long the rest of the events of an ended payment may take: the topics are read side by side.
pub const REST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a payment that does not end is waited for.
pub const AGE_MAX: Duration = Duration::from_secs(120);
/// Events: about half a kilobyte each.
pub const EVENTS_MAX: usize = 100_000;

/// What is known of a payment.
#[derive(Clone, Debug)]
pub struct Trace {
    pub payment_id: Uuid,
    pub context: Context,
    pub facts: Vec<Fact>,
    /// When the last event came.
    came_at: Instant,
}

impl Trace {
    pub fn new(payment_id: Uuid, context: Context, now: Instant) -> Self {
        Self { payment_id, context, facts: Vec::new(), came_at: now }
    }

    pub fn spans(&self) -> Vec<Span> {
        spans(self.payment_id, self.context, &self.facts)
    }

    fn is_finished(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.came_at);
        let has_ended = self.facts.iter().any(|fact| fact.event.ends_payment());
        has_ended && (is_whole(&self.facts) || age > REST_TIMEOUT) || age > AGE_MAX
    }
}

pub struct Pending {
    traces: Mutex<Held>,
    came: Notify,
    gauge: IntGauge,
}

#[derive(Default)]
struct Held {
    traces: HashMap<Uuid, Trace>,
    /// The number of all facts.
    facts: usize,
}

impl Pending {
    pub fn new(gauge: IntGauge) -> Self {
        Self { traces: Mutex::default(), came: Notify::new(), gauge }
    }

    /// Whether no more events can be taken before some are sent.
    pub fn is_full(&self) -> bool {
        self.held().facts >= EVENTS_MAX
    }

    /// Whether the event was not there.
    pub fn add(&self, payment_id: Uuid, context: Context, fact: Fact, now: Instant) -> bool {
        let mut held = self.held();
        let trace = held.traces.entry(payment_id).or_insert_with(|| Trace::new(payment_id, context, now));
        trace.came_at = now;
        if let Some(again) = trace.facts.iter_mut().find(|known| known.id == fact.id) {
            *again = fact;
            return false;
        }
        trace.facts.push(fact);
        held.facts += 1;
        self.gauge.inc();
        drop(held);
        self.came.notify_one();
        true
    }

    /// Waits until there is something, and then for `pause`.
    pub async fn wait_for_any(&self, pause: Duration) {
        while self.held().traces.is_empty() {
            self.came.notified().await;
        }
        tokio::time::sleep(pause).await;
    }

    /// Up to `count` payments that are finished. They are not held any more.
    pub fn take_finished(&self, now: Instant, count: usize) -> Vec<Trace> {
        let mut held = self.held();
        let finished = held.traces.values().filter(|trace| trace.is_finished(now));
        let ids: Vec<Uuid> = finished.map(|trace| trace.payment_id).take(count).collect();
        let taken: Vec<Trace> = ids.iter().filter_map(|id| held.traces.remove(id)).collect();
        self.forget(&mut held, &taken);
        taken
    }

    /// Everything, finished or not.
    pub fn take_all(&self) -> Vec<Trace> {
        let mut held = self.held();
        let taken: Vec<Trace> = held.traces.drain().map(|(_, trace)| trace).collect();
        self.forget(&mut held, &taken);
        taken
    }

    fn forget(&self, held: &mut Held, taken: &[Trace]) {
        held.facts -= taken.iter().map(|trace| trace.facts.len()).sum::<usize>();
        self.gauge.set(i64::try_from(held.facts).unwrap_or(i64::MAX));
    }

    /// The map stays whole whatever panicked while it was locked.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use jiff::Timestamp;
    use saga::contract::EventType;

    use super::*;

    fn fact(event: EventType) -> Fact {
        let at = Timestamp::UNIX_EPOCH;
        Fact {
            event,
            id: event.as_str().to_owned(),
            began_at: at,
            called_at: None,
            committed_at: at,
            reason: None,
        }
    }

    fn with(events: &[EventType]) -> (Pending, Uuid, Instant) {
        let (pending, id, now) =
            (Pending::new(IntGauge::new("x", "x").unwrap()), Uuid::max(), Instant::now());
        for event in events {
            assert!(pending.add(id, Context { trace: 1, parent: 2 }, fact(*event), now));
        }
        (pending, id, now)
    }

    #[test]
    fn a_payment_is_sent_when_it_is_whole_or_when_the_rest_does_not_come() {
        use EventType::{BalanceRejected, PaymentInitiated, PaymentRejected};
        let second = Duration::from_secs(1);
        let whole = [PaymentRejected, PaymentInitiated, BalanceRejected];
        // Whether it is finished at once, when the rest did not come, and in the end.
        let table: [(&[EventType], [bool; 3]); 3] = [
            (&whole, [true, true, true]),
            (&whole[..2], [false, true, true]),
            (&whole[1..], [false, false, true]),
        ];
        for (events, expected) in table {
            let moments = [Duration::ZERO, REST_TIMEOUT + second, AGE_MAX + second];
            let finished = moments.map(|moment| {
                let (pending, _, now) = with(events);
                !pending.take_finished(now + moment, 10).is_empty()
            });
            assert_eq!(finished, expected, "{events:?}");
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_an_event_and_by_nothing_else() {
        let (pending, id, now) = with(&[]);
        assert!(pending.wait_for_any(Duration::ZERO).now_or_never().is_none(), "there is nothing");
        pending.add(id, Context { trace: 1, parent: 2 }, fact(EventType::PaymentInitiated), now);
        pending.wait_for_any(Duration::ZERO).await;
    }

    #[test]
    fn an_event_that_comes_again_is_held_once() {
        let (pending, id, now) = with(&[EventType::PaymentInitiated]);
        let again = fact(EventType::PaymentInitiated);
        assert!(!pending.add(id, Context { trace: 1, parent: 2 }, again, now));
        assert_eq!((pending.gauge.get(), pending.held().facts), (1, 1));
        assert_eq!(pending.take_all().len(), 1);
        assert_eq!((pending.gauge.get(), pending.held().facts), (0, 0));
    }
}
