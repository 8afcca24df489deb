//! One source's clients of Kafka, and what its topics remember.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::checkpoint::progress::Sink;
use crate::checkpoint::state::{self, Memory};
use crate::dead_letter::halts::Halted;
use crate::routes::route::Topics;
use crate::sinks::emit::Teller;
use crate::sinks::kafka::{Kafka, Sent};
use crate::sinks::topics::{self, Reader};
use crate::source::backfill::snapshot::{self, Position};
use crate::source::coverage::record::{Record, record_key};
use crate::source::worker::Wiring;

/// How long a write of the memory may take before the attempt starts over.
const WRITE: Duration = Duration::from_secs(30);

/// What the state topic says of a source.
#[derive(Default)]
pub struct Recalled {
    pub memory: Option<Memory>,
    /// By table: how far the rows that existed before are told.
    pub positions: BTreeMap<String, Position>,
    /// What the publication sends.
    pub publication: Option<Record>,
    /// Where the topic ends.
    pub end: i64,
}

pub struct Clients {
    wiring: Arc<Wiring>,
    teller: Option<Teller>,
    reader: Option<Reader>,
    /// How far the dead letters were read.
    halted: (i64, Halted),
    /// Kafka did not do what was asked: perhaps our clients are what is broken, and they do not always say so.
    suspect: Cell<bool>,
}

impl Clients {
    pub fn new(wiring: &Arc<Wiring>) -> Clients {
        let (teller, reader, halted) = (None, None, (0, Halted::new(wiring.source.name.get_ref())));
        Clients { wiring: Arc::clone(wiring), teller, reader, halted, suspect: Cell::new(false) }
    }

    /// New ones, for other routes.
    pub fn with(&self, wiring: &Arc<Wiring>) -> Clients {
        // What the old ones had under way does not count any more.
        Clients { suspect: Cell::new(true), ..Clients::new(wiring) }
    }

    pub fn teller(&mut self) -> Result<&mut Teller> {
        self.teller.as_mut().context("no Kafka producer")
    }

    /// To tell, and to read what was told.
    pub fn both(&mut self) -> Result<(&mut Teller, &Reader)> {
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        Ok((self.teller.as_mut().context("no Kafka producer")?, reader))
    }

    /// Makes the clients, unless there are sound ones; topics first.
    pub fn connect(&mut self) -> Result<()> {
        let wiring = &self.wiring;
        if wiring.acks.failure().is_some() || self.suspect.take() {
            self.teller = None;
            wiring.acks.reset(Sink::Kafka);
            wiring.acks.clear_failure();
        }
        if self.teller.is_some() {
            return Ok(());
        }
        let (brokers, routes) = (&wiring.brokers, &wiring.routes);
        let limits = wiring.runtime.block_on(topics::prepare(brokers, routes))?;
        let batch = limits.iter().copied().min().unwrap_or(routes.relay.max_record_bytes).min(1_000_000);
        let event_source = wiring.source.event_source.get_ref();
        let kafka = Kafka::connect(brokers, routes, event_source, batch, &wiring.acks, &wiring.metrics)?;
        self.reader = Some(Reader::new(brokers, routes));
        self.teller = Some(Teller::new(
            (Arc::clone(routes), Arc::clone(&wiring.source), wiring.database.clone()),
            Topics::new(routes, limits),
            (kafka, wiring.rabbit.clone()),
            wiring.metrics.clone(),
        ));
        Ok(())
    }

    /// The key of this source's memory in the state topic.
    pub fn memory_key(&self) -> String {
        format!("{}/{}", self.wiring.source.name.get_ref(), self.wiring.source.slot.get_ref())
    }

    /// What the state topic says of this source from `offset` on.
    pub fn recall(&self, offset: i64) -> Result<Recalled> {
        let key = self.memory_key();
        let publication = record_key(&key);
        let topic = self.wiring.routes.relay.state_topic.get_ref();
        let mut recalled = Recalled::default();
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        let read = reader.read(topic, offset, |_, found, value| {
            let found = found.unwrap_or_default();
            if found == key.as_bytes() {
                let record = value.map(serde_json::from_slice::<Memory>).transpose();
                recalled.memory = state::recall(recalled.memory.take(), record.context("state record")?);
            } else if found == publication.as_bytes() {
                let record = value.map(serde_json::from_slice).transpose();
                recalled.publication = record.context("publication record")?;
            } else if let Some(table) = snapshot::record_table(&key, found) {
                match value.map(serde_json::from_slice).transpose().context("snapshot record")? {
                    Some(position) => recalled.positions.insert(table.to_owned(), position),
                    None => recalled.positions.remove(table),
                };
            }
            Ok(())
        });
        self.suspect.set(read.is_err());
        recalled.end = read?;
        Ok(recalled)
    }

    /// Goes on reading the dead letters: another relay may have written some while we stood by.
    pub fn recall_halted(&mut self) -> Result<()> {
        let topic = self.wiring.routes.relay.dead_letter_topic.get_ref();
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        let (offset, halted) = &mut self.halted;
        let read = reader.read(topic, *offset, |at, _, value| {
            value.map_or(Ok(()), |value| halted.apply(at, value)).context("a dead letter is not readable")
        });
        self.suspect.set(read.is_err());
        *offset = read?;
        if let Some(teller) = &mut self.teller {
            teller.set_halted(halted.clone(), *offset);
        }
        Ok(())
    }

    /// Writes the memory and waits until it is acknowledged.
    pub fn remember(&self, memory: &Memory) -> Result<()> {
        self.write(&self.memory_key(), &serde_json::to_vec(memory)?)
    }

    /// Writes how far a table is told, and waits until that is acknowledged.
    pub fn remember_position(&self, table: &str, position: &Position) -> Result<()> {
        let key = snapshot::record_key(&self.memory_key(), table);
        self.write(&key, &serde_json::to_vec(position)?)
    }

    /// Writes what the publication sends, and waits until that is acknowledged.
    pub fn remember_publication(&self, record: &Record) -> Result<()> {
        self.write(&record_key(&self.memory_key()), &serde_json::to_vec(record)?)
    }

    fn write(&self, key: &str, value: &[u8]) -> Result<()> {
        let (acks, topic) = (&self.wiring.acks, self.wiring.routes.relay.state_topic.get_ref());
        let teller = self.teller.as_ref().context("no Kafka producer")?;
        let until = Instant::now() + WRITE;
        self.suspect.set(true);
        while teller.kafka().remember(topic, (key, value))? == Sent::Full {
            pause(&self.wiring, Duration::from_millis(10));
        }
        while !teller.kafka().state_written() {
            if let Some(reason) = acks.failure() {
                anyhow::bail!("{reason}");
            }
            anyhow::ensure!(Instant::now() < until, "the state topic does not acknowledge");
            pause(&self.wiring, Duration::from_millis(5));
        }
        self.suspect.set(false);
        Ok(())
    }
}

/// Waits, or until told to stop.
pub fn pause(wiring: &Wiring, pause: Duration) {
    let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
    wiring.acks.no_wake();
    // Interrupted or not, the caller looks again.
    let _ = poll(&mut [PollFd::new(&*wiring.acks, PollFlags::IN)], Some(&timeout));
    wiring.acks.drain_wake();
}
