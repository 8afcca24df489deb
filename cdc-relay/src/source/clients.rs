//! One source's clients of Kafka, and what its topics save.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::checkpoint::progress::Sink;
use crate::checkpoint::state::{self, Checkpoint};
use crate::dead_letter::halts::Halted;
use crate::routes::route::Topics;
use crate::sinks::emit::Emitter;
use crate::sinks::kafka::{Kafka, Sent};
use crate::sinks::topics::{self, Reader};
use crate::source::backfill::snapshot::{self, TableProgress};
use crate::source::context::SourceContext;
use crate::source::coverage::record::{Record, record_key};

/// How long a write of the checkpoint may take before the attempt starts over.
const CHECKPOINT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the state topic says of a source.
#[derive(Default)]
pub struct Loaded {
    pub checkpoint: Option<Checkpoint>,
    /// By table: how far the rows that existed before are emitted.
    pub positions: BTreeMap<String, TableProgress>,
    /// What the publication sends.
    pub publication: Option<Record>,
    /// Where the topic ends.
    pub end: i64,
}

pub struct KafkaClients {
    context: Arc<SourceContext>,
    emitter: Option<Emitter>,
    reader: Option<Reader>,
    /// How far the dead letters were read.
    halted: (i64, Halted),
    /// Kafka did not do what was asked: perhaps our clients are what is broken, and they do not always say so.
    suspect: Cell<bool>,
}

impl KafkaClients {
    pub fn new(context: &Arc<SourceContext>) -> KafkaClients {
        let (emitter, reader, halted) = (None, None, (0, Halted::new(context.source.name.get_ref())));
        KafkaClients { context: Arc::clone(context), emitter, reader, halted, suspect: Cell::new(false) }
    }

    /// New ones, for other routes.
    pub fn with(&self, context: &Arc<SourceContext>) -> KafkaClients {
        // What the old ones had under way does not count any more.
        KafkaClients { suspect: Cell::new(true), ..KafkaClients::new(context) }
    }

    pub fn emitter(&mut self) -> Result<&mut Emitter> {
        self.emitter.as_mut().context("no Kafka producer")
    }

    /// To emit, and to read what was emitted.
    pub fn both(&mut self) -> Result<(&mut Emitter, &Reader)> {
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        Ok((self.emitter.as_mut().context("no Kafka producer")?, reader))
    }

    /// Makes the clients, unless there are sound ones; topics first.
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
        let event_source = context.source.event_source.get_ref();
        let kafka = Kafka::connect(brokers, routes, event_source, batch, &context.acks, &context.metrics)?;
        self.reader = Some(Reader::new(brokers, routes));
        self.emitter = Some(Emitter::new(
            (Arc::clone(routes), Arc::clone(&context.source), context.database.clone()),
            Topics::new(routes, limits),
            (kafka, context.rabbit.clone()),
            context.metrics.clone(),
        ));
        Ok(())
    }

    /// The key of this source's checkpoint in the state topic.
    pub fn checkpoint_key(&self) -> String {
        self.context.source.checkpoint_key()
    }

    /// What the state topic says of this source from `offset` on.
    pub fn load(&self, offset: i64) -> Result<Loaded> {
        let key = self.checkpoint_key();
        let publication = record_key(&key);
        let topic = self.context.routes.relay.state_topic.get_ref();
        let mut loaded = Loaded::default();
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        let read = reader.read(topic, offset, |_, found, value| {
            let found = found.unwrap_or_default();
            if found == key.as_bytes() {
                let record = value.map(serde_json::from_slice::<Checkpoint>).transpose();
                loaded.checkpoint = state::load(loaded.checkpoint.take(), record.context("state record")?);
            } else if found == publication.as_bytes() {
                let record = value.map(serde_json::from_slice).transpose();
                loaded.publication = record.context("publication record")?;
            } else if let Some(table) = snapshot::record_table(&key, found) {
                match value.map(serde_json::from_slice).transpose().context("snapshot record")? {
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

    /// Goes on reading the dead letters: another relay may have written some while we stood by.
    pub fn load_halted(&mut self) -> Result<()> {
        let topic = self.context.routes.relay.dead_letter_topic.get_ref();
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
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

    /// Writes the checkpoint and waits until it is acknowledged.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.write(&self.checkpoint_key(), &serde_json::to_vec(checkpoint)?)
    }

    /// Writes how far a table is emitted, and waits until that is acknowledged.
    pub fn save_progress(&self, table: &str, position: &TableProgress) -> Result<()> {
        let key = snapshot::record_key(&self.checkpoint_key(), table);
        self.write(&key, &serde_json::to_vec(position)?)
    }

    /// Writes what the publication sends, and waits until that is acknowledged.
    pub fn save_publication(&self, record: &Record) -> Result<()> {
        self.write(&record_key(&self.checkpoint_key()), &serde_json::to_vec(record)?)
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<()> {
        let (acks, topic) = (&self.context.acks, self.context.routes.relay.state_topic.get_ref());
        let emitter = self.emitter.as_ref().context("no Kafka producer")?;
        let until = Instant::now() + CHECKPOINT_WRITE_TIMEOUT;
        self.suspect.set(true);
        while emitter.kafka().save(topic, (key, value))? == Sent::Full {
            pause(&self.context, Duration::from_millis(10));
        }
        while !emitter.kafka().state_written() {
            if let Some(reason) = acks.failure() {
                anyhow::bail!("{reason}");
            }
            anyhow::ensure!(Instant::now() < until, "the state topic does not acknowledge");
            pause(&self.context, Duration::from_millis(5));
        }
        self.suspect.set(false);
        Ok(())
    }
}

/// Waits, at most until it has to stop.
pub fn pause(context: &SourceContext, pause: Duration) {
    let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
    context.acks.no_wake();
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut [PollFd::new(&*context.acks, PollFlags::IN)], Some(&timeout));
    context.acks.drain_wake();
}
