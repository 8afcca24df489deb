//! One replication session: reads, emits, confirms. A loop on a thread of its own, without a task or a channel
//! between the socket and the producer.
//!
//! When to read is decided by `read_scheduler`.

mod intake;
mod publication;
mod release;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::checkpoint::continuity::Continuity;
use crate::checkpoint::progress::{Progress, Sink, TransactionSeq};
use crate::checkpoint::state::{Checkpoint, Phase};
use crate::failpoints::{Failpoint, hit};
use crate::observe::metrics::SourceMetrics;
use crate::observe::status::{State, Status};
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::Scratch;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::replication_stream::Replication;
use crate::routes::route::Transaction;
use crate::sinks::acks::{Ack, Acks};
use crate::sinks::emit::Emitter;
use crate::sinks::kafka::{Sent, StateRecord};
use crate::sinks::stall::{Stall, Verdict};
use crate::sinks::topics::Reader;
use crate::source::backfill::snapshot::{self, Snapshots};
use crate::source::coverage::Coverage;
use crate::source::coverage::record::Healed;
use crate::source::read_scheduler::{Next, ReadScheduler};
use crate::source::watch::Watch;

/// Postgres hears from us at least and at most so often.
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(100);
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The checkpoint is written at most so often after transactions, and after mere idle progress.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(200);
const CHECKPOINT_IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// No word from the server for so long, although asked: the connection is dead.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stop waits for what is in flight, and how long a broken session does.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_BROKEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a session starts.
pub struct SessionStart {
    pub checkpoint: Checkpoint,
    /// Where the server begins, at or before what the checkpoint has.
    pub begin: Lsn,
    pub status: Status,
    /// Where the session before ended with an error of the server's; it streams when it has come so far.
    pub doubt: Lsn,
    pub watch: Watch,
    /// Breaks of the publication after which the rows were read again.
    pub healed: Vec<Healed>,
    pub checkpoint_key: String,
    pub checkpoint_topic: String,
    pub in_flight_bytes: i64,
    pub first_transaction_seq: TransactionSeq,
    /// Commits up to here were emitted by this process before.
    pub sent_lsn: Lsn,
    /// Sessions in a row that ended because Kafka answered and took nothing.
    pub stalls: u32,
}

/// Where the dead letters are read again, and the rows that they are of.
#[derive(Clone, Copy)]
pub struct ReleaseInput<'a> {
    pub reader: &'a Reader,
    pub topic: &'a str,
    pub database: &'a Database,
}

pub struct Stream<'a> {
    replication: Replication,
    emitter: &'a mut Emitter,
    release_input: ReleaseInput<'a>,
    acks: Arc<Acks>,
    metrics: SourceMetrics,
    start: SessionStart,
    progress: Progress,
    transaction: Transaction,
    /// The transaction_seq of the open transaction; `None` in one that is passed over.
    open: Option<TransactionSeq>,
    in_transaction: bool,
    continuity: Continuity,
    streaming: bool,
    /// Where the chain of positions stands.
    chain_lsn: Lsn,
    scratch: Scratch,
    ack_buffer: Vec<Ack>,
    /// Written and not yet acknowledged.
    writing: Option<Checkpoint>,
    saved_at: Instant,
    idle_only: bool,
    confirmed_at: Instant,
    confirmed: Lsn,
    reply_wanted: bool,
    last_received_at: Instant,
    scheduler: ReadScheduler,
    stall: Stall,
    stalls: u32,
    /// Of the open transaction.
    xid: u32,
    /// The tables whose existing rows are not all emitted.
    snapshots: Option<Snapshots>,
    /// The last one that was written down by this session.
    coverage: Option<Coverage>,
}

/// What the next session of this process has to know.
pub struct SessionOutcome {
    pub next_transaction_seq: TransactionSeq,
    pub sent_lsn: Lsn,
    pub stalls: u32,
    /// Every sink has acknowledged up to here, and the checkpoint says so.
    pub acknowledged: Lsn,
    /// What the publication sends, if that was found to be other than when the session began.
    pub coverage: Option<Coverage>,
}

impl<'a> Stream<'a> {
    pub fn new(
        replication: Replication,
        (emitter, release_input): (&'a mut Emitter, ReleaseInput<'a>),
        acks: &Arc<Acks>,
        metrics: &SourceMetrics,
        (start, snapshots): (SessionStart, Option<Snapshots>),
    ) -> Stream<'a> {
        let now = Instant::now();
        let chain = start.checkpoint.chain;
        let cluster = format!("{}/{}", start.checkpoint.system_id, start.checkpoint.timeline);
        Stream {
            replication,
            emitter,
            release_input,
            acks: Arc::clone(acks),
            metrics: metrics.clone(),
            progress: Progress::new(start.first_transaction_seq, start.begin, chain),
            transaction: Transaction { cluster, ..Transaction::default() },
            open: None,
            in_transaction: false,
            continuity: Continuity::new(start.checkpoint.last, start.begin),
            streaming: false,
            chain_lsn: chain,
            scratch: Scratch::default(),
            ack_buffer: Vec::new(),
            writing: None,
            saved_at: now,
            idle_only: true,
            confirmed_at: now,
            confirmed: Lsn::ZERO,
            reply_wanted: true,
            last_received_at: now,
            scheduler: ReadScheduler::new(now),
            stall: Stall::new(now, start.stalls),
            stalls: start.stalls,
            xid: 0,
            snapshots,
            coverage: None,
            start,
        }
    }

    /// Streams until it has to stop (`Ok`) or something breaks. Either way waits a while for what is in flight, and
    /// saves it, so that the next session emits as little as possible again.
    pub fn run(mut self) -> (Result<()>, SessionOutcome) {
        let mut result = self.stream();
        if self.acks.failure().is_none() {
            let drained = self.drain();
            if result.is_ok() {
                result = drained;
            }
        }
        self.report();
        self.log("session ended");
        let (next_transaction_seq, sent_lsn) = (self.progress.next_transaction_seq(), self.start.sent_lsn);
        let (acknowledged, coverage) = (self.start.checkpoint.acknowledged, self.coverage.take());
        let outcome =
            SessionOutcome { next_transaction_seq, sent_lsn, stalls: self.stalls, acknowledged, coverage };
        self.replication.close();
        (result, outcome)
    }

    fn stream(&mut self) -> Result<()> {
        while !self.acks.stopping() {
            self.collect()?;
            self.apply_notices()?;
            self.note_snapshots()?;
            self.save(false)?;
            self.step_snapshots()?;
            self.confirm()?;
            self.watch();
            self.announce();
            if self.wait()? {
                self.read()?;
            }
        }
        Ok(())
    }

    /// Reads nothing more, and waits until all that was emitted is acknowledged, saved and confirmed.
    fn drain(&mut self) -> Result<()> {
        let until = Instant::now() + if self.acks.stopping() { DRAIN_TIMEOUT } else { DRAIN_BROKEN_TIMEOUT };
        let open = usize::from(self.open.is_some());
        while Instant::now() < until {
            self.collect()?;
            self.note_snapshots()?;
            let settled = self.progress.pending() == open;
            if settled
                && self.writing.is_none()
                && self.progress.confirmed() <= self.start.checkpoint.acknowledged
            {
                break;
            }
            self.save(true)?;
            self.acks.wake_at(0);
            self.sleep(Duration::from_millis(2))?;
        }
        // The session may be what broke; then the slot learns it next time.
        let _ = self.replication.confirm(self.confirmable(), false);
        Ok(())
    }

    /// It streams once it is sure of the server.
    fn announce(&mut self) {
        if !self.streaming && self.continuity.is_met() && self.progress.confirmed() >= self.start.doubt {
            self.streaming = true;
            self.log("streaming");
            self.start.status.set(State::Streaming);
        }
    }

    fn log(&self, event: &str) {
        let (source, checkpoint) = (&self.metrics.name, &self.start.checkpoint);
        tracing::info!(source, slot = checkpoint.slot, acknowledged = %checkpoint.acknowledged, "{event}");
    }

    /// What may be confirmed to Postgres: nothing (0/0) before the stream has come to where the checkpoint is. Until then it is
    /// not sure that the server has what was acknowledged.
    fn confirmable(&self) -> Lsn {
        let acknowledged = self.start.checkpoint.acknowledged;
        if self.progress.confirmed() >= acknowledged { acknowledged } else { Lsn::ZERO }
    }

    /// Takes what the sinks have reported.
    fn collect(&mut self) -> Result<()> {
        if let Some(reason) = self.acks.failure() {
            bail!("{reason}");
        }
        self.acks.take(&mut self.ack_buffer);
        if self.ack_buffer.is_empty() {
            return Ok(());
        }
        let (now, time) = (Instant::now(), PgTime::now());
        let seconds = time.unix_seconds();
        for ack in self.ack_buffer.drain(..) {
            self.metrics.sinks.acknowledged_at[ack.sink as usize].set(seconds);
            if ack.sink == Sink::Kafka {
                self.stall.acknowledged(ack.at);
                self.stalls = 0;
            }
            if let Some(settled) = self.progress.acknowledge(ack.transaction_seq, ack.sink, ack.count) {
                hit(match settled.sink {
                    Sink::Kafka => Failpoint::AfterKafka,
                    Sink::Rabbit => Failpoint::AfterRabbit,
                });
                let ago = now.saturating_duration_since(ack.at).as_micros() as i64;
                let since = time.0 - settled.committed_at.0 - ago;
                self.metrics.sinks.latency[settled.sink as usize].observe(since.max(0) as f64 / 1e6);
            }
        }
        Ok(())
    }

    /// Writes the checkpoint when there is something new, and takes note when it is acknowledged.
    fn save(&mut self, at_once: bool) -> Result<()> {
        if self.emitter.kafka().state_written()
            && let Some(checkpoint) = self.writing.take()
        {
            self.start.checkpoint = checkpoint;
            hit(Failpoint::AfterCheckpoint);
        }
        let confirmed = self.progress.confirmed();
        let interval = if self.idle_only { CHECKPOINT_IDLE_INTERVAL } else { CHECKPOINT_INTERVAL };
        if self.writing.is_some()
            || confirmed <= self.start.checkpoint.acknowledged
            || (!at_once && self.saved_at.elapsed() < interval)
        {
            return Ok(());
        }
        hit(Failpoint::BeforeCheckpoint);
        let checkpoint = Checkpoint {
            acknowledged: confirmed,
            chain: self.progress.chain(),
            last: self.progress.last().unwrap_or(self.start.checkpoint.last),
            sent_lsn: self.start.sent_lsn.max(confirmed),
            vouched: self.start.watch.vouched().min(confirmed).max(self.start.checkpoint.vouched),
            phase: Phase::Streaming,
            ..self.start.checkpoint.clone()
        };
        let value = serde_json::to_vec(&checkpoint)?;
        let (topic, key) = (&self.start.checkpoint_topic, &self.start.checkpoint_key);
        let sent = self.emitter.kafka().save(StateRecord { topic, key, value: &value })?;
        if sent == Sent::Taken {
            self.metrics.stream.checkpoint_writes.inc();
            self.writing = Some(checkpoint);
            self.saved_at = Instant::now();
            self.idle_only = true;
        }
        Ok(())
    }

    /// Lets the snapshots read on. The rows of a chunk are emitted by `intake`, where the stream meets its mark.
    fn step_snapshots(&mut self) -> Result<()> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        if snapshots.is_over() {
            self.snapshots = None;
            return Ok(());
        }
        snapshots.step(Instant::now())
    }

    /// Notes how far the snapshots are acknowledged; before the checkpoint, which is waited for.
    fn note_snapshots(&mut self) -> Result<()> {
        let Stream { snapshots: Some(snapshots), emitter, progress, start, .. } = self else {
            return Ok(());
        };
        snapshots.save_progress((progress.confirmed(), start.checkpoint.acknowledged), |table, value| {
            let key = snapshot::record_key(&start.checkpoint_key, table);
            let record = StateRecord { topic: &start.checkpoint_topic, key: &key, value };
            Ok(emitter.kafka().save_best_effort(record)? == Sent::Taken)
        })
    }

    /// Confirms to Postgres what is acknowledged and saved.
    fn confirm(&mut self) -> Result<()> {
        let since = self.confirmed_at.elapsed();
        let (confirmable, before) = (self.confirmable(), self.confirmed);
        let news = confirmable > before || self.reply_wanted;
        if since < STATUS_INTERVAL_MIN || (!news && since < STATUS_INTERVAL_MAX) {
            return Ok(());
        }
        let silent = self.last_received_at.elapsed();
        let listening = self.full().is_none();
        if listening && silent > SERVER_TIMEOUT {
            bail!("no word from Postgres for {} s", silent.as_secs());
        }
        self.confirmed = before.max(confirmable);
        self.replication.confirm(confirmable, listening && silent > SERVER_TIMEOUT / 6)?;
        if self.confirmed > before {
            hit(Failpoint::AfterConfirm);
        }
        self.confirmed_at = Instant::now();
        self.reply_wanted = false;
        self.metrics.stream.status_updates.inc();
        self.report();
        Ok(())
    }

    /// Shows what is under way.
    fn report(&self) {
        for sink in [Sink::Kafka, Sink::Rabbit] {
            self.metrics.sinks.in_flight[sink as usize].set(self.acks.bytes(sink));
        }
        self.metrics.sinks.pending.set(self.progress.pending() as i64);
        self.metrics.sinks.oldest_pending.set(self.progress.oldest().map_or(f64::NAN, PgTime::unix_seconds));
    }

    /// Ends the session if Kafka answers but takes nothing from our client.
    fn watch(&mut self) {
        let now = Instant::now();
        if self.writing.is_none() && self.acks.bytes(Sink::Kafka) == 0 {
            self.stall.acknowledged(now);
        }
        match self.stall.judge(now, self.emitter.kafka().last_answer_at()) {
            Verdict::Fine => {}
            Verdict::Probe => self.emitter.kafka().probe(),
            Verdict::GiveUp => {
                self.stalls += 1;
                let lasted = self.stall.lasted(now).as_secs();
                // As a failure, so that the next session makes new clients.
                self.acks.fail(format!("Kafka answers, but took nothing for {lasted} s"));
            }
        }
    }

    /// A sink that has all it may have in flight.
    fn full(&self) -> Option<Sink> {
        let full = |sink: &Sink| self.acks.bytes(*sink) >= self.start.in_flight_bytes;
        [Sink::Kafka, Sink::Rabbit].into_iter().find(full)
    }

    /// Waits for the moment to read. False: not yet; look after the timers first.
    fn wait(&mut self) -> Result<bool> {
        let busy = self.progress.pending() > 0
            || self.writing.is_some()
            || self.progress.confirmed() > self.start.checkpoint.acknowledged;
        let timer = if busy { STATUS_INTERVAL_MIN / 2 } else { STATUS_INTERVAL_MAX / 2 };
        if let Some(sink) = self.full() {
            let since = Instant::now();
            self.acks.wake_at(self.start.in_flight_bytes / 2);
            if self.full().is_some() {
                self.sleep(timer)?;
            }
            self.acks.no_wake();
            self.last_received_at = Instant::now();
            let waited = self.last_received_at.saturating_duration_since(since);
            self.metrics.sinks.backpressure[sink as usize].inc_by(waited.as_secs_f64());
            return Ok(false);
        }
        match self.scheduler.next(Instant::now(), self.acks.bytes(Sink::Kafka)) {
            Next::Read => return Ok(true),
            Next::Pause { time, in_flight } => {
                self.acks.wake_at(in_flight);
                if self.acks.bytes(Sink::Kafka) > in_flight {
                    self.sleep(time.min(timer))?;
                }
                self.acks.no_wake();
                return Ok(false);
            }
            Next::Listen => {}
        }
        let ready = self.replication.wait(&*self.acks, timer)?;
        if ready.woken {
            self.acks.drain_wake();
        }
        Ok(ready.server)
    }

    /// Sleeps until woken by the sinks.
    fn sleep(&self, timeout: Duration) -> Result<()> {
        wait_for(&mut [PollFd::new(&*self.acks, PollFlags::IN)], timeout)?;
        self.acks.drain_wake();
        Ok(())
    }
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: Duration) -> Result<()> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll"),
    }
}
