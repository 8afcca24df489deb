//! What balance-svc hears: payments asked for, and outcomes of charges.

use saga::consumer::{Applied, ApplyError, Decoded, Delivery, Record, Subscriber};
use saga::contract::{ChargeResult, EventType, Payment};
use saga::parked::Parked;
use saga::postgres::Pool;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::saga::{Event, ReleaseCause};
use crate::store;

/// One event with what its ledger entry records beside the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub service_id: String,
    pub traceparent: Option<String>,
    /// The gateway's word, kept behind the cause of a release.
    pub detail: Option<String>,
    pub event: Event,
}

/// The subscriber: applies events to ledger and accounts.
pub struct Ledger {
    pool: Pool,
    metrics: Metrics,
}

impl Ledger {
    pub fn new(pool: Pool, metrics: &Metrics) -> Self {
        Self { pool, metrics: metrics.clone() }
    }
}

impl Subscriber for Ledger {
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
        for (kind, count) in outcome.entries {
            self.metrics.entries.with_label_values(&[kind.as_str()]).inc_by(count);
        }
        Ok(outcome.applied)
    }
}

fn decode(name: &str, body: &[u8]) -> Decoded<Command> {
    let Some(event_type) = EventType::parse(name) else {
        return Decoded::Poison(format!("event type {name} is not known"));
    };
    match event_type {
        // A cancel is recorded while the payment is still `initiated`. It follows that event, and changes nothing;
        // but when a row is told again (a lost slot, a repair), it is all that is told of such a payment.
        EventType::PaymentInitiated | EventType::PaymentCancelRecorded => {
            read(body, |payment: Payment| Command {
                user_id: payment.user_id,
                payment_id: payment.payment_id,
                service_id: payment.service_id,
                traceparent: payment.traceparent,
                detail: None,
                event: Event::Initiated { amount: payment.amount },
            })
        }
        EventType::ResultSucceeded => read(body, |result| outcome(result, Event::Succeeded)),
        EventType::ResultDeclined => read(body, |result| not_charged(result, ReleaseCause::Declined)),
        EventType::ResultExpired => read(body, |result| not_charged(result, ReleaseCause::Expired)),
        EventType::ResultCancelled => read(body, |result| not_charged(result, ReleaseCause::Cancelled)),
        // Unknown moves no money; the rest is told for others.
        EventType::ResultUnknown
        | EventType::PaymentAuthorized
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRequested
        | EventType::BalanceHeld
        | EventType::BalanceRejected
        | EventType::BalanceCaptured
        | EventType::BalanceReleased
        | EventType::BalanceDeposited => Decoded::Ignore,
    }
}

fn read<T: DeserializeOwned>(body: &[u8], command: impl FnOnce(T) -> Command) -> Decoded<Command> {
    match serde_json::from_slice(body) {
        Ok(data) => Decoded::Event(command(data)),
        Err(error) => Decoded::Poison(error.to_string()),
    }
}

fn not_charged(result: ChargeResult, cause: ReleaseCause) -> Command {
    outcome(result, Event::NotCharged { cause })
}

fn outcome(result: ChargeResult, event: Event) -> Command {
    Command {
        user_id: result.user_id,
        payment_id: result.payment_id,
        service_id: result.service_id,
        traceparent: result.traceparent,
        detail: result.reason,
        event,
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
        let heard: Vec<&str> = EventType::ALL
            .iter()
            .map(|event| event.as_str())
            .filter(|name| match decode(name, &golden(name)) {
                Decoded::Event(_) => true,
                Decoded::Ignore => false,
                Decoded::Poison(reason) => panic!("{name}: {reason}"),
            })
            .collect();
        let expected = [
            "payment.initiated.v1",
            "payment.cancel_recorded.v1",
            "payment.result.succeeded.v1",
            "payment.result.declined.v1",
            "payment.result.expired.v1",
            "payment.result.cancelled.v1",
        ];
        assert_eq!(heard, expected);
    }

    #[test]
    fn a_recorded_cancel_asks_for_the_hold_as_well_for_it_may_be_all_that_is_told() {
        let name = "payment.cancel_recorded.v1";
        let Decoded::Event(command) = decode(name, &golden(name)) else { panic!("{name} is not heard") };
        assert_eq!(command.event, Event::Initiated { amount: 15_000 });
    }

    #[test]
    fn what_cannot_be_read_is_poison() {
        assert!(matches!(decode("payment.initiated.v1", b"{}"), Decoded::Poison(_)));
        assert!(matches!(decode("payment.initiated.v9", b"{}"), Decoded::Poison(_)));
    }
}
