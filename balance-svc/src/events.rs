//! Consumes the events that move money: initiated payments of payments-svc, and charge results of processor-svc.
//!
//! * A recorded cancel asks for the hold as well: after a resnapshot or a repair it may be the only event of its payment.
//! * An unknown result moves no money.
//! * All other events of the two topics are ignored by name.
//! * A parked event that an operator retries takes the same way.

use saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler};
use saga::contract::{ChargeResult, Envelope, EventType, Payment, Terms};
use saga::parked::Parked;
use saga::parked::acts::{Reapplication, Reapplied, Reapply};
use saga::postgres::Transaction;
use saga::shards::{Ownership, Router};
use uuid::Uuid;

use crate::command::Command;
use crate::metrics::Metrics;
use crate::saga::{Event, ReleaseCause};
use crate::store::{self, Outcome};

/// Applies events to the ledger and the accounts.
#[derive(Clone)]
pub struct Ledger {
    router: Router,
    metrics: Metrics,
}

impl Ledger {
    pub fn new(router: Router, metrics: &Metrics) -> Self {
        Self { router, metrics: metrics.clone() }
    }
}

impl EventHandler for Ledger {
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

impl Ledger {
    fn count(&self, outcome: &Outcome) {
        for (kind, count) in &outcome.entries {
            self.metrics.entries.with_label_values(&[kind.as_str()]).inc_by(*count);
        }
    }
}

impl Reapply for Ledger {
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
    match envelope.event_type {
        // A cancel is recorded while the payment is `initiated`, so it usually follows that event and changes nothing.
        // After a resnapshot or a repair the relay emits the current row only, and this is then the first event.
        EventType::PaymentInitiated | EventType::PaymentCancelRecorded => {
            envelope.read(body).map(initiated).into()
        }
        EventType::ResultSucceeded => envelope.read(body).map(succeeded).into(),
        EventType::ResultDeclined => not_charged(envelope, body, ReleaseCause::Declined),
        EventType::ResultExpired => not_charged(envelope, body, ReleaseCause::Expired),
        EventType::ResultCancelled => not_charged(envelope, body, ReleaseCause::Cancelled),
        // An unknown result moves no money. The others are published for other subscribers.
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
        | EventType::BalanceDeposited
        | EventType::ServiceAdded
        | EventType::ServiceChanged => Decoding::Ignore,
    }
}

/// Terms without the client number, which the ledger does not have.
fn in_ledger(terms: Terms) -> Terms {
    Terms { client_number: None, ..terms }
}

fn initiated(payment: Payment) -> Command {
    let event = Event::Initiated { terms: in_ledger(payment.terms()) };
    let Payment { user_id, payment_id, traceparent, .. } = payment;
    Command { user_id, payment_id, traceparent, detail: None, event }
}

fn succeeded(result: ChargeResult) -> Command {
    let event = Event::Succeeded { terms: in_ledger(result.terms()) };
    outcome(result, event)
}

fn not_charged(envelope: &Envelope<'_>, body: &[u8], cause: ReleaseCause) -> Decoding<Command> {
    let command = |result: ChargeResult| {
        let event = Event::NotCharged { terms: in_ledger(result.terms()), cause };
        outcome(result, event)
    };
    envelope.read(body).map(command).into()
}

fn outcome(result: ChargeResult, event: Event) -> Command {
    let ChargeResult { user_id, payment_id, traceparent, reason, .. } = result;
    Command { user_id, payment_id, traceparent, detail: reason, event }
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
        let decoded: Vec<&str> = EventType::ALL
            .iter()
            .map(|event| event.as_str())
            .filter(|name| match read(name, &golden(name)) {
                Decoding::Event(_) => true,
                Decoding::Ignore => false,
                Decoding::Poison(reason) | Decoding::Contradicts(reason) => panic!("{name}: {reason}"),
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
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_recorded_cancel_asks_for_the_hold_as_well_for_it_may_be_the_only_event() {
        let name = "payment.cancel_recorded.v1";
        let Decoding::Event(command) = read(name, &golden(name)) else { panic!("{name} is ignored") };
        let terms = Terms { amount: 15_000, service_id: "electricity".into(), client_number: None };
        assert_eq!(command.event, Event::Initiated { terms });
    }

    #[test]
    fn what_cannot_be_read_is_poison_and_what_contradicts_itself_is_alarmed() {
        assert!(matches!(read("payment.initiated.v1", b"{}"), Decoding::Poison(_)));
        let declined = golden("payment.result.declined.v1");
        assert!(matches!(read("payment.result.succeeded.v1", &declined), Decoding::Contradicts(_)));
    }
}
