//! Holds the Kafka clients of one source, and loads and saves its records in the state topic.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::progress::Sink;
use crate::checkpoint::state::{self, Checkpoint};
use crate::dead_letter::halts::Halted;
use crate::routes::route::Topics;
use crate::sinks::emit::{Emitter, EmitterParts};
use crate::sinks::kafka::{Kafka, KafkaSource, Sent, StateRecord};
use crate::sinks::topics::{self, Reader};
use crate::source::backfill::snapshot::{self, TableProgress};
use crate::source::context::SourceContext;
use crate::source::coverage::record::{Record, record_key};

/// How long Kafka may take to acknowledge a record of the state topic.
const CHECKPOINT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a record is offered to a full producer, and how often its acknowledgement is looked for.
const FULL_INTERVAL: Duration = Duration::from_millis(10);
const WRITTEN_INTERVAL: Duration = Duration::from_millis(5);
/// Records of the state topic are not counted as bytes in flight, so no number of bytes ends the wait.
const NO_BYTES: i64 = -1;

/// The records of a source in the state topic.
#[derive(Default)]
pub struct Loaded {
    pub checkpoint: Option<Checkpoint>,
    /// The progress of snapshots, by table.
    pub positions: BTreeMap<String, TableProgress>,
    /// The record of the publication.
    pub publication: Option<Record>,
    /// The end of the topic.
    pub end: i64,
}

pub struct KafkaClients {
    context: Arc<SourceContext>,
    emitter: Option<Emitter>,
    reader: Option<Reader>,
    /// The halted keys, up to this offset of the dead-letter topic.
    halted: (i64, Halted),
    /// The last request failed, so the clients may be broken; they do not always report it.
    suspect: Cell<bool>,
}

impl KafkaClients {
    pub fn new(context: &Arc<SourceContext>) -> KafkaClients {
        let (emitter, reader, halted) = (None, None, (0, Halted::new(context.source.name.get_ref())));
        KafkaClients { context: Arc::clone(context), emitter, reader, halted, suspect: Cell::new(false) }
    }

    /// Returns new clients for other routes.
    pub fn with(&self, context: &Arc<SourceContext>) -> KafkaClients {
        // Records that the old clients had in flight no longer count.
        KafkaClients { suspect: Cell::new(true), ..KafkaClients::new(context) }
    }

    pub fn emitter(&mut self) -> Result<&mut Emitter> {
        self.emitter.as_mut().context("the Kafka producer is not connected")
    }

    /// Returns the emitter, and the reader of the topics.
    pub fn both(&mut self) -> Result<(&mut Emitter, &Reader)> {
        let reader = self.reader.as_ref().context("the Kafka consumer is not connected")?;
        Ok((self.emitter.as_mut().context("the Kafka producer is not connected")?, reader))
    }

    /// Makes the topics and the clients, unless there are working ones.
    pub fn connect(&mut self) -> Result<()> {
        let context = &self.context;
        if context.acks.failure().is_some() || self.suspect.take() {
            self.emitter = None;
            context.acks.reset(Sink::Kafka);
            context.acks.clear_failure();
        }
        if self.emitter.is_some() {
            return Ok(());
        }
        let (brokers, routes) = (&context.brokers, &context.routes);
        let limits = context.runtime.block_on(topics::prepare(brokers, routes))?;
        let batch = limits.iter().copied().min().unwrap_or(routes.relay.max_record_bytes).min(1_000_000);
        let source = KafkaSource {
            event_source: context.source.event_source.get_ref(),
            acks: &context.acks,
            metrics: &context.metrics,
        };
        let kafka = Kafka::connect(brokers, routes, batch, &source)?;
        self.reader = Some(Reader::new(brokers, routes));
        self.emitter = Some(Emitter::new(EmitterParts {
            routes: Arc::clone(routes),
            source: Arc::clone(&context.source),
            database: context.database.clone(),
            topics: Topics::new(routes, limits),
            kafka,
            rabbit: context.rabbit.clone(),
            metrics: context.metrics.clone(),
        }));
        Ok(())
    }

    /// Returns the key of this source's checkpoint in the state topic.
    pub fn checkpoint_key(&self) -> String {
        self.context.source.checkpoint_key()
    }

    /// Loads the records of this source from `offset` on.
    pub fn load(&self, offset: i64) -> Result<Loaded> {
        let key = self.checkpoint_key();
        let publication = record_key(&key);
        let topic = self.context.routes.relay.state_topic.get_ref();
        let mut loaded = Loaded::default();
        let reader = self.reader.as_ref().context("the Kafka consumer is not connected")?;
        let read = reader.read(topic, offset, |_, found, value| {
            let found = found.unwrap_or_default();
            if found == key.as_bytes() {
                let record = value.map(serde_json::from_slice::<Checkpoint>).transpose();
                loaded.checkpoint = state::load(
                    loaded.checkpoint.take(),
                    record.context("the checkpoint in the state topic is not readable")?,
                );
            } else if found == publication.as_bytes() {
                let record = value.map(serde_json::from_slice).transpose();
                loaded.publication =
                    record.context("the record of the publication in the state topic is not readable")?;
            } else if let Some(table) = snapshot::record_table(&key, found) {
                match value
                    .map(serde_json::from_slice)
                    .transpose()
                    .context("a snapshot record in the state topic is not readable")?
                {
                    Some(position) => loaded.positions.insert(table.to_owned(), position),
                    None => loaded.positions.remove(table),
                };
            }
            Ok(())
        });
        self.suspect.set(read.is_err());
        loaded.end = read?;
        Ok(loaded)
    }

    /// Reads the dead-letter topic on: another relay may have written to it while this one stood by.
    pub fn load_halted(&mut self) -> Result<()> {
        let topic = self.context.routes.relay.dead_letter_topic.get_ref();
        let reader = self.reader.as_ref().context("the Kafka consumer is not connected")?;
        let (offset, halted) = &mut self.halted;
        let read = reader.read(topic, *offset, |at, _, value| {
            value.map_or(Ok(()), |value| halted.apply(at, value)).context("a dead letter is not readable")
        });
        self.suspect.set(read.is_err());
        *offset = read?;
        if let Some(emitter) = &mut self.emitter {
            emitter.set_halted(halted.clone(), *offset);
        }
        Ok(())
    }

    /// Saves the checkpoint, and waits for its acknowledgement.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.write(&self.checkpoint_key(), &serde_json::to_vec(checkpoint)?)
    }

    /// Saves the progress of a table, and waits for its acknowledgement.
    pub fn save_progress(&self, table: &str, position: &TableProgress) -> Result<()> {
        let key = snapshot::record_key(&self.checkpoint_key(), table);
        self.write(&key, &serde_json::to_vec(position)?)
    }

    /// Saves the record of the publication, and waits for its acknowledgement.
    pub fn save_publication(&self, record: &Record) -> Result<()> {
        self.write(&record_key(&self.checkpoint_key()), &serde_json::to_vec(record)?)
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<()> {
        let (acks, topic) = (&self.context.acks, self.context.routes.relay.state_topic.get_ref());
        let emitter = self.emitter.as_ref().context("the Kafka producer is not connected")?;
        let until = Instant::now() + CHECKPOINT_WRITE_TIMEOUT;
        self.suspect.set(true);
        let record = StateRecord { topic, key, value };
        acks.wait_until(NO_BYTES, FULL_INTERVAL, || Ok(emitter.kafka().save(record)? == Sent::Taken))?;
        acks.wait_until(NO_BYTES, WRITTEN_INTERVAL, || {
            if emitter.kafka().state_written() {
                return Ok(true);
            }
            if let Some(reason) = acks.failure() {
                bail!("{reason}");
            }
            let seconds = CHECKPOINT_WRITE_TIMEOUT.as_secs();
            ensure!(
                Instant::now() < until,
                "the state topic acknowledged no record for {seconds} s; check Kafka"
            );
            Ok(false)
        })?;
        self.suspect.set(false);
        Ok(())
    }
}
