//! Runs one replication session: reads the stream, emits its rows, saves the checkpoint, and confirms the slot.
//!
//! * It is one loop on a thread of its own, without a task or a channel between the socket and the producer.
//! * The checkpoint is saved only up to where every sink has acknowledged, and the slot is confirmed only up to where the
//!   checkpoint is saved.
//! * Whatever it waits for, the server gets a status every second: it ends a session that is silent, and another relay begins.
//! * `read_scheduler` decides when to read.

mod ack_tracker;
mod checkpoint_writer;
mod handover;
mod intake;
mod publication;
mod readiness;
mod release;
mod slot_confirmation;
mod transaction_state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::ack_tracker::AckTracker;
use self::checkpoint_writer::{CheckpointPositions, CheckpointWriter};
pub use self::handover::HandedOver;
use self::handover::Handover;
use self::publication::PublicationNotices;
use self::readiness::Readiness;
use self::slot_confirmation::SlotConfirmation;
use self::transaction_state::TransactionState;
use crate::checkpoint::continuity::Continuity;
use crate::checkpoint::progress::{Progress, Sink, TransactionSeq};
use crate::checkpoint::state::Checkpoint;
use crate::observe::metrics::SourceMetrics;
use crate::observe::status::Status;
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::Scratch;
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::Replication;
use crate::sinks::acks::Acks;
use crate::sinks::emit::Emitter;
use crate::sinks::kafka::{Sent, StateRecord};
use crate::sinks::topics::Reader;
use crate::source::backfill::snapshot::{self, AckPositions, Snapshots};
use crate::source::coverage::Coverage;
use crate::source::coverage::record::Healed;
use crate::source::read_scheduler::{Next, ReadScheduler};
use crate::source::succession::Candidate;
use crate::source::synchronous::Synchronous;
use crate::source::watch::Watch;

/// How often the timers are checked while something is in flight, and while nothing is.
const TIMER_BUSY_INTERVAL: Duration = Duration::from_millis(50);
const TIMER_IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a session waits for what is in flight: when the relay stops or hands the slot over, and after a failure.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_BROKEN_TIMEOUT: Duration = Duration::from_secs(2);
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// The state that a session starts from.
pub struct SessionStart {
    pub checkpoint: Checkpoint,
    /// The server begins here, at or before the checkpoint.
    pub begin: Lsn,
    pub status: Status,
    /// The session before ended here with an error of the server. This one counts as streaming once it has passed it.
    pub doubt: Lsn,
    pub watch: Watch,
    /// Holds transactions until synchronous standbys have flushed them, if the source requires that.
    pub standbys: Option<Synchronous>,
    /// This relay in the order of those that may read the slot.
    pub candidate: Candidate,
    /// Breaks of the publication after which the rows were read again.
    pub healed: Vec<Healed>,
    pub checkpoint_key: String,
    pub checkpoint_topic: String,
    pub in_flight_bytes_max: i64,
    pub first_transaction_seq: TransactionSeq,
    /// This process emitted commits up to here before.
    pub sent_lsn: Lsn,
    /// Sessions in a row that ended because Kafka answered and took nothing.
    pub stalls: u32,
}

/// The clients and the metrics that a session uses.
pub struct SessionClients<'a> {
    pub emitter: &'a mut Emitter,
    pub release_input: ReleaseInput<'a>,
    pub acks: &'a Arc<Acks>,
    pub metrics: &'a SourceMetrics,
}

/// The sources of a release: the dead-letter topic, and the database with the rows.
#[derive(Clone, Copy)]
pub struct ReleaseInput<'a> {
    pub reader: &'a Reader,
    pub topic: &'a str,
    pub database: &'a Database,
}

/// The state that the next session of this process needs.
pub struct SessionOutcome {
    pub next_transaction_seq: TransactionSeq,
    pub sent_lsn: Lsn,
    pub stalls: u32,
    /// Every sink has acknowledged up to here, and the checkpoint is saved.
    pub acknowledged: Lsn,
    /// The coverage of the publication, if it changed during the session.
    pub coverage: Option<Coverage>,
}

pub struct Stream<'a> {
    replication: Replication,
    emitter: &'a mut Emitter,
    release_input: ReleaseInput<'a>,
    metrics: SourceMetrics,
    acks: AckTracker,
    current: TransactionState,
    checkpoint: CheckpointWriter,
    slot: SlotConfirmation,
    readiness: Readiness,
    publication: PublicationNotices,
    standbys: Option<Synchronous>,
    handover: Handover,
    /// The tables whose existing rows are not all emitted.
    snapshots: Option<Snapshots>,
    scheduler: ReadScheduler,
    scratch: Scratch,
}

impl<'a> Stream<'a> {
    pub fn new(
        replication: Replication,
        clients: SessionClients<'a>,
        start: SessionStart,
        snapshots: Option<Snapshots>,
    ) -> Stream<'a> {
        let SessionClients { emitter, release_input, acks, metrics } = clients;
        let now = Instant::now();
        let checkpoint = start.checkpoint;
        let chain = checkpoint.chain;
        let cluster = format!("{}/{}", checkpoint.system_id, checkpoint.timeline);
        let progress = Progress::new(start.first_transaction_seq, start.begin, chain);
        Stream {
            replication,
            emitter,
            release_input,
            metrics: metrics.clone(),
            acks: AckTracker::new(acks, progress, start.in_flight_bytes_max, start.stalls),
            current: TransactionState::new(cluster, chain, start.sent_lsn),
            readiness: Readiness::new(
                start.status,
                Continuity::new(checkpoint.last, start.begin),
                start.doubt,
            ),
            publication: PublicationNotices::new(start.watch, start.healed),
            standbys: start.standbys,
            handover: Handover::new(start.candidate),
            checkpoint: CheckpointWriter::new(start.checkpoint_topic, start.checkpoint_key, checkpoint),
            slot: SlotConfirmation::new(now),
            snapshots,
            scheduler: ReadScheduler::new(now),
            scratch: Scratch::default(),
        }
    }

    /// Streams until the relay stops (`Ok`) or something fails. In both cases it then waits a while for what is in flight
    /// and saves it, so that the next session repeats as little as possible.
    pub fn run(mut self) -> (Result<()>, SessionOutcome) {
        let mut result = self.stream();
        if self.acks.failure().is_none() {
            let drained = self.drain();
            if result.is_ok() {
                result = drained;
            }
        }
        self.acks.report(&self.metrics);
        self.log("session ended");
        let outcome = SessionOutcome {
            next_transaction_seq: self.acks.progress.next_transaction_seq(),
            sent_lsn: self.current.sent_lsn,
            stalls: self.acks.stalls(),
            acknowledged: self.checkpoint.acknowledged(),
            coverage: self.publication.take_coverage(),
        };
        self.replication.close();
        (result, outcome)
    }

    fn stream(&mut self) -> Result<()> {
        while !self.acks.stopping() {
            if self.hands_over() {
                bail!(HandedOver);
            }
            self.acks.collect(&self.metrics)?;
            self.apply_notices()?;
            self.save_snapshot_progress()?;
            self.save(self.slot.awaits_checkpoint(self.acks.progress.confirmed()))?;
            self.step_snapshots()?;
            self.confirm()?;
            self.check_stall();
            self.release_held()?;
            if self.readiness.turns_streaming(self.acks.progress.confirmed()) {
                self.log("streaming");
            }
            if self.wait()? {
                self.read()?;
            }
        }
        Ok(())
    }

    /// Whether the session is to end here, between two transactions, because another relay is to have the slot.
    fn hands_over(&self) -> bool {
        self.handover.is_asked() && !self.current.is_open()
    }

    /// Reads nothing more, and waits until everything emitted is acknowledged, saved and confirmed.
    fn drain(&mut self) -> Result<()> {
        let is_orderly = self.acks.stopping() || self.handover.is_asked();
        let timeout = if is_orderly { DRAIN_TIMEOUT } else { DRAIN_BROKEN_TIMEOUT };
        let until = Instant::now() + timeout;
        let open = usize::from(self.current.is_emitted());
        let acks = self.acks.shared();
        let mut is_connected = true;
        acks.wait_until(0, DRAIN_INTERVAL, || {
            let now = Instant::now();
            if now >= until {
                return Ok(true);
            }
            // Nothing is read, so only we are known to be there. A silent session would be ended, and another relay would begin to
            // read before this one has saved.
            self.slot.received(now);
            is_connected = is_connected && self.confirm().is_ok();
            self.acks.collect(&self.metrics)?;
            self.save_snapshot_progress()?;
            let acknowledged = self.acks.progress.pending() == open;
            if acknowledged && !self.is_unsaved() {
                return Ok(true);
            }
            self.save(true)?;
            Ok(false)
        })?;
        // The connection may be what failed. Then the next session confirms.
        if is_connected {
            let _ = self.replication.confirm(self.confirmable(), false);
        }
        Ok(())
    }

    fn log(&self, event: &str) {
        let (source, checkpoint) = (&self.metrics.name, self.checkpoint.saved());
        tracing::info!(source, slot = checkpoint.slot, acknowledged = %checkpoint.acknowledged, "{event}");
    }

    /// Whether the saved checkpoint is behind the acknowledgements.
    fn is_unsaved(&self) -> bool {
        self.checkpoint.is_writing() || self.acks.progress.confirmed() > self.checkpoint.acknowledged()
    }

    /// Returns the position that may be confirmed to Postgres. It is 0/0 until the stream has come to the checkpoint: before
    /// that nobody knows whether the server has the acknowledged transactions.
    fn confirmable(&self) -> Lsn {
        let acknowledged = self.checkpoint.acknowledged();
        if self.acks.progress.confirmed() >= acknowledged { acknowledged } else { Lsn::ZERO }
    }

    /// Saves the checkpoint if it is time, or `at_once`.
    fn save(&mut self, at_once: bool) -> Result<()> {
        let positions = CheckpointPositions {
            progress: &self.acks.progress,
            sent_lsn: self.current.sent_lsn,
            vouched: self.publication.vouched(),
            synchronous: self.standbys.as_ref().is_some_and(Synchronous::is_kept),
        };
        if self.checkpoint.save(self.emitter.kafka(), positions, at_once)? {
            self.metrics.stream.checkpoint_writes.inc();
        }
        Ok(())
    }

    /// Lets the snapshots read on. `intake` emits a chunk where the stream meets its watermark.
    fn step_snapshots(&mut self) -> Result<()> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        if snapshots.is_over() {
            self.snapshots = None;
            return Ok(());
        }
        snapshots.step(Instant::now())
    }

    /// Saves the progress of the snapshots. It comes before the checkpoint, whose acknowledgement is waited for.
    fn save_snapshot_progress(&mut self) -> Result<()> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        let (checkpoint, kafka) = (&self.checkpoint, self.emitter.kafka());
        let positions =
            AckPositions { confirmed: self.acks.progress.confirmed(), saved: checkpoint.acknowledged() };
        snapshots.save_progress(positions, |table, value| {
            let key = snapshot::record_key(checkpoint.key(), table);
            let record = StateRecord { topic: checkpoint.topic(), key: &key, value };
            Ok(kafka.save_best_effort(record)? == Sent::Taken)
        })
    }

    /// Confirms the saved position to Postgres, and shows what is in flight.
    fn confirm(&mut self) -> Result<()> {
        let confirmable = self.confirmable();
        let is_reading = self.acks.full_sink().is_none();
        if self.slot.confirm(&mut self.replication, confirmable, is_reading)? {
            self.metrics.stream.status_updates.inc();
            self.acks.report(&self.metrics);
        }
        Ok(())
    }

    /// Ends the session if Kafka answers but takes nothing from this client.
    fn check_stall(&mut self) {
        let is_saving = self.checkpoint.is_writing();
        self.acks.check_stall(self.emitter.kafka(), is_saving);
    }

    /// Asks for the standbys, and tries the transaction again that waits for them.
    fn release_held(&mut self) -> Result<()> {
        let Some(standbys) = &mut self.standbys else { return Ok(()) };
        standbys.tend()?;
        if standbys.holds() && self.acks.full_sink().is_none() {
            self.frames()?;
        }
        Ok(())
    }

    /// Waits until it is time to read. Returns false if the timers are due first.
    fn wait(&mut self) -> Result<bool> {
        let is_busy = self.acks.progress.pending() > 0 || self.is_unsaved();
        let mut timer = self.slot.limit(if is_busy { TIMER_BUSY_INTERVAL } else { TIMER_IDLE_INTERVAL });
        if let Some(sink) = self.acks.full_sink() {
            let since = Instant::now();
            self.acks.sleep_while_full(timer)?;
            let now = Instant::now();
            self.slot.received(now);
            let waited = now.saturating_duration_since(since);
            self.metrics.sinks.backpressure[sink as usize].inc_by(waited.as_secs_f64());
            return Ok(false);
        }
        let acks = self.acks.shared();
        if let Some(standbys) = &self.standbys {
            let limit = standbys.limit(timer);
            if standbys.holds() {
                acks.sleep(limit)?;
                self.slot.received(Instant::now());
                return Ok(false);
            }
            timer = limit;
        }
        match self.scheduler.next(Instant::now(), acks.bytes(Sink::Kafka)) {
            Next::Read => return Ok(true),
            Next::Pause { time, in_flight } => {
                acks.sleep_while(in_flight, time.min(timer), || acks.bytes(Sink::Kafka) > in_flight)?;
                return Ok(false);
            }
            Next::Listen => {}
        }
        let ready = self.replication.wait(&*acks, timer)?;
        if ready.woken {
            acks.drain_wake();
        }
        Ok(ready.server)
    }
}
