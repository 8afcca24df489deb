//! A record as the Kafka client handed it over, or a copy of it.
//!
//! * The record that was handed over keeps the whole answer of its broker in memory, up to a megabyte of each partition.
//! * So a record that is kept for as long as a database is away is copied. One that is applied soon is not.

use rdkafka::Timestamp;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Message, OwnedHeaders, OwnedMessage};

pub(super) enum Fetched<'c> {
    HandedOver(BorrowedMessage<'c>),
    Copied(Box<OwnedMessage>),
}

impl<'c> From<BorrowedMessage<'c>> for Fetched<'c> {
    fn from(message: BorrowedMessage<'c>) -> Self {
        Self::HandedOver(message)
    }
}

impl From<OwnedMessage> for Fetched<'_> {
    fn from(message: OwnedMessage) -> Self {
        Self::Copied(Box::new(message))
    }
}

impl Fetched<'_> {
    /// Itself, without what was fetched with it.
    pub(super) fn copied(self) -> Self {
        match self {
            Self::HandedOver(message) => message.detach().into(),
            Self::Copied(message) => Self::Copied(message),
        }
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::HandedOver(message) => message.key(),
            Self::Copied(message) => message.key(),
        }
    }

    pub(super) fn payload(&self) -> Option<&[u8]> {
        match self {
            Self::HandedOver(message) => message.payload(),
            Self::Copied(message) => message.payload(),
        }
    }

    pub(super) fn headers(&self) -> Option<&BorrowedHeaders> {
        match self {
            Self::HandedOver(message) => message.headers(),
            Self::Copied(message) => message.headers().map(OwnedHeaders::as_borrowed),
        }
    }

    pub(super) fn topic(&self) -> &str {
        match self {
            Self::HandedOver(message) => message.topic(),
            Self::Copied(message) => message.topic(),
        }
    }

    pub(super) fn partition(&self) -> i32 {
        match self {
            Self::HandedOver(message) => message.partition(),
            Self::Copied(message) => message.partition(),
        }
    }

    pub(super) fn offset(&self) -> i64 {
        match self {
            Self::HandedOver(message) => message.offset(),
            Self::Copied(message) => message.offset(),
        }
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        match self {
            Self::HandedOver(message) => message.timestamp(),
            Self::Copied(message) => message.timestamp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Header;

    use super::*;
    use crate::consumer::Record;

    /// So that it is parked and applied as the record would have been.
    #[test]
    fn a_copy_has_all_of_its_record() {
        let headers = OwnedHeaders::new().insert(Header { key: "ce_type", value: Some("balance.held.v1") });
        let (body, key) = (Some(b"body".to_vec()), Some(b"key".to_vec()));
        let time = Timestamp::CreateTime(7);
        let message = OwnedMessage::new(body, key, "BalanceTopic".to_owned(), time, 3, 40, Some(headers));
        let copy = Fetched::from(message).copied();
        let record = Record(&copy);
        assert_eq!((record.event_type(), record.header("none")), (Some("balance.held.v1"), None));
        assert_eq!(
            (record.committed_at_ms(), record.topic(), record.body()),
            (Some(7), "BalanceTopic", &b"body"[..])
        );
        let parked = record.park("why");
        assert_eq!(
            (parked.parked_id.as_str(), parked.message_key.as_deref()),
            ("BalanceTopic/3/40", Some("key"))
        );
        assert_eq!(parked.headers, serde_json::json!({"ce_type": "balance.held.v1"}));
        assert_eq!(parked.body, b"body");
    }
}
