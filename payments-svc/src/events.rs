//! What payments-svc hears: what became of the money, and outcomes that are not known.

use saga::consumer::{Applied, ApplyError, Decoded, Delivery, Record, Subscriber};
use saga::contract::{ChargeResult, EventType, LedgerEntry};
use saga::parked::Parked;
use saga::postgres::Pool;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::saga::Event;
use crate::store;

/// One event with what the payment's row records beside the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub event: Event,
    pub reason: Option<String>,
}

/// The subscriber: moves payments along.
pub struct Payments {
    pool: Pool,
    metrics: Metrics,
}

impl Payments {
    pub fn new(pool: Pool, metrics: &Metrics) -> Self {
        Self { pool, metrics: metrics.clone() }
    }
}

impl Subscriber for Payments {
    type Event = Command;

    fn decode(&self, record: &Record<'_>) -> Decoded<Command> {
        match record.event_type() {
            Some(name) => decode(name, record.body()),
            None => Decoded::Poison("no ce_type header".into()),
        }
    }

    async fn apply(
        &self,
        events: &[Delivery<'_, Command>],
        unreadable: &[Parked],
    ) -> Result<Applied, ApplyError> {
        let commands: Vec<&Command> = events.iter().map(|delivery| &delivery.event).collect();
        let park = |index: usize, reason: String| events[index].record.park(reason);
        let outcome = store::apply(&self.pool, &commands, unreadable, park).await?;
        for (event, count) in outcome.transitions {
            self.metrics.transitions.with_label_values(&[event]).inc_by(count);
        }
        Ok(outcome.applied)
    }
}

fn decode(name: &str, body: &[u8]) -> Decoded<Command> {
    let Some(event_type) = EventType::parse(name) else {
        return Decoded::Poison(format!("event type {name} is not known"));
    };
    match event_type {
        EventType::BalanceHeld => entry(body, Event::Held),
        EventType::BalanceRejected => entry(body, Event::HoldRejected),
        EventType::BalanceCaptured => entry(body, Event::Captured),
        EventType::BalanceReleased => read(body, |released: LedgerEntry| {
            let cancelled = released.reason.as_deref().and_then(|r| r.split(':').next()) == Some("cancelled");
            let event = if cancelled { Event::ReleasedCancelled } else { Event::ReleasedUncharged };
            command(released, event)
        }),
        EventType::ResultUnknown => read(body, |result: ChargeResult| Command {
            user_id: result.user_id,
            payment_id: result.payment_id,
            event: Event::OutcomeUnknown,
            // The reason marks the outcome as unknown, so there always is one.
            reason: result.reason.or_else(|| Some("unknown".into())),
        }),
        // The money's way is what decides a payment; the rest is told for others.
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
        | EventType::PaymentCancelRequested => Decoded::Ignore,
    }
}

fn entry(body: &[u8], event: Event) -> Decoded<Command> {
    read(body, |entry: LedgerEntry| command(entry, event))
}

fn command(entry: LedgerEntry, event: Event) -> Command {
    Command { user_id: entry.user_id, payment_id: entry.payment_id, event, reason: entry.reason }
}

fn read<T: DeserializeOwned>(body: &[u8], command: impl FnOnce(T) -> Command) -> Decoded<Command> {
    match serde_json::from_slice(body) {
        Ok(data) => Decoded::Event(command(data)),
        Err(error) => Decoded::Poison(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn each_event_of_concern_is_read_from_its_golden_file_and_no_other() {
        let heard: Vec<(&str, Event)> = EventType::ALL
            .iter()
            .map(|event| event.as_str())
            .filter_map(|name| match decode(name, &golden(name)) {
                Decoded::Event(command) => Some((name, command.event)),
                Decoded::Ignore => None,
                Decoded::Poison(reason) => panic!("{name}: {reason}"),
            })
            .collect();
        let expected = [
            ("balance.held.v1", Event::Held),
            ("balance.rejected.v1", Event::HoldRejected),
            ("balance.captured.v1", Event::Captured),
            ("balance.released.v1", Event::ReleasedUncharged),
            ("payment.result.unknown.v1", Event::OutcomeUnknown),
        ];
        assert_eq!(heard, expected);
    }

    #[test]
    fn a_release_for_a_cancel_cancels_the_payment() {
        let body = String::from_utf8(golden("balance.released.v1")).unwrap();
        let body = body.replace("declined:do_not_honor", "cancelled");
        let Decoded::Event(command) = decode("balance.released.v1", body.as_bytes()) else { panic!() };
        assert_eq!(command.event, Event::ReleasedCancelled);
    }

    #[test]
    fn what_cannot_be_read_is_poison() {
        assert!(matches!(decode("balance.held.v1", b"[]"), Decoded::Poison(_)));
        assert!(matches!(decode("balance.unheard_of.v1", b"{}"), Decoded::Poison(_)));
    }
}
