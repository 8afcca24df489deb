//! Emits the rows that existed before the slot, while the stream runs.
//!
//! * A table is read in chunks by the key of its rows, on a connection of its own (`reader`), so that the stream waits for no
//!   query.
//! * After each chunk a watermark is written to the WAL. Where the stream meets it, it emits those rows of the chunk that
//!   it has not emitted in a newer state (`window`). So the states of a row never go backwards.
//! * When a chunk is acknowledged, its last key is saved in the state topic, and the next start goes on from there.

mod position;
mod reader;
mod receive;
mod unsaved;
mod window;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use backon::BackoffBuilder;

pub use self::position::{TableProgress, record_key, record_table, unfinished};
use self::reader::{Answer, Ask, Chunk, Reader};
use self::receive::{StreamRelation, write_key};
pub use self::unsaved::AckPositions;
use self::unsaved::UnsavedProgress;
use self::window::Window;
use crate::checkpoint::state::Cluster;
use crate::observe::metrics::{SnapshotMetrics, SourceMetrics};
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::{self, Scratch};
use crate::routes::Source;
use crate::routes::row::Row;
use crate::sinks::acks::Acks;
use crate::sinks::emit::{Emitter, OpenTransaction, PlannedRow};
use crate::source::backfill::rows::Table;

/// The prefix of the watermarks in the WAL.
pub const PREFIX: &str = "cdc-relay.snapshot";

/// The stream emits a whole chunk at once, and is held up that long.
const CHUNK_ROWS_MAX: u32 = 2000;
/// How often the first chunk asks whether older transactions are over.
const TRANSACTIONS_INTERVAL: Duration = Duration::from_millis(200);
/// How often a waiting snapshot logs that it waits.
const WAIT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A message in the WAL after a chunk: the stream has come to the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// Distinguishes the watermarks of this session from others.
    session: u64,
    chunk: u64,
}

impl Watermark {
    pub fn parse(content: &[u8]) -> Option<Watermark> {
        let (session, chunk) = std::str::from_utf8(content).ok()?.split_once('/')?;
        Some(Watermark { session: session.parse().ok()?, chunk: chunk.parse().ok()? })
    }
}

impl std::fmt::Display for Watermark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.session, self.chunk)
    }
}

/// One table whose rows are not all emitted.
struct TableRun {
    table: Table,
    position: TableProgress,
    limit: u32,
    metrics: SnapshotMetrics,
}

impl TableRun {
    /// The stream has emitted these rows of the chunk; the others it had emitted in a newer state.
    fn advance(&mut self, chunk: &Chunk, emitted: u64, scratch: &mut Scratch) -> Result<()> {
        self.position.rows += chunk.len() as u64;
        if let Some(last) = chunk.last(scratch)? {
            self.position.after = last;
        }
        self.position.done = chunk.is_last();
        self.limit = chunk.next_limit(CHUNK_ROWS_MAX);
        self.metrics.rows.inc_by(emitted);
        self.metrics.passed.set(self.position.rows as i64);
        Ok(())
    }
}

enum Step {
    /// No chunk is asked for before this time.
    Idle(Instant),
    Asked,
    /// The chunk is read, and the stream has not met its watermark.
    Read(Box<Chunk>),
}

/// The tables of one session whose rows are not all emitted. One is read after the other.
pub struct Snapshots {
    source: String,
    publication: String,
    runs: VecDeque<TableRun>,
    watermark: Watermark,
    step: Step,
    window: Window,
    /// The tables as the stream announced them.
    relations: Vec<StreamRelation>,
    /// Progress that is emitted and not yet saved.
    unsaved: VecDeque<UnsavedProgress>,
    reader: Reader,
    backoff: Option<backon::ExponentialBackoff>,
    waits_since: Option<Instant>,
    scratch: Scratch,
    key: Vec<u8>,
}

/// Returns the tables whose rows are not all emitted; `None` if there are none. `found`: the tables with their saved
/// progress.
pub fn begin(
    source: &Source,
    cluster: &Cluster,
    found: Vec<(Table, Option<TableProgress>)>,
    database: &Database,
    metrics: &SourceMetrics,
    acks: &Arc<Acks>,
) -> Result<Option<Snapshots>> {
    let publication = source.publication.get_ref().clone();
    let source = source.name.get_ref();
    let mut runs = VecDeque::new();
    for (table, saved) in found {
        let name = table.name();
        let key: Vec<String> = table.key_columns().map(str::to_owned).collect();
        let fits = |position: &TableProgress| {
            let same = position.key == key && [&table.key_text, ""].contains(&position.key_text.as_str());
            position.system_id == cluster.system_id && (position.done || same)
        };
        let heals = saved.as_ref().is_some_and(|position| position.heals);
        let anew = || TableProgress::beginning(&table, &cluster.system_id, heals);
        let mut position = saved.filter(fits).unwrap_or_else(anew);
        position.key_text.clone_from(&table.key_text);
        let series = metrics.snapshot(&name);
        series.passed.set(position.rows as i64);
        series.estimate.set(table.estimate.map_or(-1, |rows| rows as i64));
        if position.done {
            continue;
        }
        let emitted = position.rows;
        tracing::info!(source, table = name, emitted, estimate = table.estimate, "snapshot begins");
        runs.push_back(TableRun { table, position, limit: CHUNK_ROWS_MAX, metrics: series });
    }
    if runs.is_empty() {
        return Ok(None);
    }
    Ok(Some(Snapshots {
        source: source.clone(),
        publication,
        runs,
        watermark: Watermark { session: rand::random(), chunk: 0 },
        step: Step::Idle(Instant::now()),
        window: Window::default(),
        relations: Vec::new(),
        unsaved: VecDeque::new(),
        reader: Reader::start(database.clone(), acks)?,
        backoff: None,
        waits_since: None,
        scratch: Scratch::default(),
        key: Vec::new(),
    }))
}

impl Snapshots {
    /// Takes the answers of the reader, and asks for the next chunk when it is time.
    pub fn step(&mut self, now: Instant) -> Result<()> {
        self.receive_from_reader(now)?;
        let Some(run) = self.runs.front() else { return Ok(()) };
        if !matches!(self.step, Step::Idle(until) if now >= until) {
            return Ok(());
        }
        let fresh = !self.window.is_open();
        if fresh {
            self.window.open();
        }
        self.watermark.chunk += 1;
        self.reader.ask(Ask {
            watermark: self.watermark,
            table: run.table.clone(),
            publication: self.publication.clone(),
            after: run.position.after.clone(),
            limit: run.limit,
            fresh,
        })?;
        self.step = Step::Asked;
        Ok(())
    }

    fn receive_from_reader(&mut self, now: Instant) -> Result<()> {
        while let Some(answer) = self.reader.answer() {
            self.take_answer(answer, now)?;
        }
        Ok(())
    }

    fn take_answer(&mut self, answer: Answer, now: Instant) -> Result<()> {
        match answer {
            Answer::Chunk(chunk) if chunk.watermark == self.watermark && matches!(self.step, Step::Asked) => {
                self.window.forget(&chunk.visible);
                self.waits_since = None;
                self.step = Step::Read(chunk);
            }
            Answer::NotYet { visible } => {
                self.window.forget(&visible);
                let since = *self.waits_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= WAIT_LOG_INTERVAL {
                    let older_than = visible.next;
                    tracing::warn!(
                        source = self.source,
                        older_than,
                        "the snapshot waits for transactions that are older than it"
                    );
                    self.waits_since = Some(now);
                }
                self.step = Step::Idle(now + TRANSACTIONS_INTERVAL);
            }
            Answer::Failed { watermark, error } if watermark == self.watermark => self.failed(&error, now),
            Answer::Chunk(_) | Answer::Failed { .. } => {}
        }
        Ok(())
    }

    fn failed(&mut self, error: &anyhow::Error, now: Instant) {
        let Some(run) = self.runs.front() else { return };
        run.metrics.failures.inc();
        tracing::warn!(
            source = self.source,
            table = run.table.name(),
            "a chunk of the snapshot could not be read; trying again: {error:#}"
        );
        let delays = || {
            let delays = backon::ExponentialBuilder::default().with_min_delay(Duration::from_millis(500));
            delays.with_max_delay(Duration::from_secs(30)).with_jitter().without_max_times().build()
        };
        let pause = self.backoff.get_or_insert_with(delays).next().unwrap_or(WAIT_LOG_INTERVAL);
        // The window records nothing until the next attempt.
        self.window.close();
        self.step = Step::Idle(now + pause);
    }

    /// The stream met a watermark: emits the chunk that was read before it, in the watermark's transaction.
    pub fn meet_watermark(
        &mut self,
        watermark: Watermark,
        emitter: &mut Emitter,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        // The reader hands over a chunk before it writes the watermark, so the chunk is here by now.
        self.receive_from_reader(Instant::now())?;
        // The watermark may belong to another session, or to a chunk that was given up.
        if !matches!(&self.step, Step::Read(chunk) if chunk.watermark == watermark) {
            return Ok(());
        }
        let Step::Read(chunk) = std::mem::replace(&mut self.step, Step::Idle(Instant::now())) else {
            return Ok(());
        };
        let Some(run) = self.runs.front_mut() else { return Ok(()) };
        // The stream may be far behind, and has since emitted more transactions that the chunk sees. Where the publication
        // left rows out, the chunk's row may be newer than every state in the stream.
        self.window.forget(&chunk.visible);
        // This check is first: the window compares keys, and another order of the key would leave rows out.
        if chunk.table.key_text != run.table.key_text {
            let (table, was, now) = (run.table.name(), &run.table.key_text, &chunk.table.key_text);
            bail!(
                "the key of {table} was changed from {was} to {now}, so the snapshot of the table begins again"
            );
        }
        if !self.window.is_open() {
            tracing::debug!(
                source = self.source,
                "a chunk is read again: the stream changed too many of its rows meanwhile"
            );
            return Ok(());
        }
        let plan = emitter.plan(&chunk.table.relation)?;
        let mut emitted = 0;
        for body in chunk.rows() {
            let row = Row::insert(pgoutput::data_row(body, &mut self.scratch)?);
            if !write_key(&row, chunk.table.key.iter().map(|key| key.index), &mut self.key) {
                bail!(
                    "a row of {} has no value for a key column; its key columns must not be null",
                    run.table.name()
                );
            }
            if !self.window.has(&self.key) {
                emitter.existing_row(PlannedRow { plan: &plan, row: &row }, open)?;
                emitted += 1;
            }
        }
        run.advance(&chunk, emitted, &mut self.scratch)?;
        self.backoff = None;
        let progress = run.position.clone();
        self.unsaved.push_back(UnsavedProgress {
            commit_lsn: open.transaction.commit_lsn,
            table: run.table.name(),
            progress,
        });
        if run.position.done {
            let (table, rows) = (run.table.name(), run.position.rows);
            tracing::info!(source = self.source, table, rows, "snapshot done");
            self.runs.pop_front();
            self.window.close();
        }
        Ok(())
    }

    /// Whether all rows are emitted and the progress is saved.
    pub fn is_over(&self) -> bool {
        self.runs.is_empty() && self.unsaved.is_empty()
    }
}
