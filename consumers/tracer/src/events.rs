//! Reads what the events of a payment say of its trace.
//!
//! * An event without `ce_time` or `traceparent` belongs to no trace. Nor does a deposit, whose cause is an operator.
//! * A record that cannot be read is counted by the consumer and left: others park it, and a trace is no ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::saga::consumer::{ApplyError, BatchCounts, Decoding, Delivery, Record, Subscriber};
use ::saga::contract::{ChargeResult, Envelope, EnvelopeError, EventBody, EventType, LedgerEntry, Payment};
use ::saga::parked::Parked;
use anyhow::anyhow;
use jiff::Timestamp;
use uuid::Uuid;

use crate::pending::Pending;
use crate::saga::{Context, Fact, Sampler};

/// The time of an event's commit.
const HEADER_TIME: &str = "ce_time";

/// Gathers the events of the payments that are traced.
pub struct Gatherer {
    pub pending: Arc<Pending>,
    pub sampler: Sampler,
    /// Older events are not traced.
    pub age_max: Option<Duration>,
}

/// An event of a payment that may be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub payment_id: Uuid,
    pub context: Context,
    pub fact: Fact,
}

impl Subscriber for Gatherer {
    type Event = Step;

    const WRITES_TO: &'static str = "collector";

    fn decode(&self, record: &Record<'_>) -> Decoding<Step> {
        let envelope = match record.envelope() {
            Ok(envelope) => envelope,
            Err(reason) => return Decoding::Poison(reason),
        };
        let Some(committed_at) = record.header(HEADER_TIME).and_then(|text| text.parse().ok()) else {
            return Decoding::Ignore;
        };
        match step(&envelope, record.body(), committed_at) {
            Ok(Some(step)) if self.sampler.takes(step.context) && !self.is_old(committed_at) => {
                Decoding::Event(step)
            }
            Ok(_) => Decoding::Ignore,
            Err(error) => Err(error).into(),
        }
    }

    async fn apply(
        &self,
        steps: &[Delivery<'_, Step>],
        unreadable: &[Parked],
    ) -> Result<BatchCounts, ApplyError> {
        if self.pending.is_full() {
            return Err(anyhow!("too many traces wait for the collector").into());
        }
        let now = Instant::now();
        let mut counts = BatchCounts { parked: unreadable.len(), ..BatchCounts::default() };
        for delivery in steps {
            let Step { payment_id, context, fact } = delivery.event.clone();
            if self.pending.add(payment_id, context, fact, now) {
                counts.applied += 1;
            } else {
                counts.already += 1;
            }
        }
        Ok(counts)
    }
}

impl Gatherer {
    fn is_old(&self, committed_at: Timestamp) -> bool {
        self.age_max.is_some_and(|age_max| {
            Duration::try_from(Timestamp::now().duration_since(committed_at)).is_ok_and(|age| age > age_max)
        })
    }
}

/// What the event says of its step; `None` if it belongs to no trace.
fn step(
    envelope: &Envelope<'_>,
    body: &[u8],
    committed_at: Timestamp,
) -> Result<Option<Step>, EnvelopeError> {
    let event = envelope.event_type;
    let fact = |id, began_at: Option<Timestamp>, called_at, reason| Fact {
        event,
        id,
        began_at: began_at.unwrap_or(committed_at),
        called_at,
        committed_at,
        reason,
    };
    let (payment_id, traceparent, fact) = match event {
        EventType::PaymentInitiated
        | EventType::PaymentAuthorized
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRecorded
        | EventType::PaymentCancelRequested => {
            let payment: Payment = envelope.read(body)?;
            let began_at = began_at(event, &payment);
            (
                payment.payment_id,
                payment.traceparent.clone(),
                fact(payment.event_id(), began_at, None, payment.reason),
            )
        }
        EventType::BalanceHeld
        | EventType::BalanceRejected
        | EventType::BalanceCaptured
        | EventType::BalanceReleased => {
            let entry: LedgerEntry = envelope.read(body)?;
            let id = entry.event_id();
            (entry.payment_id, entry.traceparent, fact(id, Some(entry.created_at), None, entry.reason))
        }
        EventType::ResultSucceeded
        | EventType::ResultDeclined
        | EventType::ResultUnknown
        | EventType::ResultExpired
        | EventType::ResultCancelled => {
            let result: ChargeResult = envelope.read(body)?;
            let id = result.event_id();
            let fact = fact(id, result.decided_at, Some(result.created_at), result.reason);
            (result.payment_id, result.traceparent, fact)
        }
        EventType::BalanceDeposited | EventType::ServiceAdded | EventType::ServiceChanged => return Ok(None),
    };
    let context = traceparent.as_deref().and_then(Context::sampled);
    Ok(context.map(|context| Step { payment_id, context, fact }))
}

/// When the transaction of this event began, where its row says that.
fn began_at(event: EventType, payment: &Payment) -> Option<Timestamp> {
    match event {
        EventType::PaymentInitiated => Some(payment.initiated_at),
        EventType::PaymentAuthorized => payment.authorized_at,
        EventType::PaymentCancelRecorded => payment.cancel_requested_at,
        EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled => payment.ended_at(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn every_event_of_a_payment_is_a_step_of_its_trace_and_no_other_is() {
        for event_type in EventType::ALL {
            let name = event_type.as_str();
            let key: &[u8] = match event_type {
                EventType::ServiceAdded | EventType::ServiceChanged => b"electricity",
                _ => b"0198c0de-0000-7000-8000-000000000001",
            };
            let (id, source, subject) = (None, None, None);
            let envelope =
                Envelope { event_type: *event_type, topic: event_type.topic(), key, id, source, subject };
            let read = step(&envelope, &golden(name), Timestamp::MAX).unwrap();
            let belongs = !name.starts_with("service.") && *event_type != EventType::BalanceDeposited;
            assert_eq!(read.is_some(), belongs, "{name}");
            let Some(read) = read else { continue };
            assert_eq!(read.fact.event, *event_type);
            assert_eq!(read.payment_id.to_string(), "0198c0de-0000-7000-8000-000000000002", "{name}");
            // Where a row has a time of its step, the transaction began before its commit.
            let has_no_time =
                ["payment.outcome_unknown.v1", "payment.cancel_requested.v1", "payment.result.unknown.v1"];
            assert_eq!(read.fact.began_at == Timestamp::MAX, has_no_time.contains(&name), "{name}");
        }
    }
}
