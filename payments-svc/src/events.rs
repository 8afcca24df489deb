//! Consumes the events that move payments: ledger entries of balance-svc, and unknown outcomes of processor-svc.
//!
//! * The ledger decides a payment: a captured hold completes it, a released hold ends it.
//! * An unknown outcome is recorded. It never fails a payment.
//! * All other events of the two topics are ignored by name.
//! * A parked event that an operator retries takes the same way.

use saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler};
use saga::contract::{ChargeResult, Envelope, EventType, LedgerEntry, ReleaseCause, ReleaseReason};
use saga::parked::Parked;
use saga::parked::acts::{Reapplication, Reapplied, Reapply};
use saga::postgres::Transaction;
use saga::shards::{Ownership, Router};
use uuid::Uuid;

use crate::command::Command;
use crate::metrics::Metrics;
use crate::saga::Event;
use crate::store::{self, Outcome};

/// Applies events to payments.
#[derive(Clone)]
pub struct Payments {
    router: Router,
    metrics: Metrics,
}

impl Payments {
    pub fn new(router: Router, metrics: &Metrics) -> Self {
        Self { router, metrics: metrics.clone() }
    }
}

impl EventHandler for Payments {
    type Event = Command;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Command> {
        decode(envelope, body)
    }

    async fn apply(
        &self,
        commands: &[&Command],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> Result<BatchCounts, ApplyError> {
        let users: Vec<Uuid> = commands.iter().map(|command| command.user_id).collect();
        let park = &park;
        let apply = |owned: Ownership, items: Vec<usize>, unreadable: Vec<Parked>| async move {
            let commands: Vec<&Command> = items.iter().map(|&item| commands[item]).collect();
            let park = |index: usize, reason: &str| park(items[index], reason);
            let outcome = store::apply(&owned, &commands, &unreadable, park).await?;
            self.count(&outcome);
            Ok(outcome.applied)
        };
        self.router.apply(&users, unreadable, apply).await
    }
}

impl Payments {
    fn count(&self, outcome: &Outcome) {
        for (event, count) in &outcome.transitions {
            self.metrics.transitions.with_label_values(&[event]).inc_by(*count);
        }
        for settle_time in &outcome.settle_times {
            self.metrics.settling.settle_seconds.observe(settle_time.as_secs_f64());
        }
    }
}

impl Reapply for Payments {
    type Effect = Outcome;

    async fn reapply(
        &self,
        transaction: &Transaction<'_>,
        message: &Parked,
    ) -> anyhow::Result<(Reapplied, Option<Outcome>)> {
        let reapplication = Reapplication::new(message);
        let command = match reapplication.event(decode) {
            Ok(command) => command,
            Err(impossible) => return Ok((impossible, None)),
        };
        let owned = self.router.ownership(&[command.user_id]).await?;
        let park = |_, reason: &str| reapplication.park(reason);
        match store::apply_in(transaction, &owned, &[&command], &[], park).await {
            Ok(outcome) => Ok((reapplication.result(Ok(outcome.applied))?, Some(outcome))),
            Err(error) => {
                self.router.was_refused_in(&owned, &error).await;
                Ok((reapplication.result(Err(error))?, None))
            }
        }
    }

    fn committed(&self, outcome: Outcome) {
        self.count(&outcome);
    }
}

fn decode(envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Command> {
    let entry = |event| envelope.read(body).map(|entry: LedgerEntry| command(entry, event)).into();
    match envelope.event_type {
        EventType::BalanceHeld => entry(Event::Held),
        EventType::BalanceRejected => entry(Event::HoldRejected),
        EventType::BalanceCaptured => entry(Event::Captured),
        EventType::BalanceReleased => envelope.read(body).map(released).into(),
        EventType::ResultUnknown => envelope.read(body).map(unknown).into(),
        // The ledger decides a payment. These events are published for other subscribers.
        EventType::BalanceDeposited
        | EventType::ResultSucceeded
        | EventType::ResultDeclined
        | EventType::ResultExpired
        | EventType::ResultCancelled
        | EventType::PaymentInitiated
        | EventType::PaymentAuthorized
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRecorded
        | EventType::PaymentCancelRequested
        | EventType::ServiceAdded
        | EventType::ServiceChanged => Decoding::Ignore,
    }
}

/// A reason that cannot be read is that of no cancel.
fn released(entry: LedgerEntry) -> Command {
    let reason: Option<ReleaseReason> = entry.reason.as_deref().and_then(|text| text.parse().ok());
    let event = match reason.map(|reason| reason.cause) {
        Some(ReleaseCause::Cancelled) => Event::ReleasedCancelled,
        Some(ReleaseCause::Declined | ReleaseCause::Expired) | None => Event::ReleasedUncharged,
    };
    command(entry, event)
}

fn command(entry: LedgerEntry, event: Event) -> Command {
    let terms = entry.terms();
    Command { user_id: entry.user_id, payment_id: entry.payment_id, event, terms, reason: entry.reason }
}

fn unknown(result: ChargeResult) -> Command {
    Command {
        user_id: result.user_id,
        payment_id: result.payment_id,
        event: Event::OutcomeUnknown,
        terms: result.terms(),
        // The reason marks the outcome as unknown, so there always is one.
        reason: result.reason.or_else(|| Some("unknown".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn read(name: &str, body: &[u8]) -> Decoding<Command> {
        let event_type = EventType::parse(name).unwrap();
        let (topic, key) = (event_type.topic(), b"0198c0de-0000-7000-8000-000000000001");
        decode(&Envelope { event_type, topic, key, id: None, source: None, subject: None }, body)
    }

    #[test]
    fn each_event_of_concern_is_read_from_its_golden_file_and_no_other() {
        let decoded: Vec<(&str, Event)> = EventType::ALL
            .iter()
            .map(|event| event.as_str())
            .filter_map(|name| match read(name, &golden(name)) {
                Decoding::Event(command) => Some((name, command.event)),
                Decoding::Ignore => None,
                Decoding::Poison(reason) | Decoding::Contradicts(reason) => panic!("{name}: {reason}"),
            })
            .collect();
        let expected = [
            ("balance.held.v1", Event::Held),
            ("balance.rejected.v1", Event::HoldRejected),
            ("balance.captured.v1", Event::Captured),
            ("balance.released.v1", Event::ReleasedUncharged),
            ("payment.result.unknown.v1", Event::OutcomeUnknown),
        ];
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_release_for_a_cancel_cancels_the_payment() {
        let body = String::from_utf8(golden("balance.released.v1")).unwrap();
        let body = body.replace("declined:do_not_honor", "cancelled");
        let Decoding::Event(command) = read("balance.released.v1", body.as_bytes()) else { panic!() };
        assert_eq!(command.event, Event::ReleasedCancelled);
    }

    #[test]
    fn what_cannot_be_read_is_poison_and_what_contradicts_itself_is_alarmed() {
        assert!(matches!(read("balance.held.v1", b"[]"), Decoding::Poison(_)));
        let captured = golden("balance.captured.v1");
        assert!(matches!(read("balance.held.v1", &captured), Decoding::Contradicts(_)));
    }
}
