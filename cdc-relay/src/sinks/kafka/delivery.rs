//! Receives librdkafka's delivery reports and errors, on its own threads.
//!
//! * A report of a row goes to [`Acks`]; a report of a checkpoint goes to [`CheckpointWrites`].
//! * A fatal error ends the session, which emits again all that is not acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use crate::checkpoint::progress::{Sink, TransactionSeq};
use crate::observe::metrics::SourceMetrics;
use crate::sinks::acks::Acks;

/// librdkafka's own structure and the headers, per message.
const MESSAGE_OVERHEAD_BYTES: i64 = 1024;

/// Kafka's refusal to a principal that may not write to any topic.
pub const NO_WRITE: &str = "this relay may not write to any topic: allow its principal Write on its topics";

/// The purpose of a record. It travels through librdkafka as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A row or a dead letter of this transaction: it counts as in flight and is acknowledged.
    Row(TransactionSeq),
    /// The checkpoint's write of this number: the source waits for it.
    Checkpoint(u64),
    /// A record of the state topic that nobody waits for.
    BestEffort,
}

impl Purpose {
    /// As librdkafka carries it: two bits say which, the others the number.
    pub fn encode(self) -> usize {
        let (tag, number) = match self {
            Self::Row(transaction_seq) => (0, transaction_seq),
            Self::Checkpoint(number) => (1, number),
            Self::BestEffort => (2, 0),
        };
        (number << 2 | tag) as usize
    }

    pub fn decode(opaque: usize) -> Purpose {
        let number = opaque as u64 >> 2;
        match opaque & 3 {
            0 => Self::Row(number),
            1 => Self::Checkpoint(number),
            _ => Self::BestEffort,
        }
    }
}

/// The writes of the checkpoint: how many were handed over, and up to which they are acknowledged. A late
/// acknowledgement of an earlier write, perhaps of the session before, must not be taken for that of the last.
#[derive(Debug, Default)]
pub struct CheckpointWrites {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

impl CheckpointWrites {
    /// Counts a write, and returns its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub fn acknowledge(&self, number: u64) {
        self.acknowledged.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether the last write is acknowledged.
    pub fn is_done(&self) -> bool {
        self.acknowledged.load(Ordering::Acquire) >= self.begun.load(Ordering::Acquire)
    }
}

/// The context of a producer.
pub struct Deliveries {
    pub acks: Arc<Acks>,
    pub writes: Arc<CheckpointWrites>,
    pub metrics: SourceMetrics,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka restores lost connections itself, but nothing after an error that it calls fatal.
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.acks.fail(format!("the producer gave up: {reason}")),
            // Fatal too, under the name of the refused request: to begin as an idempotent producer.
            Some(RDKafkaErrorCode::ClusterAuthorizationFailed) => self.acks.fail(NO_WRITE.to_owned()),
            _ => {}
        }
        self.metrics.sinks.errors[Sink::Kafka as usize].inc();
        tracing::warn!(source = self.metrics.name, %error, reason, "the Kafka client reports an error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let purpose = Purpose::decode(opaque);
        match result {
            Ok(message) => match purpose {
                Purpose::Row(transaction_seq) => {
                    let weight = weight(message.key_len(), message.payload_len());
                    self.acks.acknowledged(Sink::Kafka, transaction_seq, weight);
                }
                Purpose::Checkpoint(number) => self.writes.acknowledge(number),
                Purpose::BestEffort => {}
            },
            Err((error, message)) => {
                if let Purpose::Row(_) = purpose {
                    self.acks.withdrawn(Sink::Kafka, weight(message.key_len(), message.payload_len()));
                }
                // The relay purges records only to emit them again.
                let is_purged = matches!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
                );
                if !is_purged {
                    self.metrics.sinks.errors[Sink::Kafka as usize].inc();
                    self.acks.fail(undelivered(message.topic(), error));
                }
            }
        }
    }
}

/// Why a topic did not take a record, and what to do where the relay can only try again.
fn undelivered(topic: &str, error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            format!("this relay may not write to topic {topic}: allow its principal Write on it")
        }
        _ => format!("topic {topic}: {error}"),
    }
}

/// The bytes that a record counts for while it is in flight.
pub fn weight(key_len: usize, value_len: usize) -> i64 {
    (key_len + value_len) as i64 + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The halt it prevents: a slot confirmed past what the checkpoint says.
    #[test]
    fn the_acknowledgement_of_an_earlier_write_is_not_taken_for_that_of_the_last() {
        let writes = CheckpointWrites::default();
        let (first, second) = (writes.begin(), writes.begin());
        writes.acknowledge(first);
        assert!(!writes.is_done());
        writes.acknowledge(second);
        assert!(writes.is_done());
        // In whichever order two producers report them.
        let (third, fourth) = (writes.begin(), writes.begin());
        writes.acknowledge(fourth);
        writes.acknowledge(third);
        assert!(writes.is_done());
    }

    #[test]
    fn a_purpose_comes_back_from_librdkafka_as_it_was() {
        for number in [0, 1, 7, u64::MAX >> 2] {
            for purpose in [Purpose::Row(number), Purpose::Checkpoint(number), Purpose::BestEffort] {
                assert_eq!(Purpose::decode(purpose.encode()), purpose);
            }
        }
    }
}
