//! Produces records to Kafka: idempotent, acknowledged by all replicas, in order.
//!
//! * A record waits for the rest of its batch before it leaves: not at all where a few rows arrive at a time and latency
//!   counts, longest under backlog. librdkafka's linger is a property of a producer, so there are up to three producers
//!   ([`producers`](crate::sinks::producers)).
//! * Another producer is chosen only while nothing is in flight, so that records keep their order.
//! * librdkafka retries for ever (`message.timeout.ms=0`). An error that it calls permanent would leave a gap in a
//!   partition. So the producer stops instead (`enable.gapless.guarantee`) and reports a failure. The source then makes a
//!   new producer and emits everything again from the last confirmed transaction.
//!
//! Why nothing is handed over while records are in flight (`read_scheduler`): librdkafka keeps one larger request in flight
//! per partition. While further requests are due it polls without waiting, on a processor that the broker could use.

mod config;
mod delivery;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use brokers::Brokers;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

pub use self::config::client_config;
use self::config::producer_config;
use self::delivery::{CheckpointWrites, Deliveries, NO_WRITE, Purpose, weight};
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::progress::{Sink, TransactionSeq};
use crate::observe::metrics::SourceMetrics;
use crate::routes::route::Transaction;
use crate::routes::{Routes, Topic};
use crate::sinks::acks::Acks;
use crate::sinks::batch_size::BatchSize;
use crate::sinks::event::Event;
use crate::sinks::polled_producer::PolledProducer;
use crate::sinks::producers::Producers;

const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the producer took a record. If its queue is full, the same record has to be offered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Taken,
    Full,
}

/// A record of the state topic.
#[derive(Debug, Clone, Copy)]
pub struct StateRecord<'a> {
    pub topic: &'a str,
    pub key: &'a str,
    pub value: &'a [u8],
}

/// A record of the dead-letter topic, as part of a transaction.
#[derive(Clone, Copy)]
pub struct DeadLetterRecord<'a> {
    pub topic: &'a str,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub transaction: &'a Transaction,
    pub transaction_seq: TransactionSeq,
}

struct Outgoing<'a> {
    topic: &'a str,
    key: &'a [u8],
    /// `None`: a tombstone.
    value: Option<&'a [u8]>,
    headers: Option<OwnedHeaders>,
    /// Milliseconds since the Unix epoch; without it, now.
    timestamp: Option<i64>,
    purpose: Purpose,
}

pub struct Kafka {
    producers: Producers<Deliveries>,
    acks: Arc<Acks>,
    writes: Arc<CheckpointWrites>,
    probe_config: ClientConfig,
    last_answer_at: Arc<Mutex<Option<Instant>>>,
    topics: Vec<TargetTopic>,
    event_source: String,
    /// `pg_chain`, the same for every record of a session.
    chain: ChainName,
    position: Vec<u8>,
}

/// A topic of the routes file.
struct TargetTopic {
    name: String,
    /// Its records are links of the chain, and have a position.
    chained: bool,
}

/// The source's part of a Kafka client.
pub struct KafkaSource<'a> {
    pub event_source: &'a str,
    pub acks: &'a Arc<Acks>,
    pub metrics: &'a SourceMetrics,
}

impl Kafka {
    /// `batch_bytes` must not exceed the largest batch that any of the topics takes.
    ///
    /// # Errors
    /// When a setting is not usable, or the brokers do not answer for each topic.
    pub fn connect(
        brokers: &Brokers,
        routes: &Routes,
        batch_bytes: usize,
        source: &KafkaSource<'_>,
    ) -> Result<Kafka> {
        let writes: Arc<CheckpointWrites> = Arc::default();
        let config = producer_config(brokers, routes, batch_bytes);
        let target = |topic: &Topic| TargetTopic {
            name: topic.name.get_ref().clone(),
            // Compaction would remove links.
            chained: !topic.is_compacted(),
        };
        let targets: Vec<TargetTopic> = routes.topics.iter().map(target).collect();
        let context = (Arc::clone(source.acks), Arc::clone(&writes), source.metrics.clone());
        let names: Vec<String> = targets.iter().map(|topic| topic.name.clone()).collect();
        let producers = Producers::new(move |size| {
            let (mut config, (acks, writes, metrics)) = (config.clone(), context.clone());
            if let Some(linger) = size.linger() {
                config.set("linger.ms", linger);
            }
            let producer = PolledProducer::new(&config, Deliveries { acks, writes, metrics })?;
            for topic in &names {
                // Otherwise the topic's first record would wait for the metadata, in the middle of streaming.
                let metadata = producer.producer().client().fetch_metadata(Some(topic), METADATA_TIMEOUT);
                metadata.with_context(|| format!("topic {topic}"))?;
            }
            Ok(producer)
        })?;
        Ok(Kafka {
            producers,
            acks: Arc::clone(source.acks),
            writes,
            probe_config: client_config(brokers, routes),
            last_answer_at: Arc::default(),
            topics: targets,
            event_source: source.event_source.to_owned(),
            chain: ChainName::default(),
            position: Vec::new(),
        })
    }

    /// The chain that records name from now on.
    pub fn set_chain(&mut self, name: &ChainName) {
        self.chain.clone_from(name);
    }

    /// Chooses the producer for the next batch. While anything is in flight the choice stands: a record must not
    /// overtake one that the other producer still has.
    pub fn choose(&mut self, size: BatchSize) {
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.producers.choose(size);
        }
    }

    /// Like [`choose`](Self::choose), and waits until the producer is made.
    pub fn choose_and_wait(&mut self, size: BatchSize) {
        if self.acks.bytes(Sink::Kafka) == 0 {
            self.producers.choose_and_wait(size);
        }
    }

    /// Whether the records of this topic are links of the chain of positions.
    pub fn is_chained(&self, topic: usize) -> bool {
        self.topics.get(topic).is_none_or(|topic| topic.chained)
    }

    /// Produces an event to the topic of this index.
    ///
    /// # Errors
    /// When the producer cannot go on; the source then needs a new one.
    pub fn produce(&mut self, topic: usize, event: &Event<'_>) -> Result<Sent> {
        let Event { record, plan, transaction, transaction_seq } = *event;
        position(transaction, &mut self.position);
        let mut headers = OwnedHeaders::new_with_capacity(9 + record.headers.len());
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
        let target = self.topics.get(topic).context("the route leads to no topic")?;
        headers = add(headers, "pg_chain", self.chain.as_str().as_bytes());
        if !transaction.re_emitted && target.chained {
            headers = add(headers, "pg_position", &self.position);
        }
        let outgoing = Outgoing {
            topic: &target.name,
            key: &record.key,
            value: (!record.tombstone).then_some(record.value.as_slice()),
            headers: Some(headers),
            timestamp: Some(transaction.committed_at.unix_millis()),
            purpose: Purpose::Row(transaction_seq),
        };
        self.send(self.producers.chosen(), outgoing)
    }

    /// Produces a record to the dead-letter topic.
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    pub fn produce_dead_letter(&mut self, record: &DeadLetterRecord<'_>) -> Result<Sent> {
        let DeadLetterRecord { topic, key, value, transaction, transaction_seq } = *record;
        position(transaction, &mut self.position);
        let mut headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "pg_chain", value: Some(self.chain.as_str()) });
        if !transaction.re_emitted {
            headers = headers.insert(Header { key: "pg_position", value: Some(self.position.as_slice()) });
        }
        let outgoing = Outgoing {
            topic,
            key,
            value: Some(value),
            headers: Some(headers),
            timestamp: Some(transaction.committed_at.unix_millis()),
            purpose: Purpose::Row(transaction_seq),
        };
        self.send(self.producers.chosen(), outgoing)
    }

    /// Writes a record of the state topic that the source waits for; see [`state_written`](Self::state_written).
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    pub fn save(&self, record: StateRecord<'_>) -> Result<Sent> {
        self.send_state(record, Purpose::Checkpoint(self.writes.begin()))
    }

    /// Best-effort write to the state topic; losing it only causes duplicates. It stays in order with the checkpoint that
    /// is saved after it, since the same producer sends both.
    ///
    /// # Errors
    /// As [`produce`](Self::produce).
    pub fn save_best_effort(&self, record: StateRecord<'_>) -> Result<Sent> {
        self.send_state(record, Purpose::BestEffort)
    }

    /// Whether all that [`save`](Self::save) wrote is acknowledged.
    pub fn state_written(&self) -> bool {
        self.writes.is_done()
    }

    fn send_state(&self, record: StateRecord<'_>, purpose: Purpose) -> Result<Sent> {
        let StateRecord { topic, key, value } = record;
        let (key, value) = (key.as_bytes(), Some(value));
        let outgoing = Outgoing { topic, key, value, headers: None, timestamp: None, purpose };
        self.send(self.producers.at_once(), outgoing)
    }

    /// Asks the brokers by a new client, on a thread of its own; see [`last_answer_at`](Self::last_answer_at).
    pub fn probe(&self) {
        let (config, last_answer_at) = (self.probe_config.clone(), Arc::clone(&self.last_answer_at));
        let ask = move || {
            let metadata = config
                .create::<BaseProducer>()
                .and_then(|client| client.client().fetch_metadata(None, METADATA_TIMEOUT));
            match metadata {
                Ok(_) => {
                    *last_answer_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                }
                Err(error) => tracing::warn!(%error, "Kafka does not answer a new client either"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("kafka probe".to_owned()).spawn(ask) {
            tracing::warn!(%error, "cannot start the thread that asks whether Kafka answers");
        }
    }

    /// When the brokers last answered a new client.
    pub fn last_answer_at(&self) -> Option<Instant> {
        *self.last_answer_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, via: &PolledProducer<Deliveries>, outgoing: Outgoing<'_>) -> Result<Sent> {
        let Outgoing { topic, key, value, headers, timestamp, purpose } = outgoing;
        let weight = weight(key.len(), value.map_or(0, <[u8]>::len));
        let is_row = matches!(purpose, Purpose::Row(_));
        let mut record = BaseRecord::with_opaque_to(topic, purpose.encode()).key(key);
        record.payload = value;
        (record.headers, record.timestamp) = (headers, timestamp);
        if is_row {
            self.acks.added(Sink::Kafka, weight);
        }
        let Err(error) = via.send(record) else { return Ok(Sent::Taken) };
        if is_row {
            self.acks.withdrawn(Sink::Kafka, weight);
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

/// Writes `pg_position`: commit, ordinal among the transaction's records on Kafka, previous commit that emitted anything.
fn position(transaction: &Transaction, out: &mut Vec<u8>) {
    use std::io::Write as _;
    out.clear();
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{};{};{}", transaction.commit_lsn, transaction.emitted, transaction.previous);
}
