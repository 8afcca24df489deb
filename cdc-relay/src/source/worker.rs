//! Runs one source on a thread of its own: connects, compares with the checkpoint, streams, and after a failure begins again
//! with back-off.

mod publication;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use backon::BackoffBuilder;

use crate::checkpoint::progress::TransactionSeq;
use crate::checkpoint::refusal::Break;
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::state::{Checkpoint, Cluster, CommitId, Phase, Start, admit};
use crate::observe::status::State;
use crate::postgres::error::PostgresError;
use crate::postgres::facts::Facts;
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::Replication;
use crate::postgres::session::Session;
use crate::routes::{self, NewTable, Source, TableName};
use crate::source::backfill::rows::Table;
use crate::source::backfill::snapshot::{self, Snapshots, TableProgress};
use crate::source::clients::{KafkaClients, Loaded, pause};
use crate::source::context::SourceContext;
use crate::source::contract::{self, Checked, Keys, Mismatch, existing};
use crate::source::coverage::record::Record;
use crate::source::inspect;
use crate::source::published;
use crate::source::slots;
use crate::source::stream::{ReleaseInput, SessionStart, Stream};
use crate::source::stuck::{self, Cause, Stuck};
use crate::source::watch::Watch;

/// How often a standby checks whether the slot is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);
/// How often a standby checks everything that a start needs.
const STANDBY_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often a refused source tries again.
const REFUSED_INTERVAL: Duration = Duration::from_secs(5);
/// The longest pause between two attempts, which jitter at most doubles. A database that is up again must not wait for its
/// relay, and an attempt costs nothing.
const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why an attempt ended.
enum AttemptError {
    Refused(Refusal),
    /// Another relay has the slot.
    Standby,
    /// The slot is free, or a standby has waited for a while. The next attempt begins at once.
    Turn,
    /// Try again later.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for AttemptError {
    fn from(error: anyhow::Error) -> AttemptError {
        AttemptError::Failed(error)
    }
}

impl From<PostgresError> for AttemptError {
    fn from(error: PostgresError) -> AttemptError {
        AttemptError::Failed(error.into())
    }
}

impl From<Refusal> for AttemptError {
    fn from(refusal: Refusal) -> AttemptError {
        AttemptError::Refused(refusal)
    }
}

/// One source between its sessions.
struct SourceWorker {
    /// The context of the routes file, with its patterns.
    configured: Arc<SourceContext>,
    /// The context with resolved patterns.
    context: Arc<SourceContext>,
    /// Tables that a pattern matches, and that were made while a session streamed.
    new_tables: BTreeSet<TableName>,
    clients: KafkaClients,
    next_transaction_seq: TransactionSeq,
    sent_lsn: Lsn,
    stalls: u32,
    /// Whether the last session got anything acknowledged.
    advanced: bool,
    fingerprint: String,
    /// The break that forbids to emit until the rows were read again.
    broken: Option<Refusal>,
    /// A break that could not be saved in the state topic.
    unwritten: Option<Break>,
    /// The keys at the start of the session.
    keys: Keys,
    /// A change that the server cannot decode.
    stuck: Stuck,
}

/// Runs until `Acks::stop`.
pub fn run(context: SourceContext) {
    let context = Arc::new(context);
    let mut worker = SourceWorker {
        clients: KafkaClients::new(&context),
        next_transaction_seq: 0,
        sent_lsn: Lsn::ZERO,
        stalls: 0,
        advanced: false,
        fingerprint: context.source.fingerprint(),
        broken: None,
        unwritten: None,
        keys: Keys::default(),
        stuck: Stuck::default(),
        configured: Arc::clone(&context),
        new_tables: BTreeSet::new(),
        context,
    };
    let delays = || {
        backon::ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(ATTEMPT_PAUSE_MAX)
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut backoff = delays();
    while !worker.context.acks.stopping() {
        worker.advanced = false;
        let (state, delay) = match worker.attempt() {
            Ok(()) => break,
            Err(AttemptError::Standby) => (State::Standby, STANDBY_INTERVAL),
            Err(AttemptError::Turn) => (State::Standby, Duration::ZERO),
            Err(AttemptError::Refused(refusal)) => {
                (State::Refused(worker.refused(refusal)), REFUSED_INTERVAL)
            }
            Err(AttemptError::Failed(error)) => {
                // A session that got something acknowledged was a good one: the next may come at once.
                if worker.advanced && worker.stuck.doubt() == Lsn::ZERO {
                    backoff = delays();
                }
                worker.context.metrics.stream.failures.inc();
                let delay = backoff.next().unwrap_or(REFUSED_INTERVAL);
                (State::Connecting(format!("{error:#}")), delay)
            }
        };
        worker.context.status.set(state);
        pause(&worker.context, delay);
    }
}

impl SourceWorker {
    /// Returns the text of a refusal. A break is shown together with every other refusal until the rows were read again.
    fn refused(&mut self, refusal: Refusal) -> String {
        match (refusal, &self.broken) {
            (broken @ Refusal::Broken(_), _) => self.broken.insert(broken).to_string(),
            (other, Some(broken)) => format!("{broken} In addition: {other}"),
            (other, None) => other.to_string(),
        }
    }

    /// Runs one session. `Ok` means that the relay stops.
    fn attempt(&mut self) -> Result<(), AttemptError> {
        let slot_name = self.context.source.slot.get_ref().clone();
        let mut session =
            Session::connect(&self.context.database).map_err(|error| self.attempt_error(error.into()))?;
        self.resolve(&mut session)?;
        let (cluster, database) = inspect::cluster(&mut session)?;
        let slot = inspect::slot(&mut session, &slot_name)?;
        let Checked { facts, catalog } = self.contract(&mut session, slot.is_some())?;
        let mut tables = self.existing(&facts);
        self.keys = Keys::of(&facts, &self.context.source);
        // Topics are made only for a contract that holds, and before a standby waits, so that it lacks only the slot.
        self.clients.connect()?;
        self.clients.emitter()?.set_catalog(catalog);
        if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
            drop(session);
            return Err(self.stand_by(&slot_name)?);
        }
        let Loaded { checkpoint, mut positions, publication, end } = self.clients.load(0)?;
        self.clients.load_halted()?;
        let start = admit(checkpoint.as_ref(), &cluster, &slot_name, slot.as_ref(), &database)?;
        let confirmed = slot.and_then(|slot| slot.confirmed).unwrap_or_default();
        let (mut checkpoint, known) =
            self.begin(start, &mut session, (&cluster, checkpoint, publication), confirmed)?;
        let record = self.covered(&mut session, known, &checkpoint)?;
        checkpoint.vouched = checkpoint.acknowledged;
        if let Some(refusal) = self.stuck.holds(checkpoint.acknowledged, Instant::now()) {
            return Err(refusal.into());
        }
        let publication = self.context.source.publication.get_ref().as_str();
        let replication = match Replication::start(session, &slot_name, &[publication]) {
            Ok(replication) => replication,
            Err(error) if error.code() == Some("55006") => return Err(AttemptError::Standby),
            Err(error) => return Err(self.attempt_error(error.into())),
        };
        // From here on nobody else can advance the slot. If another relay did so after the checkpoint was read, begin again.
        let confirmed_now = self.confirmed(&slot_name)?;
        let later = self.clients.load(end)?;
        let at = |checkpoint: &Checkpoint| (checkpoint.timeline, checkpoint.phase);
        if later.checkpoint.is_some_and(|later| {
            later.acknowledged > checkpoint.acknowledged || at(&later) != at(&checkpoint)
        }) || later.publication.is_some_and(|later| later != record)
        {
            return Err(AttemptError::Standby);
        }
        if confirmed_now > checkpoint.acknowledged {
            let (slot, confirmed, acknowledged) = (slot_name, confirmed_now, checkpoint.acknowledged);
            return Err(Refusal::SlotAhead { slot, confirmed, acknowledged }.into());
        }
        positions.extend(later.positions);
        tables.extend(self.healing(&facts, &positions)?);
        // This also connects the producer before the first row.
        self.clients.save(&checkpoint)?;
        let found = tables.into_iter().map(|table| {
            let position = positions.remove(&table.name());
            (table, position)
        });
        let SourceContext { source, database, metrics, acks, .. } = &*self.context;
        let snapshots = snapshot::begin(source, &cluster, found.collect(), database, (metrics, acks))?;
        self.stream(replication, (checkpoint, confirmed), (record, snapshots))
    }

    /// Returns the confirmed position of the slot once this relay reads it. Somebody else may have advanced the slot, or made
    /// it again, after the first query. It takes another session, since the first one streams.
    fn confirmed(&self, slot_name: &str) -> Result<Lsn, AttemptError> {
        let slot = inspect::slot(&mut Session::connect_to_read(&self.context.database)?, slot_name)?;
        Ok(slot.and_then(|slot| slot.confirmed).unwrap_or_default())
    }

    /// Waits until the slot is free, or until everything must be checked again.
    fn stand_by(&self, slot_name: &str) -> Result<AttemptError, AttemptError> {
        self.context.status.set(State::Standby);
        let mut session = Session::connect_to_read(&self.context.database)?;
        let until = Instant::now() + STANDBY_CHECK_INTERVAL;
        while !self.context.acks.stopping() && Instant::now() < until {
            pause(&self.context, STANDBY_INTERVAL);
            let slot = inspect::slot(&mut session, slot_name)?;
            if slot.is_none_or(|slot| slot.active_pid.is_none()) {
                break;
            }
        }
        Ok(AttemptError::Turn)
    }

    /// Checks the contract before anything is made. Harmful tables leave the relay's own publication first.
    fn contract(&self, session: &mut Session, has_slot: bool) -> Result<Checked, AttemptError> {
        let SourceContext { routes, source, .. } = &*self.context;
        contract::withdraw_harmful(session, source)?;
        Ok(contract::at_start(session, (routes, source), has_slot)?.held()?)
    }

    /// Returns the tables with `snapshot = true`.
    fn existing(&self, facts: &Facts) -> Vec<Table> {
        let asked = self.context.source.tables.iter().filter(|table| table.snapshot);
        asked.filter_map(|table| facts.table(&table.table_name)).map(Table::from).collect()
    }

    /// Returns the tables that are to be healed and that `existing` does not have. Refuses tables that cannot be read in
    /// chunks.
    fn healing(
        &self,
        facts: &Facts,
        positions: &BTreeMap<String, TableProgress>,
    ) -> Result<Vec<Table>, Refusal> {
        let heals = |table: &&routes::Table| {
            let position = positions.get(&table.table_name.to_string());
            !table.snapshot && position.is_some_and(|position| position.heals && !position.done)
        };
        let tables = self.context.source.tables.iter().filter(heals);
        let tables: Vec<_> = tables.filter_map(|table| facts.table(&table.table_name)).collect();
        let problems = existing::of(tables.iter().copied(), facts.version);
        let problems: Vec<String> = problems.iter().map(Mismatch::to_string).collect();
        if problems.is_empty() {
            Ok(tables.into_iter().map(Table::from).collect())
        } else {
            Err(Refusal::Contract(problems.join("; ")))
        }
    }

    /// Runs the stream from the confirmed position `begin` of the slot.
    fn stream(
        &mut self,
        replication: Replication,
        (checkpoint, begin): (Checkpoint, Lsn),
        (record, snapshots): (Record, Option<Snapshots>),
    ) -> Result<(), AttemptError> {
        self.context.metrics.stream.sessions.inc();
        let relay = &self.context.routes.relay;
        let (acknowledged, doubt) = (checkpoint.acknowledged, self.stuck.doubt());
        let baseline = (record.coverage.clone(), self.keys.clone());
        let watch = Watch::begin(&self.context, baseline, checkpoint.acknowledged);
        let start = SessionStart {
            checkpoint,
            begin,
            status: self.context.status.clone(),
            doubt,
            watch,
            healed: record.healed.clone(),
            checkpoint_key: self.clients.checkpoint_key(),
            checkpoint_topic: relay.state_topic.get_ref().clone(),
            in_flight_bytes: relay.in_flight_bytes as i64,
            first_transaction_seq: self.next_transaction_seq,
            sent_lsn: self.sent_lsn,
            stalls: self.stalls,
        };
        let (emitter, reader) = self.clients.both()?;
        // The topics are read to their end. A release opens the reader again.
        reader.disconnect();
        let release_input = ReleaseInput {
            reader,
            topic: relay.dead_letter_topic.get_ref(),
            database: &self.context.database,
        };
        let (acks, metrics) = (&self.context.acks, &self.context.metrics);
        let stream = Stream::new(replication, (emitter, release_input), acks, metrics, (start, snapshots));
        let (result, outcome) = stream.run();
        (self.next_transaction_seq, self.sent_lsn, self.stalls) =
            (outcome.next_transaction_seq, outcome.sent_lsn, outcome.stalls);
        self.advanced = outcome.acknowledged > acknowledged;
        let record = match outcome.coverage {
            Some(coverage) => Record { coverage, ..record },
            None => record,
        };
        let Err(error) = result else { return Ok(()) };
        if let Some(NewTable(table)) = error.downcast_ref() {
            self.new_tables.insert(table.clone());
        }
        let attempt_error = self.ended(error, acknowledged);
        match attempt_error {
            AttemptError::Refused(Refusal::Broken(broken)) => Err(self.record_break(record, broken).into()),
            other => Err(other),
        }
    }

    /// Makes the slot. The status shows the transaction that it waits for.
    fn make_slot(&self, session: &mut Session, slot: &str) -> Result<Lsn, AttemptError> {
        let SourceContext { database, acks, status, .. } = &*self.context;
        let mut waits = |blocker: Option<&str>| {
            if let Some(blocker) = blocker {
                status.set(State::Connecting(format!(
                    "slot {slot} begins after the transactions that are open now: waiting for {blocker} to end"
                )));
            }
            !acks.stopping()
        };
        slots::prepare(session)?;
        let made = slots::make(session, database, &inspect::slot_creation(slot), &mut waits)?;
        made.ok_or_else(|| anyhow::anyhow!("the relay stopped before slot {slot} was made").into())
    }

    /// Classifies the error that ended a session.
    fn ended(&mut self, error: anyhow::Error, acknowledged: Lsn) -> AttemptError {
        let stuck = error
            .downcast_ref::<PostgresError>()
            .and_then(|error| self.stuck.ended(error, acknowledged, Instant::now()));
        match stuck {
            Some(refusal) => refusal.into(),
            None => self.attempt_error(error),
        }
    }

    /// Classifies an error that no change caused: a refusal, a missing permission, or a failure.
    fn attempt_error(&self, error: anyhow::Error) -> AttemptError {
        let problem = match error.downcast_ref::<PostgresError>() {
            Some(PostgresError::Server { code, message } | PostgresError::Stream { code, message })
                if stuck::cause(code) == Cause::Permission =>
            {
                message.clone()
            }
            _ => return error.downcast().map_or_else(AttemptError::Failed, AttemptError::Refused),
        };
        let role = self.context.database.get_user().unwrap_or_default().to_owned();
        Refusal::NotPermitted { role, problem }.into()
    }

    /// Resolves the patterns of the routes file, whose tables may have changed since the last session.
    fn resolve(&mut self, session: &mut Session) -> Result<(), AttemptError> {
        let SourceContext { routes, source, .. } = &*self.configured;
        if !source.has_patterns() {
            return Ok(());
        }
        let selected = published::ask(session, source)?;
        let resolved = selected.resolve(routes, source, &self.new_tables).map_err(Refusal::Contract)?;
        let now = resolved.source(source.name.get_ref()).unwrap_or(source).clone();
        let tables =
            |source: &Source| source.tables.iter().map(|table| table.table_name.clone()).collect::<Vec<_>>();
        if tables(&now) == tables(&self.context.source)
            && resolved.topics.len() == self.context.routes.topics.len()
        {
            return Ok(());
        }
        for text in selected.idle(source) {
            tracing::info!(
                source = source.name.get_ref(),
                "`ignore` has `{text}`, which matches no published table"
            );
        }
        let (routes, source) = (Arc::new(resolved), Arc::new(now));
        self.context = Arc::new(SourceContext { routes, source, ..(*self.configured).clone() });
        self.clients = self.clients.with(&self.context);
        Ok(())
    }

    /// Makes slot and checkpoint ready to stream. Returns the checkpoint, and the known record of the publication.
    fn begin(
        &self,
        start: Start,
        session: &mut Session,
        (cluster, checkpoint, mut publication): (&Cluster, Option<Checkpoint>, Option<Record>),
        confirmed: Lsn,
    ) -> Result<(Checkpoint, Option<Record>), AttemptError> {
        let fresh = |phase, acknowledged| Checkpoint {
            system_id: cluster.system_id.clone(),
            timeline: cluster.timeline,
            slot: self.context.source.slot.get_ref().clone(),
            phase,
            acknowledged,
            sent_lsn: acknowledged,
            chain: Lsn::ZERO,
            last: CommitId::default(),
            vouched: acknowledged,
            routes: self.fingerprint.clone(),
        };
        let begun = match (start, checkpoint) {
            (Start::Resume { .. }, Some(checkpoint)) if checkpoint.routes == self.fingerprint => {
                return Ok((checkpoint, publication));
            }
            // Other routes emit other transactions, so a new chain begins.
            (Start::Resume { .. }, Some(checkpoint)) => {
                Checkpoint { routes: self.fingerprint.clone(), chain: Lsn::ZERO, ..checkpoint }
            }
            (Start::Adopt, _) => fresh(Phase::Streaming, confirmed),
            (Start::Create | Start::Resume { .. }, _) => {
                contract::publish(session, &self.context.routes, &self.context.source)??;
                // After a crash here the next start finds `Creating`, and takes or makes the slot. Nothing was emitted from it.
                self.clients.save(&fresh(Phase::Creating, Lsn::ZERO))?;
                // The baseline comes before the slot, whose making may take long.
                publication = Some(self.baseline(session)?);
                let slot = self.context.source.slot.get_ref();
                let begin = self.make_slot(session, slot)?;
                tracing::info!(source = self.context.metrics.name, slot, %begin, "slot created");
                fresh(Phase::Streaming, begin)
            }
        };
        self.clients.save(&begun)?;
        Ok((begun, publication))
    }
}
