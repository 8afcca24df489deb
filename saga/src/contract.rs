//! The wire contract: topics, event types and the data of each.
//!
//! * The relay does not read this file: its routes file configures it. The golden files in `saga/golden` hold one event of
//!   each type as on the wire, and tests compare both sides with them.
//! * A released type is never changed in place. A change that breaks a reader gets a new `.vN`.
//! * [`Envelope`] reads an event only if its headers, key and body agree. [`Terms`] compares an event with the reader's
//!   own row of the payment. [`ReleaseReason`] is the one text with a structure of its own.

mod envelope;
mod release;
mod terms;

pub use envelope::{Envelope, EnvelopeError, EventBody};
pub use release::{ReleaseCause, ReleaseReason};
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
pub use terms::{Difference, Terms};
use uuid::Uuid;

pub const PAYMENT_TOPIC: &str = "PaymentTopic";
pub const BALANCE_TOPIC: &str = "BalanceTopic";
pub const PAYMENT_RESULT_TOPIC: &str = "PaymentResultTopic";
/// The entities that can be paid, by service id: a compacted topic.
pub const SERVICE_TOPIC: &str = "ServiceTopic";
/// What operators have done. No service consumes it; the audit counts its records as links of each source's chain.
pub const OPERATOR_TOPIC: &str = "OperatorTopic";
/// The queue of work messages, on RabbitMQ.
pub const PAYMENT_QUEUE: &str = "PaymentInitiated";

/// 2^53 - 1: the largest integer every JSON reader keeps exact.
pub const AMOUNT_MAX: i64 = (1 << 53) - 1;

/// The header that names an event's type (CloudEvents 1.0, Kafka binding, binary mode).
pub const HEADER_TYPE: &str = "ce_type";
/// The header that carries the event id: equal each time the event is emitted.
pub const HEADER_ID: &str = "ce_id";
/// The header that names the database an event comes from.
pub const HEADER_SOURCE: &str = "ce_source";
/// The header that names what an event is about: the payment, or the service.
pub const HEADER_SUBJECT: &str = "ce_subject";
/// The header that names the chain of the event's position. Positions of two chains say nothing about each other.
pub const HEADER_CHAIN: &str = "pg_chain";
/// The header with the event's position in its chain. An event that is emitted again from its row has none.
pub const HEADER_POSITION: &str = "pg_position";

/// Every type of event on the topics of the saga, and on [`SERVICE_TOPIC`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantArray)]
pub enum EventType {
    #[strum(serialize = "payment.initiated.v1")]
    PaymentInitiated,
    #[strum(serialize = "payment.authorized.v1")]
    PaymentAuthorized,
    #[strum(serialize = "payment.completed.v1")]
    PaymentCompleted,
    #[strum(serialize = "payment.rejected.v1")]
    PaymentRejected,
    #[strum(serialize = "payment.failed.v1")]
    PaymentFailed,
    #[strum(serialize = "payment.cancelled.v1")]
    PaymentCancelled,
    #[strum(serialize = "payment.outcome_unknown.v1")]
    PaymentOutcomeUnknown,
    #[strum(serialize = "payment.cancel_recorded.v1")]
    PaymentCancelRecorded,
    #[strum(serialize = "payment.cancel_requested.v1")]
    PaymentCancelRequested,
    #[strum(serialize = "balance.held.v1")]
    BalanceHeld,
    #[strum(serialize = "balance.rejected.v1")]
    BalanceRejected,
    #[strum(serialize = "balance.captured.v1")]
    BalanceCaptured,
    #[strum(serialize = "balance.released.v1")]
    BalanceReleased,
    #[strum(serialize = "balance.deposited.v1")]
    BalanceDeposited,
    #[strum(serialize = "payment.result.succeeded.v1")]
    ResultSucceeded,
    #[strum(serialize = "payment.result.declined.v1")]
    ResultDeclined,
    #[strum(serialize = "payment.result.unknown.v1")]
    ResultUnknown,
    #[strum(serialize = "payment.result.expired.v1")]
    ResultExpired,
    #[strum(serialize = "payment.result.cancelled.v1")]
    ResultCancelled,
    #[strum(serialize = "service.added.v1")]
    ServiceAdded,
    #[strum(serialize = "service.changed.v1")]
    ServiceChanged,
}

impl EventType {
    pub const ALL: &[EventType] = EventType::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The topic of the event, without a prefix.
    pub fn topic(self) -> &'static str {
        match self {
            EventType::PaymentInitiated
            | EventType::PaymentAuthorized
            | EventType::PaymentCompleted
            | EventType::PaymentRejected
            | EventType::PaymentFailed
            | EventType::PaymentCancelled
            | EventType::PaymentOutcomeUnknown
            | EventType::PaymentCancelRecorded
            | EventType::PaymentCancelRequested => PAYMENT_TOPIC,
            EventType::BalanceHeld
            | EventType::BalanceRejected
            | EventType::BalanceCaptured
            | EventType::BalanceReleased
            | EventType::BalanceDeposited => BALANCE_TOPIC,
            EventType::ResultSucceeded
            | EventType::ResultDeclined
            | EventType::ResultUnknown
            | EventType::ResultExpired
            | EventType::ResultCancelled => PAYMENT_RESULT_TOPIC,
            EventType::ServiceAdded | EventType::ServiceChanged => SERVICE_TOPIC,
        }
    }

    /// Whether the payment has ended with this event.
    pub fn ends_payment(self) -> bool {
        use EventType::{PaymentCancelled, PaymentCompleted, PaymentFailed, PaymentRejected};
        matches!(self, PaymentCompleted | PaymentRejected | PaymentFailed | PaymentCancelled)
    }

    /// The type with this name; `None` for a type that this version does not know.
    pub fn parse(name: &str) -> Option<EventType> {
        name.parse().ok()
    }
}

/// Data of every `payment.*` event on PaymentTopic: the published columns of `payments.payments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub client_number: String,
    pub service_id: String,
    /// Minor units.
    pub amount: i64,
    pub status: String,
    pub event: String,
    pub reason: Option<String>,
    pub version: i32,
    pub traceparent: Option<String>,
    pub initiated_at: jiff::Timestamp,
    pub expires_at: jiff::Timestamp,
    pub authorized_at: Option<jiff::Timestamp>,
    pub completed_at: Option<jiff::Timestamp>,
    pub rejected_at: Option<jiff::Timestamp>,
    pub failed_at: Option<jiff::Timestamp>,
    pub cancelled_at: Option<jiff::Timestamp>,
    pub cancel_requested_at: Option<jiff::Timestamp>,
}

/// Data of every `balance.*` event on BalanceTopic: the published columns of `balance.ledger`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub phase: i16,
    pub kind: String,
    pub amount: i64,
    pub service_id: Option<String>,
    pub reason: Option<String>,
    pub traceparent: Option<String>,
    pub created_at: jiff::Timestamp,
}

/// Data of every `payment.result.*` event on PaymentResultTopic: the published columns of `processor.charges`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeResult {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub client_number: String,
    pub service_id: String,
    pub amount: i64,
    pub status: String,
    pub attempt: i32,
    pub reason: Option<String>,
    pub version: i32,
    pub provider_reference: Option<String>,
    pub traceparent: Option<String>,
    pub expires_at: Option<jiff::Timestamp>,
    pub created_at: jiff::Timestamp,
    pub decided_at: Option<jiff::Timestamp>,
}

impl Payment {
    /// When the payment ended; a terminal payment has one of these times, and every other has none.
    pub fn ended_at(&self) -> Option<jiff::Timestamp> {
        self.completed_at.or(self.rejected_at).or(self.failed_at).or(self.cancelled_at)
    }
}

/// Data of every `service.*` event on ServiceTopic: the published columns of `payments.services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub service_id: String,
    pub name: String,
    /// Whether new payments are accepted.
    pub enabled: bool,
    pub event: String,
    pub version: i32,
}

/// The work message on [`PAYMENT_QUEUE`], exactly: `{"payload":{…}}`, the amount as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkMessage {
    pub payload: Work,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    pub user_id: Uuid,
    pub client_number: String,
    pub service_id: String,
    /// Minor units in decimal.
    pub amount: String,
    /// The `payment_id`.
    pub transaction_id: Uuid,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> String {
        let path = format!("{}/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")).trim_end().to_owned()
    }

    /// Reads the golden file and writes it again: every field is known, none is lost, order is kept.
    fn survives<T: Serialize + for<'de> Deserialize<'de>>(name: &str) {
        let text = golden(name);
        let data: T = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let written: serde_json::Value = serde_json::to_value(&data).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&written), keys(&read), "{name}");
    }

    #[test]
    fn every_event_type_has_a_golden_file_that_its_data_type_reads() {
        for event in EventType::ALL {
            match event.topic() {
                PAYMENT_TOPIC => survives::<Payment>(event.as_str()),
                BALANCE_TOPIC => survives::<LedgerEntry>(event.as_str()),
                PAYMENT_RESULT_TOPIC => survives::<ChargeResult>(event.as_str()),
                SERVICE_TOPIC => survives::<Service>(event.as_str()),
                other => panic!("{other} is not a topic"),
            }
        }
    }

    #[test]
    fn the_work_message_is_byte_for_byte_the_contract() {
        let text = golden("work-message");
        let message: WorkMessage = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(message.payload.amount, "15000");
    }

    #[test]
    fn names_are_parsed_back_to_their_type_and_unknown_ones_are_not() {
        for event in EventType::ALL {
            assert_eq!(EventType::parse(event.as_str()), Some(*event));
        }
        assert_eq!(EventType::parse("payment.initiated.v2"), None);
    }
}
