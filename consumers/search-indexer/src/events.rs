//! Makes documents of events, and writes them batch by batch.
//!
//! * A document is the last event of its payment or service, and has its version: order and repetitions do not matter.
//! * Of several events of a payment in a batch only the last is written; the others would be overwritten at once.
//! * A record that cannot be read, and a document that the index refuses, is parked in an index of its own.

use std::collections::HashMap;

use saga::consumer::{ApplyError, BatchCounts, Decoding, Delivery, Record, Subscriber};
use saga::contract::{Envelope, EventBody, EventType, Payment, Service};
use saga::parked::Parked;
use saga::search_index::{Kind, SERVICE_ROUTING};
use serde::Serialize;

use crate::store::{Store, WriteOutcome};

/// A document of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    /// Documents with the same routing lie in the same shard.
    pub routing: String,
    /// External: a lower one never replaces a higher one.
    pub version: i32,
    /// JSON.
    pub source: String,
}

#[derive(Serialize)]
struct Source<'a, T> {
    kind: &'static str,
    record: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

/// Writes the documents of one index.
pub struct Indexer {
    pub store: Store,
    /// The name of the index, not the alias.
    pub index: String,
}

impl Subscriber for Indexer {
    type Event = Document;

    const WRITES_TO: &'static str = "search index";

    fn decode(&self, record: &Record<'_>) -> Decoding<Document> {
        match record.envelope() {
            Ok(envelope) => decode(&envelope, record.body(), &record.place()),
            Err(reason) => Decoding::Poison(reason),
        }
    }

    async fn apply(
        &self,
        events: &[Delivery<'_, Document>],
        unreadable: &[Parked],
    ) -> Result<BatchCounts, ApplyError> {
        let documents: Vec<&Document> = events.iter().map(|delivery| &delivery.event).collect();
        let last = last_of_each(&documents);
        let to_write: Vec<&Document> = last.iter().map(|index| documents[*index]).collect();
        let outcomes = self.store.write(&self.index, &to_write).await?;
        let mut counts = BatchCounts { already: documents.len() - last.len(), ..BatchCounts::default() };
        let mut parked = unreadable.to_vec();
        for (index, outcome) in last.into_iter().zip(outcomes) {
            match outcome {
                WriteOutcome::Applied => counts.applied += 1,
                WriteOutcome::Already => counts.already += 1,
                WriteOutcome::Refused(kind) => {
                    counts.parked += 1;
                    parked.push(events[index].record.park(format!("the index refuses its document: {kind}")));
                }
            }
        }
        self.store.park(&parked).await?;
        Ok(counts)
    }
}

/// The index of the last event of each document, in order of arrival.
fn last_of_each(documents: &[&Document]) -> Vec<usize> {
    let mut last: HashMap<&str, usize> = HashMap::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let kept = last.entry(&document.id).or_insert(index);
        if documents[*kept].version < document.version {
            *kept = index;
        }
    }
    let mut indices: Vec<usize> = last.into_values().collect();
    indices.sort_unstable();
    indices
}

fn decode(envelope: &Envelope<'_>, body: &[u8], record: &str) -> Decoding<Document> {
    match envelope.event_type {
        EventType::PaymentInitiated
        | EventType::PaymentAuthorized
        | EventType::PaymentCompleted
        | EventType::PaymentRejected
        | EventType::PaymentFailed
        | EventType::PaymentCancelled
        | EventType::PaymentOutcomeUnknown
        | EventType::PaymentCancelRecorded
        | EventType::PaymentCancelRequested => {
            envelope.read(body).map(|payment: Payment| of_payment(&payment, record)).into()
        }
        EventType::ServiceAdded | EventType::ServiceChanged => {
            envelope.read(body).map(|service: Service| of_service(&service, record)).into()
        }
        // Nobody searches for these.
        EventType::BalanceHeld
        | EventType::BalanceRejected
        | EventType::BalanceCaptured
        | EventType::BalanceReleased
        | EventType::BalanceDeposited
        | EventType::ResultSucceeded
        | EventType::ResultDeclined
        | EventType::ResultUnknown
        | EventType::ResultExpired
        | EventType::ResultCancelled => Decoding::Ignore,
    }
}

fn of_payment(payment: &Payment, record: &str) -> Document {
    Document {
        id: payment.subject(),
        routing: payment.key(),
        version: payment.version,
        source: source(Kind::Payment, record, payment),
    }
}

fn of_service(service: &Service, record: &str) -> Document {
    Document {
        // No payment has such an id.
        id: format!("service/{}", service.service_id),
        routing: SERVICE_ROUTING.to_owned(),
        version: service.version,
        source: source(Kind::Service, record, service),
    }
}

fn source<T: Serialize>(kind: Kind, record: &str, body: &T) -> String {
    serde_json::to_string(&Source { kind: kind.as_str(), record, body })
        .unwrap_or_else(|_| unreachable!("plain structs with text keys always serialize"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/../../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn read(event_type: EventType, body: &[u8]) -> Decoding<Document> {
        let topic = event_type.topic();
        let key: &[u8] = match event_type {
            EventType::ServiceAdded | EventType::ServiceChanged => b"electricity",
            _ => b"0198c0de-0000-7000-8000-000000000001",
        };
        decode(&Envelope { event_type, topic, key, id: None, source: None, subject: None }, body, "T/0/1")
    }

    #[test]
    fn events_of_payments_and_services_become_documents_and_no_others() {
        for event_type in EventType::ALL {
            let name = event_type.as_str();
            let body = golden(name);
            match read(*event_type, &body) {
                Decoding::Event(document) => {
                    let mut expected: Value = serde_json::from_slice(&body).unwrap();
                    let (kind, id, routing) = match event_type.topic() {
                        "PaymentTopic" => (
                            "payment",
                            "0198c0de-0000-7000-8000-000000000002",
                            "0198c0de-0000-7000-8000-000000000001",
                        ),
                        "ServiceTopic" => ("service", "service/electricity", "services"),
                        other => panic!("{name} of {other} is a document"),
                    };
                    (expected["kind"], expected["record"]) = (json!(kind), json!("T/0/1"));
                    assert_eq!(serde_json::from_str::<Value>(&document.source).unwrap(), expected, "{name}");
                    assert_eq!((document.id.as_str(), document.routing.as_str()), (id, routing), "{name}");
                    assert_eq!(json!(document.version), expected["version"], "{name}");
                }
                Decoding::Ignore => {
                    assert!(!name.starts_with("service.") && event_type.topic() != "PaymentTopic", "{name}");
                }
                Decoding::Poison(reason) | Decoding::Contradicts(reason) => panic!("{name}: {reason}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_poison_and_what_contradicts_itself_is_alarmed() {
        assert!(matches!(read(EventType::PaymentCompleted, b"[]"), Decoding::Poison(_)));
        let failed = golden("payment.failed.v1");
        assert!(matches!(read(EventType::PaymentCompleted, &failed), Decoding::Contradicts(_)));
        assert!(matches!(read(EventType::ServiceAdded, b"{}"), Decoding::Poison(_)));
    }

    #[test]
    fn of_several_events_of_a_document_the_highest_version_is_written_whatever_the_order() {
        let document = |id: &str, version| Document {
            id: id.to_owned(),
            routing: String::new(),
            version,
            source: String::new(),
        };
        let all = [document("a", 2), document("b", 1), document("a", 3), document("a", 1), document("c", 1)];
        let all: Vec<&Document> = all.iter().collect();
        assert_eq!(last_of_each(&all), [1, 2, 4]);
        assert_eq!(last_of_each(&[]), [0; 0]);
    }
}
