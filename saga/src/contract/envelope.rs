//! Reads one event, and refuses it when its topic, key, headers and body do not agree.
//!
//! * Type, topic, key and body are always there and are always compared.
//! * Id, source and subject are compared where they are there: the relay always writes them.
//! * A body must be a row that its database could hold: kind and phase, status and event fit each other.

use std::fmt;

use serde::de::DeserializeOwned;

use super::{
    BALANCE_TOPIC, ChargeResult, EventType, LedgerEntry, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, Payment,
    SERVICE_TOPIC, Service, Terms,
};

/// The topic, key and headers of an event.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub event_type: EventType,
    /// The topic with its prefix, if the system has one.
    pub topic: &'a str,
    pub key: &'a [u8],
    pub id: Option<&'a str>,
    pub source: Option<&'a str>,
    pub subject: Option<&'a str>,
}

/// The reason why an event is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// The body does not have the form of its type.
    Unreadable(String),
    /// Parts contradict each other: the event is forged, misrouted or damaged.
    Contradicts(String),
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnvelopeError::Unreadable(why) => f.write_str(why),
            EnvelopeError::Contradicts(why) => write!(f, "differs: {why}"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// The body of an event: a published row.
pub trait EventBody: DeserializeOwned {
    /// The Kafka key of that event: the user, or the service.
    fn key(&self) -> String;
    /// What the event is about: the payment, or the service.
    fn subject(&self) -> String;
    /// The type of the event that this row publishes; `None` for a row that its database would refuse.
    fn event_type(&self) -> Option<EventType>;
    /// The id of that event.
    fn event_id(&self) -> String;
}

impl Envelope<'_> {
    /// Reads the body.
    ///
    /// # Errors
    /// When the body cannot be read, or does not agree with the envelope.
    pub fn read<T: EventBody>(&self, body: &[u8]) -> Result<T, EnvelopeError> {
        let event_body: T =
            serde_json::from_slice(body).map_err(|error| EnvelopeError::Unreadable(error.to_string()))?;
        match self.contradiction(&event_body) {
            None => Ok(event_body),
            Some(why) => Err(EnvelopeError::Contradicts(why)),
        }
    }

    fn contradiction(&self, event_body: &impl EventBody) -> Option<String> {
        let (name, topic) = (self.event_type.as_str(), self.event_type.topic());
        if !self.topic.ends_with(topic) {
            return Some(format!("the event type {name} was read on {}, but belongs on {topic}", self.topic));
        }
        match event_body.event_type() {
            Some(of_body) if of_body == self.event_type => {}
            Some(of_body) => {
                return Some(format!("ce_type says {name}, but the body is that of {}", of_body.as_str()));
            }
            None => {
                return Some(format!(
                    "ce_type says {name}, but no database of ours could hold the row of the body"
                ));
            }
        }
        let (key, subject) = (event_body.key(), event_body.subject());
        if self.key != key.as_bytes() {
            let found = String::from_utf8_lossy(self.key);
            return Some(format!("the key is {found}, but the body requires {key}"));
        }
        let source = source(topic);
        let id = self.id.map(|_| event_body.event_id());
        let named = [
            ("ce_id", self.id, id.as_deref()),
            ("ce_source", self.source, Some(source)),
            ("ce_subject", self.subject, Some(subject.as_str())),
        ];
        named.into_iter().find_map(|(header, found, due)| {
            let (found, due) = (found?, due?);
            (found != due).then(|| format!("{header} says {found}, but the body requires {due}"))
        })
    }
}

/// The `ce_source` of the events on a topic.
fn source(topic: &str) -> &'static str {
    match topic {
        PAYMENT_TOPIC | SERVICE_TOPIC => "/coro/payments",
        BALANCE_TOPIC => "/coro/balance",
        PAYMENT_RESULT_TOPIC => "/coro/processor",
        other => unreachable!("{other} is not a topic of the contract"),
    }
}

impl EventBody for Payment {
    fn key(&self) -> String {
        self.user_id.to_string()
    }

    fn subject(&self) -> String {
        self.payment_id.to_string()
    }

    fn event_type(&self) -> Option<EventType> {
        match (self.event.as_str(), self.status.as_str()) {
            ("initiated", "initiated") => Some(EventType::PaymentInitiated),
            ("authorized", "authorized") => Some(EventType::PaymentAuthorized),
            ("completed", "completed") => Some(EventType::PaymentCompleted),
            ("rejected", "rejected") => Some(EventType::PaymentRejected),
            ("failed", "failed") => Some(EventType::PaymentFailed),
            ("cancelled", "cancelled") => Some(EventType::PaymentCancelled),
            ("outcome_unknown", "authorized") => Some(EventType::PaymentOutcomeUnknown),
            ("cancel_recorded", "initiated") => Some(EventType::PaymentCancelRecorded),
            ("cancel_requested", "authorized") => Some(EventType::PaymentCancelRequested),
            (_, _) => None,
        }
    }

    fn event_id(&self) -> String {
        format!("payments/payments/{}/{}", self.payment_id, self.version)
    }
}

impl Payment {
    pub fn terms(&self) -> Terms {
        let client_number = Some(self.client_number.as_str().into());
        Terms { amount: self.amount, service_id: self.service_id.as_str().into(), client_number }
    }
}

impl EventBody for LedgerEntry {
    fn key(&self) -> String {
        self.user_id.to_string()
    }

    fn subject(&self) -> String {
        self.payment_id.to_string()
    }

    fn event_type(&self) -> Option<EventType> {
        match (self.kind.as_str(), self.phase, self.reason.is_some()) {
            ("hold", 1, false) => Some(EventType::BalanceHeld),
            ("rejection", 1, true) => Some(EventType::BalanceRejected),
            ("deposit", 1, false) => Some(EventType::BalanceDeposited),
            ("capture", 2, false) => Some(EventType::BalanceCaptured),
            ("release", 2, true) => Some(EventType::BalanceReleased),
            (_, _, _) => None,
        }
    }

    fn event_id(&self) -> String {
        format!("balance/ledger/{}/{}", self.payment_id, self.phase)
    }
}

impl LedgerEntry {
    /// The terms of the entry. A deposit has an empty service.
    pub fn terms(&self) -> Terms {
        let service_id = self.service_id.as_deref().unwrap_or_default().into();
        Terms { amount: self.amount, service_id, client_number: None }
    }
}

impl EventBody for ChargeResult {
    fn key(&self) -> String {
        self.user_id.to_string()
    }

    fn subject(&self) -> String {
        self.payment_id.to_string()
    }

    fn event_type(&self) -> Option<EventType> {
        match (self.status.as_str(), self.provider_reference.is_some()) {
            ("succeeded", true) => Some(EventType::ResultSucceeded),
            ("declined", _) => Some(EventType::ResultDeclined),
            ("unknown", _) => Some(EventType::ResultUnknown),
            ("expired", _) => Some(EventType::ResultExpired),
            ("cancelled", _) => Some(EventType::ResultCancelled),
            (_, _) => None,
        }
    }

    fn event_id(&self) -> String {
        format!("processor/charges/{}/{}", self.payment_id, self.version)
    }
}

impl ChargeResult {
    pub fn terms(&self) -> Terms {
        let client_number = Some(self.client_number.as_str().into());
        Terms { amount: self.amount, service_id: self.service_id.as_str().into(), client_number }
    }
}

impl EventBody for Service {
    fn key(&self) -> String {
        self.service_id.clone()
    }

    fn subject(&self) -> String {
        self.service_id.clone()
    }

    fn event_type(&self) -> Option<EventType> {
        match (self.event.as_str(), self.version) {
            ("added", 1) => Some(EventType::ServiceAdded),
            ("changed", 2..) => Some(EventType::ServiceChanged),
            (_, _) => None,
        }
    }

    fn event_id(&self) -> String {
        format!("payments/services/{}/{}", self.service_id, self.version)
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
