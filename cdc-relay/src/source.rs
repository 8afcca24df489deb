//! The life of one source, on a thread of its own: connect, compare with what is remembered, stream; and again,
//! with back-off, after whatever breaks.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use backon::BackoffBuilder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_postgres::Config;

use crate::acks::Acks;
use crate::dead::Halted;
use crate::inspect;
use crate::kafka::{Kafka, Sent, Which};
use crate::lsn::Lsn;
use crate::metrics::SourceMetrics;
use crate::progress::{Sink, Ticket};
use crate::rabbit::Rabbit;
use crate::route::Topics;
use crate::routes::{Routes, Source};
use crate::state::{Cluster, Memory, Phase, Refusal, Start, admit};
use crate::status::{State, Status};
use crate::stream::{Leftover, Origin, Stream};
use crate::tell::Teller;
use crate::topics::{self, Reader};
use crate::wire::{Session, WireError};

/// A standby looks so often whether the slot is free.
const STANDBY: Duration = Duration::from_millis(500);
/// A refused source looks so often whether it was put right.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a write of the memory may take before the attempt starts over.
const WRITE: Duration = Duration::from_secs(30);
/// The longest pause between two attempts, before jitter doubles it at most. A database that is back must not
/// wait for its relay, and asking one that is away costs nothing.
const ATTEMPT_MOST: Duration = Duration::from_secs(2);

/// What a source is made of.
pub struct Wiring {
    pub routes: Arc<Routes>,
    pub source: Arc<Source>,
    pub config: Config,
    pub kafka_brokers: String,
    pub rabbit: Option<Arc<Rabbit>>,
    pub acks: Arc<Acks>,
    pub metrics: SourceMetrics,
    pub status: Status,
    pub runtime: Handle,
}

/// Why an attempt ended.
enum Trouble {
    Refused(Refusal),
    /// Another relay has the slot.
    Standby,
    /// Try again later.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Failed(error)
    }
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Trouble {
        Trouble::Failed(error.into())
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Refused(refusal)
    }
}

/// One source between its sessions.
struct Life {
    wiring: Wiring,
    teller: Option<Teller>,
    reader: Option<Reader>,
    /// How far the dead letters were read.
    halted: (i64, Halted),
    next_ticket: Ticket,
    told: Lsn,
    stalls: u32,
    /// Kafka did not do what was asked: perhaps our clients are what is broken, and they do not always say so.
    suspect: Cell<bool>,
    fingerprint: String,
}

/// Runs until `Acks::stop`.
pub fn run(wiring: Wiring) {
    let fingerprint = fingerprint(&wiring.source);
    let mut life = Life {
        wiring,
        teller: None,
        reader: None,
        halted: (0, Halted::default()),
        next_ticket: 0,
        told: Lsn::ZERO,
        stalls: 0,
        suspect: Cell::new(false),
        fingerprint,
    };
    let delays = || {
        backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(ATTEMPT_MOST)
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut backoff = delays();
    while !life.wiring.acks.stopping() {
        let tickets = life.next_ticket;
        let (state, pause) = match life.attempt() {
            Ok(()) => break,
            Err(Trouble::Standby) => (State::Standby, STANDBY),
            Err(Trouble::Refused(refusal)) => (State::Refused(refusal.to_string()), REFUSED),
            Err(Trouble::Failed(error)) => {
                // A session that read something was a good one: the next may come at once.
                if life.next_ticket > tickets {
                    backoff = delays();
                }
                let pause = backoff.next().unwrap_or(REFUSED);
                life.wiring.metrics.failures.inc();
                (State::Connecting(format!("{error:#}")), pause)
            }
        };
        life.wiring.status.set(state);
        life.pause(pause);
    }
}

impl Life {
    /// Waits, or until told to stop.
    fn pause(&self, pause: Duration) {
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
        self.wiring.acks.no_wake();
        // Interrupted or not, the caller looks again.
        let _ = poll(&mut [PollFd::new(&*self.wiring.acks, PollFlags::IN)], Some(&timeout));
        self.wiring.acks.drain_wake();
    }

    /// One session, from connecting to its end. `Ok`: told to stop.
    fn attempt(&mut self) -> Result<(), Trouble> {
        let slot_name = self.wiring.source.slot.get_ref().clone();
        // First, so that a standby has all but the slot.
        self.connect_kafka()?;
        let mut session = Session::connect(&self.wiring.config)?;
        let (cluster, database) = inspect::cluster(&mut session)?;
        inspect::contract(&mut session, &self.wiring.routes, &self.wiring.source)??;
        let slot = inspect::slot(&mut session, &slot_name)?;
        if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
            return Err(Trouble::Standby);
        }
        let (memory, end) = self.recall(0)?;
        self.recall_halted()?;
        let start = admit(memory.as_ref(), &cluster, &slot_name, slot.as_ref(), &database)?;
        let confirmed = slot.and_then(|slot| slot.confirmed).unwrap_or_default();
        let memory = self.begin(start, &mut session, (&cluster, memory), confirmed)?;
        let wire = match session.start(&slot_name, self.wiring.source.publication.get_ref()) {
            Ok(wire) => wire,
            Err(error) if error.code() == Some("55006") => return Err(Trouble::Standby),
            Err(error) => return Err(error.into()),
        };
        // Only now nobody else can advance it. If another relay did since we read its memory, read it again.
        if let (Some(later), _) = self.recall(end)?
            && later.acknowledged > memory.acknowledged
        {
            return Err(Trouble::Standby);
        }
        // Through both producers, so that neither makes a row wait for its first connection.
        self.write(Which::Prompt, &memory)?;
        self.write(Which::Patient, &memory)?;
        self.stream(wire, memory)
    }

    fn stream(&mut self, wire: crate::copy::Replication, memory: Memory) -> Result<(), Trouble> {
        self.wiring.status.set(State::Streaming);
        self.wiring.metrics.sessions.inc();
        tracing::info!(
            source = self.wiring.metrics.name,
            slot = memory.slot,
            acknowledged = %memory.acknowledged,
            "streaming"
        );
        let memory_key = self.memory_key();
        let relay = &self.wiring.routes.relay;
        let origin = Origin {
            memory,
            memory_key,
            memory_topic: relay.state_topic.get_ref().clone(),
            in_flight_bytes: relay.in_flight_bytes as i64,
            first_ticket: self.next_ticket,
            told: self.told,
            stalls: self.stalls,
        };
        let teller = self.teller.as_mut().context("no Kafka producer")?;
        let stream = Stream::new(wire, teller, &self.wiring.acks, &self.wiring.metrics, origin);
        let (result, left) = stream.run();
        let Leftover { next_ticket, told, stalls } = left;
        (self.next_ticket, self.told, self.stalls) = (next_ticket, told, stalls);
        result.map_err(Trouble::Failed)
    }

    /// Makes the clients, unless there are sound ones; topics first.
    fn connect_kafka(&mut self) -> Result<()> {
        let wiring = &self.wiring;
        if wiring.acks.failure().is_some() || self.suspect.take() {
            self.teller = None;
            wiring.acks.reset(Sink::Kafka);
            wiring.acks.clear_failure();
        }
        if self.teller.is_some() {
            return Ok(());
        }
        let (brokers, routes) = (&wiring.kafka_brokers, &wiring.routes);
        let limits = wiring.runtime.block_on(topics::prepare(brokers, routes))?;
        let batch = limits.iter().copied().min().unwrap_or(routes.relay.max_record_bytes).min(1_000_000);
        let event_source = wiring.source.event_source.get_ref();
        let kafka = Kafka::connect(brokers, routes, event_source, batch, &wiring.acks, &wiring.metrics)?;
        self.reader = Some(Reader::connect(brokers, routes)?);
        self.teller = Some(Teller::new(
            (Arc::clone(routes), Arc::clone(&wiring.source)),
            Topics::new(routes, limits),
            (kafka, wiring.rabbit.clone()),
            wiring.metrics.clone(),
        ));
        Ok(())
    }

    fn memory_key(&self) -> String {
        format!("{}/{}", self.wiring.source.name.get_ref(), self.wiring.source.slot.get_ref())
    }

    /// What the state topic says of this source from `offset` on, and where the topic ends.
    fn recall(&self, offset: i64) -> Result<(Option<Memory>, i64)> {
        let key = self.memory_key();
        let topic = self.wiring.routes.relay.state_topic.get_ref();
        let mut memory = None;
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        let read = reader.read(topic, offset, |found, value| {
            if found == Some(key.as_bytes()) {
                memory = value.map(serde_json::from_slice::<Memory>).transpose().context("state record")?;
            }
            Ok(())
        });
        self.suspect.set(read.is_err());
        Ok((memory, read?))
    }

    /// Goes on reading the dead letters: another relay may have written some while we stood by.
    fn recall_halted(&mut self) -> Result<()> {
        let topic = self.wiring.routes.relay.dead_letter_topic.get_ref();
        let reader = self.reader.as_ref().context("no Kafka consumer")?;
        let (offset, halted) = &mut self.halted;
        let read = reader.read(topic, *offset, |_, value| {
            value.map_or(Ok(()), |value| halted.apply(value)).context("a dead letter is not readable")
        });
        self.suspect.set(read.is_err());
        *offset = read?;
        if let Some(teller) = &mut self.teller {
            teller.set_halted(halted.clone());
        }
        Ok(())
    }

    /// Brings slot and memory to where streaming may begin.
    fn begin(
        &self,
        start: Start,
        session: &mut Session,
        (cluster, memory): (&Cluster, Option<Memory>),
        confirmed: Lsn,
    ) -> Result<Memory, Trouble> {
        let fresh = |phase, acknowledged| Memory {
            system_id: cluster.system_id.clone(),
            timeline: cluster.timeline,
            slot: self.wiring.source.slot.get_ref().clone(),
            phase,
            acknowledged,
            told: acknowledged,
            chain: Lsn::ZERO,
            routes: self.fingerprint.clone(),
        };
        let begun = match (start, memory) {
            (Start::Resume { .. }, Some(memory)) if memory.routes == self.fingerprint => return Ok(memory),
            // Other routes tell other transactions: a new chain.
            (Start::Resume { .. }, Some(memory)) => {
                Memory { routes: self.fingerprint.clone(), chain: Lsn::ZERO, ..memory }
            }
            (Start::Adopt, _) => fresh(Phase::Streaming, confirmed),
            (Start::Create | Start::Resume { .. }, _) => {
                // A crash between the two finds `Creating`, and takes or makes the slot: nothing was told from it.
                self.write(Which::Prompt, &fresh(Phase::Creating, Lsn::ZERO))?;
                let begin = inspect::create_slot(session, self.wiring.source.slot.get_ref())?;
                let slot = self.wiring.source.slot.get_ref();
                tracing::info!(source = self.wiring.metrics.name, slot, %begin, "slot created");
                fresh(Phase::Streaming, begin)
            }
        };
        self.write(Which::Prompt, &begun)?;
        Ok(begun)
    }

    /// Writes the memory and waits until it is acknowledged.
    fn write(&self, via: Which, memory: &Memory) -> Result<()> {
        let teller = self.teller.as_ref().context("no Kafka producer")?;
        let value = serde_json::to_vec(memory)?;
        let topic = self.wiring.routes.relay.state_topic.get_ref();
        let until = Instant::now() + WRITE;
        self.suspect.set(true);
        while teller.kafka().remember(via, topic, (&self.memory_key(), &value))? == Sent::Full {
            self.pause(Duration::from_millis(10));
        }
        while !teller.kafka().state_written() {
            if let Some(reason) = self.wiring.acks.failure() {
                anyhow::bail!("{reason}");
            }
            anyhow::ensure!(Instant::now() < until, "the state topic does not acknowledge");
            self.pause(Duration::from_millis(5));
        }
        self.suspect.set(false);
        Ok(())
    }
}

/// Of everything in the routes that decides which transactions tell something. Stable over releases.
fn fingerprint(source: &Source) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &dyn fmt::Display| hash.update(format!("{text}\0"));
    part(source.publication.get_ref());
    for table in &source.tables {
        part(table.name.get_ref());
        for route in &table.routes {
            part(&route.topic.as_ref().map_or("", |topic| topic.get_ref()));
            for (column, values) in &route.when {
                part(column);
                values.iter().for_each(|value| part(value.get_ref()));
            }
        }
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
