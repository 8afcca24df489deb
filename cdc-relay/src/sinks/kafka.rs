//! Emits records to Kafka: idempotent, acknowledged by all replicas, in order, and never given up on.
//!
//! librdkafka keeps one request of more than a handful of messages under way per partition, and while it has others
//! whose time has come, it spins: it polls without waiting, on a processor that the broker could use. So nothing is
//! handed over while anything is under way (`read_scheduler`), and a message waits for the rest of its round before it
//! leaves: not at all where a few rows come at a time and latency counts, longest under backlog, where handing over
//! a round takes longest. librdkafka's waiting time is a property of a producer; so there are up to three of them
//! (`producers`). They change places only when nothing is in flight: records keep their order.
//!
//! librdkafka retries for ever (`message.timeout.ms=0`). An error that it calls permanent would leave a gap in a
//! partition, so the producer stops instead (`enable.gapless.guarantee`) and reports failure; the source then makes
//! a new producer and emits everything again from the last confirmed transaction.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use brokers::Brokers;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::checkpoint::progress::{Sink, TransactionSeq};
use crate::dead_letter::record::RECORD_BYTES_MAX;
use crate::observe::metrics::SourceMetrics;
use crate::routes::Routes;
use crate::routes::route::{Plan, Record, Transaction};
use crate::sinks::acks::Acks;
use crate::sinks::batch_size::BatchSize;
use crate::sinks::polled::PolledProducer;
use crate::sinks::producers::Producers;

/// Transaction numbers from here on are of state records, and count these; they belong to no transaction.
const STATE: TransactionSeq = 1 << 63;
/// Of records in the state topic that nobody waits for: it counts no write.
const NOTE: TransactionSeq = STATE;

/// Whether it is a row's: only these are weighed and acknowledged.
fn is_row(transaction_seq: TransactionSeq) -> bool {
    transaction_seq < STATE
}

/// What librdkafka keeps per message besides key and value: its own structure and the headers.
const MESSAGE_OVERHEAD_BYTES: i64 = 1024;

/// The writes of the checkpoint: how many there were, and up to which they are acknowledged. A late acknowledgement of an
/// earlier one, perhaps of the session before, must not be taken for that of the last.
#[derive(Debug, Default)]
struct Writes {
    asked: AtomicU64,
    acknowledged: AtomicU64,
}

impl Writes {
    fn ask(&self) -> TransactionSeq {
        STATE | (self.asked.fetch_add(1, Ordering::AcqRel) + 1)
    }

    fn acknowledge(&self, transaction_seq: TransactionSeq) {
        self.acknowledged.fetch_max(transaction_seq & !STATE, Ordering::AcqRel);
    }

    fn done(&self) -> bool {
        self.acknowledged.load(Ordering::Acquire) >= self.asked.load(Ordering::Acquire)
    }
}

pub struct Deliveries {
    acks: Arc<Acks>,
    writes: Arc<Writes>,
    metrics: SourceMetrics,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        // Lost connections come here too; librdkafka mends them itself. What it calls fatal it does not.
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.acks.fail(format!("the producer gave up: {reason}")),
            // Fatal by its own name, which is that of what was refused: to begin as an idempotent producer.
            Some(RDKafkaErrorCode::ClusterAuthorizationFailed) => self.acks.fail(NO_WRITE.to_owned()),
            _ => {}
        }
        self.metrics.sink_errors[Sink::Kafka as usize].inc();
        tracing::warn!(source = self.metrics.name, %error, reason, "Kafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let transaction_seq = opaque as TransactionSeq;
        let message = match result {
            Ok(message) => message,
            Err((error, message)) => {
                if is_row(transaction_seq) {
                    self.acks.undo(Sink::Kafka, weight(message.key_len(), message.payload_len()));
                }
                // What we purge ourselves is emitted again anyway.
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeQueue)
                    && error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeInflight)
                {
                    self.metrics.sink_errors[Sink::Kafka as usize].inc();
                    self.acks.fail(undelivered(message.topic(), error));
                }
                return;
            }
        };
        if is_row(transaction_seq) {
            self.acks.land(Sink::Kafka, transaction_seq, weight(message.key_len(), message.payload_len()));
        } else {
            self.writes.acknowledge(transaction_seq);
        }
    }
}

/// Kafka lets nobody begin who may write nowhere.
const NO_WRITE: &str = "this relay may not write to any topic: allow its principal Write on its topics";

/// Why a topic did not take a record, and what to do where the relay can only try again.
fn undelivered(topic: &str, error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            format!("this relay may not write to topic {topic}: allow its principal Write on it")
        }
        _ => format!("topic {topic}: {error}"),
    }
}

fn weight(key: usize, value: usize) -> i64 {
    (key + value) as i64 + MESSAGE_OVERHEAD_BYTES
}

/// Handed over, or the queue is full and the same record has to be offered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Taken,
    Full,
}

struct Outgoing<'a> {
    topic: &'a str,
    key: &'a [u8],
    /// None: a tombstone.
    value: Option<&'a [u8]>,
    headers: Option<OwnedHeaders>,
    /// Milliseconds since the Unix epoch; without it, now.
    timestamp: Option<i64>,
    transaction_seq: TransactionSeq,
}

const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

impl BatchSize {
    /// How long a record waits for the rest of its round, in milliseconds.
    fn linger(self) -> Option<&'static str> {
        match self {
            // At once, unless the routes file says otherwise.
            Self::Small => None,
            Self::Medium => Some("2"),
            Self::Large => Some("10"),
        }
    }
}

pub struct Kafka {
    producers: Producers<Deliveries>,
    acks: Arc<Acks>,
    writes: Arc<Writes>,
    asking: ClientConfig,
    answered: Arc<Mutex<Option<Instant>>>,
    topics: Vec<String>,
    event_source: String,
    position: Vec<u8>,
}

/// Settings that every client of ours shares.
pub fn client_config(brokers: &Brokers, routes: &Routes) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "cdc-relay");
    config.set("socket.nagle.disable", "true");
    config.set("reconnect.backoff.ms", "50");
    config.set("reconnect.backoff.max.ms", "1000");
    for (key, value) in &routes.kafka {
        if key.starts_with("security.") || key.starts_with("sasl.") || key.starts_with("ssl.") {
            config.set(key, value.get_ref());
        }
    }
    brokers.apply(&mut config);
    config
}

/// The producer's settings: ours, then the routes file's, then those that nothing may change.
fn producer_config(brokers: &Brokers, routes: &Routes, batch_bytes: usize) -> ClientConfig {
    let mut config = client_config(brokers, routes);
    let ours: BTreeMap<&str, String> = BTreeMap::from([
        ("linger.ms", "0".to_owned()),
        ("batch.size", batch_bytes.to_string()),
        ("batch.num.messages", "100000".to_owned()),
        // The source bounds what is in flight by bytes; these must not interfere.
        ("queue.buffering.max.messages", "1000000".to_owned()),
        ("queue.buffering.max.kbytes", "1048576".to_owned()),
        ("message.max.bytes", (routes.relay.max_record_bytes.max(RECORD_BYTES_MAX) + 65_536).to_string()),
        ("compression.codec", "none".to_owned()),
        // All topics exist at start. One that is unknown for longer was deleted: the new session makes it again.
        ("topic.metadata.propagation.max.ms", "10000".to_owned()),
        ("statistics.interval.ms", "0".to_owned()),
    ]);
    for (key, value) in ours {
        config.set(key, value);
    }
    for (key, value) in &routes.kafka {
        config.set(key, value.get_ref());
    }
    // How to connect is said by who runs the relay, before who wrote the routes.
    brokers.apply(&mut config);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random");
    config
}

impl Kafka {
    /// `batch_bytes` must not exceed what any of the topics takes as one batch.
    pub fn connect(
        brokers: &Brokers,
        routes: &Routes,
        event_source: &str,
        batch_bytes: usize,
        acks: &Arc<Acks>,
        metrics: &SourceMetrics,
    ) -> Result<Kafka> {
        let writes: Arc<Writes> = Arc::default();
        let config = producer_config(brokers, routes, batch_bytes);
        let topics: Vec<String> = routes.topics.iter().map(|topic| topic.name.get_ref().clone()).collect();
        let context = (Arc::clone(acks), Arc::clone(&writes), metrics.clone());
        let names = topics.clone();
        let producers = Producers::new(move |load| {
            let (mut config, (acks, writes, metrics)) = (config.clone(), context.clone());
            if let Some(linger) = load.linger() {
                config.set("linger.ms", linger);
            }
            let made = PolledProducer::new(&config, Deliveries { acks, writes, metrics })?;
            for topic in &names {
                // Otherwise its first record would wait for it, in the middle of streaming.
                let asked = made.producer().client().fetch_metadata(Some(topic), METADATA_TIMEOUT);
                asked.with_context(|| format!("topic {topic}"))?;
            }
            Ok(made)
        })?;
        Ok(Kafka {
            producers,
            acks: Arc::clone(acks),
            writes,
            asking: client_config(brokers, routes),
            answered: Arc::default(),
            topics,
            event_source: event_source.to_owned(),
            position: Vec::new(),
        })
    }

    /// Chooses the producer for what comes next. While anything is in flight the choice stands: a record must not
    /// overtake one that the other producer still has.
    pub fn choose(&mut self, load: BatchSize) {
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.producers.choose(load);
        }
    }

    /// As `choose`, and waits until the producer is made: for whoever has much to emit, and chooses once.
    pub fn choose_and_wait(&mut self, load: BatchSize) {
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.producers.choose_and_wait(load);
        }
    }

    /// Emits an event.
    pub fn produce(
        &mut self,
        topic: usize,
        (record, plan): (&Record, &Plan),
        transaction: &Transaction,
        transaction_seq: TransactionSeq,
    ) -> Result<Sent> {
        position(transaction, &mut self.position);
        let mut headers = OwnedHeaders::new_with_capacity(8 + record.headers.len());
        let add =
            |headers: OwnedHeaders, key, value: &[u8]| headers.insert(Header { key, value: Some(value) });
        headers = add(headers, "ce_specversion", b"1.0");
        headers = add(headers, "ce_id", &record.id);
        headers = add(headers, "ce_source", self.event_source.as_bytes());
        headers = add(headers, "ce_type", &record.kind);
        headers = add(headers, "ce_time", &transaction.time);
        if !record.subject.is_empty() {
            headers = add(headers, "ce_subject", &record.subject);
        }
        headers = add(headers, "content-type", b"application/json");
        for (name, value) in record.headers(plan) {
            headers = add(headers, name, value);
        }
        if !transaction.re_emitted {
            headers = add(headers, "pg_position", &self.position);
        }
        let topic = self.topics.get(topic).context("the route leads to no topic")?;
        let (key, value) = (record.key.as_slice(), (!record.tombstone).then_some(record.value.as_slice()));
        let timestamp = Some(transaction.committed_at.unix_millis());
        self.send(
            self.producers.chosen(),
            Outgoing { topic, key, value, headers: Some(headers), timestamp, transaction_seq },
        )
    }

    /// Emits a dead letter.
    pub fn dead_letter(
        &mut self,
        topic: &str,
        (key, value): (&[u8], &[u8]),
        transaction: &Transaction,
        transaction_seq: TransactionSeq,
    ) -> Result<Sent> {
        position(transaction, &mut self.position);
        let headers = (!transaction.re_emitted).then(|| {
            OwnedHeaders::new_with_capacity(1)
                .insert(Header { key: "pg_position", value: Some(self.position.as_slice()) })
        });
        let timestamp = Some(transaction.committed_at.unix_millis());
        let value = Some(value);
        self.send(
            self.producers.chosen(),
            Outgoing { topic, key, value, headers, timestamp, transaction_seq },
        )
    }

    /// Writes the relay's memory. `state_written` turns true once it is acknowledged.
    pub fn save(&self, topic: &str, (key, value): (&str, &[u8])) -> Result<Sent> {
        let (key, value, transaction_seq) = (key.as_bytes(), Some(value), self.writes.ask());
        self.send(
            self.producers.at_once(),
            Outgoing { topic, key, value, headers: None, timestamp: None, transaction_seq },
        )
    }

    /// Writes to the state topic what may be lost: then something is emitted again that need not be. In order with the
    /// memory that is written after it, by the same producer.
    pub fn note(&self, topic: &str, (key, value): (&str, &[u8])) -> Result<Sent> {
        let (key, value, transaction_seq) = (key.as_bytes(), Some(value), NOTE);
        self.send(
            self.producers.at_once(),
            Outgoing { topic, key, value, headers: None, timestamp: None, transaction_seq },
        )
    }

    pub fn state_written(&self) -> bool {
        self.writes.done()
    }

    /// Has a new client ask the brokers, on a thread that ends by itself; `answered` says so.
    pub fn ask(&self) {
        let (config, answered) = (self.asking.clone(), Arc::clone(&self.answered));
        let ask = move || {
            let found = config
                .create::<BaseProducer>()
                .and_then(|client| client.client().fetch_metadata(None, METADATA_TIMEOUT));
            match found {
                Ok(_) => *answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "Kafka does not answer"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("kafka probe".to_owned()).spawn(ask) {
            tracing::warn!(%error, "no thread to ask Kafka with");
        }
    }

    /// When the brokers last answered a new client.
    pub fn answered(&self) -> Option<Instant> {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, via: &PolledProducer<Deliveries>, outgoing: Outgoing<'_>) -> Result<Sent> {
        let Outgoing { topic, key, value, headers, timestamp, transaction_seq } = outgoing;
        let weight = weight(key.len(), value.map_or(0, <[u8]>::len));
        let mut record = BaseRecord::with_opaque_to(topic, transaction_seq as usize).key(key);
        record.payload = value;
        (record.headers, record.timestamp) = (headers, timestamp);
        if is_row(transaction_seq) {
            self.acks.depart(Sink::Kafka, weight);
        }
        let Err(error) = via.send(record) else { return Ok(Sent::Taken) };
        if is_row(transaction_seq) {
            self.acks.undo(Sink::Kafka, weight);
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            _ => {
                let fatal = via.producer().client().fatal_error();
                let problem = match fatal {
                    Some((RDKafkaErrorCode::ClusterAuthorizationFailed, _)) => NO_WRITE.to_owned(),
                    Some((_, reason)) => format!("topic {topic} did not take a record: {reason}"),
                    None => format!("topic {topic} did not take a record: {error}"),
                };
                self.acks.fail(problem.clone());
                Err(anyhow!(problem))
            }
        }
    }
}

/// `pg_position`: commit, ordinal among the transaction's records on Kafka, previous commit that emitted anything.
fn position(transaction: &Transaction, out: &mut Vec<u8>) {
    use std::io::Write as _;
    out.clear();
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{};{};{}", transaction.commit_lsn, transaction.emitted, transaction.previous);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The halt it prevents: a slot confirmed past what the checkpoint says.
    #[test]
    fn the_acknowledgement_of_an_earlier_write_is_not_taken_for_that_of_the_last() {
        let writes = Writes::default();
        let (first, second) = (writes.ask(), writes.ask());
        writes.acknowledge(first);
        assert!(!writes.done());
        writes.acknowledge(second);
        assert!(writes.done());
        // In whichever order two producers report them.
        let (third, fourth) = (writes.ask(), writes.ask());
        writes.acknowledge(fourth);
        writes.acknowledge(third);
        assert!(writes.done());
    }
}
