//! Consumes requests to cancel authorized payments.
//!
//! * A charge that was never called ends cancelled. For any other charge the request comes too late.
//! * A request about another charge than the row's is parked.
//! * Work messages come by queue, see [`crate::jobs`].

use ::saga::consumer::{ApplyError, BatchCounts, Decoding, EventHandler};
use ::saga::contract::{Envelope, EventType, Payment};
use ::saga::parked::Parked;
use uuid::Uuid;

use crate::charge::Charge;
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::failpoints::{Failpoint, hit};
use crate::metrics::{Metrics, step_label};
use crate::saga::Step;
use crate::store::Store;
use crate::store::cancel::CancelOutcome;
use crate::work::Job;

/// Cancels charges that were never called.
#[derive(Clone)]
pub struct Cancels {
    pub store: Store,
    pub ended_cache: EndedCache,
    pub due_queue: DueQueue,
    pub metrics: Metrics,
}

impl EventHandler for Cancels {
    /// The charge to cancel, with the immutable columns of its row.
    type Event = Job;

    fn decode(&self, envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Job> {
        decode(envelope, body)
    }

    async fn apply(
        &self,
        requests: &[&Job],
        unreadable: &[Parked],
        park: impl Fn(usize, &str) -> Parked,
    ) -> Result<BatchCounts, ApplyError> {
        let users: Vec<Uuid> = requests.iter().map(|job| job.charge.user_id).collect();
        let moving = self.store.moving(&users).await;
        if !moving.is_empty() {
            return Err(ApplyError::Moving(moving));
        }
        let answers = self.store.cancel(requests, unreadable, park).await?;
        hit(Failpoint::AfterCancel);
        self.follow(requests, &answers);
        Ok(counts(&answers))
    }
}

impl Cancels {
    /// What follows the commit of these outcomes.
    pub fn follow(&self, requests: &[&Job], answers: &[CancelOutcome]) {
        let mut ended = Vec::new();
        for (job, answer) in requests.iter().zip(answers) {
            match answer {
                CancelOutcome::Cancelled => {
                    Metrics::count(&self.metrics.transitions, "cancelled");
                    self.due_queue.remove(job.charge.payment_id);
                    ended.push(&job.charge);
                }
                CancelOutcome::Already => Metrics::count(&self.metrics.ignored, step_label(&Step::Already)),
                CancelOutcome::TooLate => Metrics::count(&self.metrics.ignored, step_label(&Step::TooLate)),
                CancelOutcome::Parked => {}
            }
        }
        self.ended_cache.save(&ended);
    }
}

/// The outcomes, counted.
pub fn counts(answers: &[CancelOutcome]) -> BatchCounts {
    let mut counts = BatchCounts::default();
    for answer in answers {
        match answer {
            CancelOutcome::Cancelled => counts.applied += 1,
            CancelOutcome::Already | CancelOutcome::TooLate => counts.already += 1,
            CancelOutcome::Parked => {
                counts.parked += 1;
                counts.contradictions += 1;
            }
        }
    }
    counts
}

/// The charge of a request to cancel.
pub fn decode(envelope: &Envelope<'_>, body: &[u8]) -> Decoding<Job> {
    match envelope.event_type {
        EventType::PaymentCancelRequested => envelope.read(body).map(job).into(),
        // A recorded cancel becomes a request once the payment is authorized. The others are for other subscribers.
        EventType::PaymentInitiated
        | EventType::PaymentAuthorized
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRecorded
        | EventType::BalanceHeld
        | EventType::BalanceRejected
        | EventType::BalanceCaptured
        | EventType::BalanceReleased
        | EventType::BalanceDeposited
        | EventType::ResultSucceeded
        | EventType::ResultDeclined
        | EventType::ResultUnknown
        | EventType::ResultExpired
        | EventType::ResultCancelled
        | EventType::ServiceAdded
        | EventType::ServiceChanged => Decoding::Ignore,
    }
}

/// The job of a payment that is authorized. It equals the job of the payment's work message.
pub(crate) fn job(payment: Payment) -> Job {
    let charge = Charge {
        payment_id: payment.payment_id,
        user_id: payment.user_id,
        client_number: payment.client_number,
        service_id: payment.service_id,
        amount: payment.amount,
        traceparent: payment.traceparent.filter(|value| ::saga::trace::is_valid(value)),
    };
    Job { charge, expires_at: Some(payment.expires_at) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::work::{self, Message};

    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn read(name: &str, body: &[u8]) -> Decoding<Job> {
        let event_type = EventType::parse(name).unwrap();
        let (topic, key) = (event_type.topic(), b"0198c0de-0000-7000-8000-000000000001");
        decode(&Envelope { event_type, topic, key, id: None, source: None, subject: None }, body)
    }

    #[test]
    fn only_the_request_to_cancel_an_authorized_payment_is_decoded() {
        let decoded: Vec<&str> = EventType::ALL
            .iter()
            .map(|event| event.as_str())
            .filter(|name| match read(name, &golden(name)) {
                Decoding::Event(_) => true,
                Decoding::Ignore => false,
                Decoding::Poison(reason) | Decoding::Contradicts(reason) => panic!("{name}: {reason}"),
            })
            .collect();
        assert_eq!(decoded, ["payment.cancel_requested.v1"]);
    }

    #[test]
    fn what_cannot_be_read_is_poison() {
        let name = "payment.cancel_requested.v1";
        let fraction = String::from_utf8(golden(name)).unwrap().replace("15000", "15000.5");
        for body in [b"".as_slice(), b"{}", b"\0", fraction.as_bytes()] {
            assert!(matches!(read(name, body), Decoding::Poison(_)), "{body:?}");
        }
        let authorized = golden("payment.authorized.v1");
        assert!(matches!(read(name, &authorized), Decoding::Contradicts(_)));
    }

    #[test]
    fn a_cancel_and_the_work_message_of_a_payment_are_the_same_job() {
        let name = "payment.cancel_requested.v1";
        let Decoding::Event(cancel) = read(name, &golden(name)) else { panic!("it is decoded") };
        let headers = BTreeMap::from([
            ("expires_at".to_owned(), "2026-01-02T03:19:05.123456Z".to_owned()),
            ("traceparent".to_owned(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        ]);
        let message = Message { body: golden("work-message"), headers, ..Message::default() };
        assert_eq!(cancel, work::read(&message).unwrap());
    }
}
