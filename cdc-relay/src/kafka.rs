//! Tells records to Kafka: idempotent, acknowledged by all replicas, in order, and never given up on.
//!
//! There are two producers. One sends each record at once: for a few rows at a time, where latency counts. The other
//! waits `LINGER` for more: for backlog. librdkafka sends a request per partition and wake-up, and spins while a
//! partition has five under way and more to send; so without the wait a backlog becomes many small requests, at the
//! cost of both sides' CPU. They change places only when nothing is in flight, so records keep their order.
//!
//! librdkafka retries for ever (`message.timeout.ms=0`). An error that it calls permanent would leave a gap in a
//! partition, so the producer stops instead (`enable.gapless.guarantee`) and reports failure; the source then makes
//! a new producer and tells everything again from the last confirmed transaction.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};

use crate::acks::Acks;
use crate::metrics::SourceMetrics;
use crate::progress::{Sink, Ticket};
use crate::route::{Plan, Record, Transaction};
use crate::routes::Routes;

/// The state record's ticket; it belongs to no transaction.
const STATE: Ticket = Ticket::MAX;

/// What librdkafka keeps per message besides key and value: its own structure and the headers.
const OVERHEAD: i64 = 1024;

pub struct Deliveries {
    acks: Arc<Acks>,
    state_written: Arc<AtomicBool>,
    metrics: SourceMetrics,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        // Lost connections come here too; librdkafka mends them itself. What it calls fatal it does not.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.acks.fail(format!("the producer gave up: {reason}"));
        }
        self.metrics.sink_errors[Sink::Kafka as usize].inc();
        tracing::warn!(source = self.metrics.name, %error, reason, "Kafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let ticket = opaque as Ticket;
        let message = match result {
            Ok(message) => message,
            Err((error, message)) => {
                if ticket != STATE {
                    self.acks.undo(Sink::Kafka, weight(message.key_len(), message.payload_len()));
                }
                // What we purge ourselves is told again anyway.
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeQueue)
                    && error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeInflight)
                {
                    self.metrics.sink_errors[Sink::Kafka as usize].inc();
                    self.acks.fail(format!("topic {}: {error}", message.topic()));
                }
                return;
            }
        };
        if ticket == STATE {
            self.state_written.store(true, Ordering::Release);
        } else {
            self.acks.land(Sink::Kafka, ticket, weight(message.key_len(), message.payload_len()));
        }
    }
}

fn weight(key: usize, value: usize) -> i64 {
    (key + value) as i64 + OVERHEAD
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
    value: &'a [u8],
    headers: Option<OwnedHeaders>,
    /// Milliseconds since the Unix epoch; without it, now.
    timestamp: Option<i64>,
    ticket: Ticket,
}

const METADATA: Duration = Duration::from_secs(10);
/// How long a record waits for company under backlog, in milliseconds.
const LINGER: &str = "2";

type Client = ThreadedProducer<Deliveries>;

/// Which of the two producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Prompt,
    Patient,
}

pub struct Kafka {
    prompt: Client,
    patient: Client,
    chosen: Which,
    acks: Arc<Acks>,
    state_written: Arc<AtomicBool>,
    asking: ClientConfig,
    answered: Arc<Mutex<Option<Instant>>>,
    topics: Vec<String>,
    event_source: String,
    position: Vec<u8>,
}

/// Settings that every client of ours shares.
pub fn client_config(brokers: &str, routes: &Routes) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config.set("client.id", "cdc-relay");
    config.set("socket.nagle.disable", "true");
    config.set("reconnect.backoff.ms", "50");
    config.set("reconnect.backoff.max.ms", "1000");
    for (key, value) in &routes.kafka {
        if key.starts_with("security.") || key.starts_with("sasl.") || key.starts_with("ssl.") {
            config.set(key, value.get_ref());
        }
    }
    config
}

/// The producer's settings: ours, then the routes file's, then those that nothing may change.
fn producer_config(brokers: &str, routes: &Routes, batch_bytes: usize) -> ClientConfig {
    let mut config = client_config(brokers, routes);
    let ours: BTreeMap<&str, String> = BTreeMap::from([
        ("linger.ms", "0".to_owned()),
        ("batch.size", batch_bytes.to_string()),
        ("batch.num.messages", "100000".to_owned()),
        // The source bounds what is in flight by bytes; these must not interfere.
        ("queue.buffering.max.messages", "1000000".to_owned()),
        ("queue.buffering.max.kbytes", "1048576".to_owned()),
        ("message.max.bytes", (routes.relay.max_record_bytes + 65_536).to_string()),
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
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random");
    config
}

fn client(
    config: &ClientConfig,
    acks: &Arc<Acks>,
    state_written: &Arc<AtomicBool>,
    metrics: &SourceMetrics,
) -> Result<Client> {
    let (acks, state_written) = (Arc::clone(acks), Arc::clone(state_written));
    let context = Deliveries { acks, state_written, metrics: metrics.clone() };
    config.create_with_context(context).context("the Kafka settings of the routes file are not usable")
}

impl Kafka {
    /// `batch_bytes` must not exceed what any of the topics takes as one batch.
    pub fn connect(
        brokers: &str,
        routes: &Routes,
        event_source: &str,
        batch_bytes: usize,
        acks: &Arc<Acks>,
        metrics: &SourceMetrics,
    ) -> Result<Kafka> {
        let state_written = Arc::new(AtomicBool::new(false));
        let mut config = producer_config(brokers, routes, batch_bytes);
        let prompt = client(&config, acks, &state_written, metrics)?;
        let patient = client(config.set("linger.ms", LINGER), acks, &state_written, metrics)?;
        for topic in &routes.topics {
            for producer in [&prompt, &patient] {
                // Otherwise its first record would wait for it, in the middle of streaming.
                producer
                    .client()
                    .fetch_metadata(Some(topic.name.get_ref()), METADATA)
                    .with_context(|| format!("topic {}", topic.name.get_ref()))?;
            }
        }
        Ok(Kafka {
            prompt,
            patient,
            chosen: Which::Prompt,
            acks: Arc::clone(acks),
            state_written,
            asking: client_config(brokers, routes),
            answered: Arc::default(),
            topics: routes.topics.iter().map(|topic| topic.name.get_ref().clone()).collect(),
            event_source: event_source.to_owned(),
            position: Vec::new(),
        })
    }

    /// Chooses the producer for what comes next. While anything is in flight the choice stands: a record must not
    /// overtake one that the other producer still has.
    pub fn choose(&mut self, which: Which) {
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.chosen = which;
        }
    }

    /// Tells an event.
    pub fn tell(
        &mut self,
        topic: usize,
        (record, plan): (&Record, &Plan),
        transaction: &Transaction,
        ticket: Ticket,
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
        headers = add(headers, "pg_position", &self.position);
        let topic = self.topics.get(topic).context("the route leads to no topic")?;
        let (key, value) = (record.key.as_slice(), record.value.as_slice());
        let timestamp = Some(transaction.committed_at.unix_millis());
        self.send(self.chosen, Outgoing { topic, key, value, headers: Some(headers), timestamp, ticket })
    }

    /// Tells a dead letter.
    pub fn bury(
        &mut self,
        topic: &str,
        (key, value): (&[u8], &[u8]),
        transaction: &Transaction,
        ticket: Ticket,
    ) -> Result<Sent> {
        position(transaction, &mut self.position);
        let headers = OwnedHeaders::new_with_capacity(1)
            .insert(Header { key: "pg_position", value: Some(self.position.as_slice()) });
        let timestamp = Some(transaction.committed_at.unix_millis());
        self.send(self.chosen, Outgoing { topic, key, value, headers: Some(headers), timestamp, ticket })
    }

    /// Writes the relay's memory. `state_written` turns true once it is acknowledged.
    pub fn remember(&self, via: Which, topic: &str, (key, value): (&str, &[u8])) -> Result<Sent> {
        self.state_written.store(false, Ordering::Release);
        let key = key.as_bytes();
        self.send(via, Outgoing { topic, key, value, headers: None, timestamp: None, ticket: STATE })
    }

    pub fn state_written(&self) -> bool {
        self.state_written.load(Ordering::Acquire)
    }

    /// Has a new client ask the brokers, on a thread that ends by itself; `answered` tells.
    pub fn ask(&self) {
        let (config, answered) = (self.asking.clone(), Arc::clone(&self.answered));
        let ask = move || {
            let found = config
                .create::<BaseProducer>()
                .and_then(|client| client.client().fetch_metadata(None, METADATA));
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

    fn send(&self, via: Which, outgoing: Outgoing<'_>) -> Result<Sent> {
        let Outgoing { topic, key, value, headers, timestamp, ticket } = outgoing;
        let weight = weight(key.len(), value.len());
        let mut record = BaseRecord::with_opaque_to(topic, ticket as usize).key(key).payload(value);
        (record.headers, record.timestamp) = (headers, timestamp);
        if ticket != STATE {
            self.acks.depart(Sink::Kafka, weight);
        }
        let producer = match via {
            Which::Prompt => &self.prompt,
            Which::Patient => &self.patient,
        };
        let Err((error, _)) = producer.send(record) else { return Ok(Sent::Taken) };
        if ticket != STATE {
            self.acks.undo(Sink::Kafka, weight);
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            _ => {
                let problem = format!("topic {topic} did not take a record: {error}");
                self.acks.fail(problem.clone());
                Err(anyhow!(problem))
            }
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // What is left was not confirmed, so it is told again.
        for producer in [&self.prompt, &self.patient] {
            producer.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

/// `pg_position`: commit, ordinal among the transaction's records on Kafka, previous commit that told anything.
fn position(transaction: &Transaction, out: &mut Vec<u8>) {
    use std::io::Write as _;
    out.clear();
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{};{};{}", transaction.commit_lsn, transaction.told, transaction.previous);
}
