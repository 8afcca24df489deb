//! Runs one source on a thread of its own: connects, compares with the checkpoint, streams, and after a failure begins again
//! with back-off.

mod emitted;
mod promotion;
mod publication;
mod slot;
mod tables;

use self::emitted::Emitted;
use self::promotion::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use backon::BackoffBuilder;

use crate::checkpoint::progress::TransactionSeq;
use crate::checkpoint::refusal::Break;
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::state::{Checkpoint, Cluster, admit};
use crate::observe::status::State;
use crate::postgres::error::PostgresError;
use crate::postgres::facts::Facts;
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::{Origins, Replication};
use crate::postgres::server_identity::ServerIdentity;
use crate::postgres::session::Session;
use crate::routes::{NewTable, OriginRule, TableName};
use crate::source::backfill::rows::Table;
use crate::source::backfill::snapshot::{self, Snapshots, TableProgress};
use crate::source::clients::{KafkaClients, Loaded};
use crate::source::context::SourceContext;
use crate::source::contract::{self, Checked, Contract, ContractError, Keys};
use crate::source::coverage::record::Record;
use crate::source::inspect;
use crate::source::stream::{HandedOver, ReleaseInput, SessionClients, SessionStart, Stream};
use crate::source::stuck::{self, Cause, Stuck};
use crate::source::succession::StandbyWait;
use crate::source::watch::{OpenSnapshot, Watch, WatchStart};

/// How often a standby checks whether the slot is free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);
/// How often a standby checks everything that a start needs.
const STANDBY_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a relay that handed its slot over stands aside.
const HANDED_OVER_PAUSE: Duration = Duration::from_secs(3);
/// How often a refused source tries again.
const REFUSED_INTERVAL: Duration = Duration::from_secs(5);
/// The longest pause between two attempts, which jitter at most doubles. A database that is up again must not wait for its
/// relay, and an attempt costs nothing.
const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The SQLSTATE for a slot that another relay reads.
const OBJECT_IN_USE: &str = "55006";

/// Why an attempt ended.
enum AttemptError {
    Refused(Refusal),
    /// Another relay has the slot.
    Standby,
    /// Another relay asked for the slot, and shall have it.
    HandedOver,
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

impl From<ContractError> for AttemptError {
    fn from(error: ContractError) -> AttemptError {
        match error {
            ContractError::Refused(refusal) => AttemptError::Refused(refusal),
            ContractError::Postgres(error) => error.into(),
        }
    }
}

impl From<Refusal> for AttemptError {
    fn from(refusal: Refusal) -> AttemptError {
        AttemptError::Refused(refusal)
    }
}

/// A source whose slot and checkpoint fit together.
struct ReadySource {
    checkpoint: Checkpoint,
    /// The confirmed position of the slot.
    begin: Lsn,
    record: Record,
    watched: Option<OpenSnapshot>,
}

/// A start whose session reads the slot.
#[derive(Clone, Copy)]
struct Begun<'a> {
    checkpoint: &'a Checkpoint,
    record: &'a Record,
    cluster: &'a Cluster,
    facts: &'a Facts,
    /// The state topic was read up to here.
    end: i64,
}

/// The records of a source in the state topic that decide how it begins.
struct SavedState {
    checkpoint: Option<Checkpoint>,
    publication: Option<Record>,
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
    emitted: Emitted,
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
    /// How long this relay has waited for the slot.
    standby_wait: StandbyWait,
    /// Since when no host but former primaries has answered.
    former_since: Option<Instant>,
}

/// Runs until `Acks::stop`.
pub fn run(context: SourceContext) {
    let context = Arc::new(context);
    let mut worker = SourceWorker {
        clients: KafkaClients::new(&context),
        next_transaction_seq: 0,
        emitted: Emitted::default(),
        stalls: 0,
        advanced: false,
        fingerprint: context.source.fingerprint(),
        broken: None,
        unwritten: None,
        keys: Keys::default(),
        stuck: Stuck::default(),
        standby_wait: StandbyWait::default(),
        former_since: None,
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
            Err(AttemptError::HandedOver) => (State::Standby, HANDED_OVER_PAUSE),
            Err(AttemptError::Turn) => (State::Standby, Duration::ZERO),
            Err(AttemptError::Refused(refusal)) => {
                worker.doubt_host();
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
        worker.context.pause(delay);
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
        let mut session = Session::connect_to_any(&self.context.database)
            .map_err(|error| self.attempt_error(error.into()))?;
        let (cluster, database) = inspect::primary(&mut session)?;
        self.leave_known_former(&cluster)?;
        self.resolve(&mut session)?;
        let slot = inspect::slot(&mut session, &slot_name)?;
        let Checked { facts, catalog } = self.contract(&mut session, slot.is_some())?;
        let tables = self.existing(&facts);
        self.keys = Keys::of(&facts, &self.context.source);
        // Topics are made only for a contract that holds, and before a standby waits, so that it lacks only the slot.
        self.clients.connect()?;
        self.clients.emitter()?.set_catalog(catalog);
        if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
            drop(session);
            self.leave_former_of_several(&cluster)?;
            return Err(self.stand_by(&slot_name)?);
        }
        let mut loaded = self.clients.load(0)?;
        self.clients.load_halted()?;
        self.leave_former(&cluster, loaded.checkpoint.as_ref())?;
        let server = Server { cluster: &cluster, database: &database, slot: slot.as_ref() };
        self.follow_promotion(&mut session, server, &mut loaded)?;
        let Loaded { checkpoint, positions, publication, end } = loaded;
        let start = admit(checkpoint.as_ref(), &cluster, &slot_name, slot.as_ref(), &database)?;
        self.context.database.keep_to(Some(ServerIdentity::from(&cluster)));
        let confirmed = slot.and_then(|slot| slot.confirmed).unwrap_or_default();
        let (mut checkpoint, known) =
            self.begin(start, &mut session, &cluster, SavedState { checkpoint, publication }, confirmed)?;
        // It has to see what the publication is altered to from here on.
        let watched = OpenSnapshot::open(&self.context, &ServerIdentity::from(&checkpoint));
        let record = self.covered(&mut session, known, &checkpoint)?;
        checkpoint.vouched = checkpoint.acknowledged;
        // Saved before anything is emitted without the rule.
        checkpoint.synchronous &= self.waits_for_standbys();
        if let Some(refusal) = self.stuck.holds(checkpoint.acknowledged, Instant::now()) {
            return Err(refusal.into());
        }
        let publication = self.context.source.publication.get_ref().as_str();
        let origins = match self.context.source.origin {
            OriginRule::Any => Origins::Any,
            OriginRule::None => Origins::None,
        };
        let mut replication = match Replication::start(session, &slot_name, &[publication], origins) {
            Ok(replication) => replication,
            Err(error) if error.code() == Some(OBJECT_IN_USE) => return Err(AttemptError::Standby),
            Err(error) => return Err(self.attempt_error(error.into())),
        };
        let begun = Begun { checkpoint: &checkpoint, record: &record, cluster: &cluster, facts: &facts, end };
        let snapshots = replication.confirm_while(|| self.take_slot(&slot_name, begun, tables, positions))?;
        let ready = ReadySource { checkpoint, begin: confirmed, record, watched };
        self.stream(replication, ready, snapshots)
    }

    /// Checks what only the reader of the slot can check, and saves the checkpoint. Returns the snapshots.
    fn take_slot(
        &mut self,
        slot_name: &str,
        begun: Begun<'_>,
        mut tables: Vec<Table>,
        mut positions: BTreeMap<String, TableProgress>,
    ) -> Result<Option<Snapshots>, AttemptError> {
        let Begun { checkpoint, record, cluster, facts, end } = begun;
        // From here on nobody else can advance the slot. If another relay did so after the checkpoint was read, begin again.
        let confirmed = self.confirmed(slot_name)?;
        let later = self.clients.load(end)?;
        if later.checkpoint.is_some_and(|later| {
            later.acknowledged > checkpoint.acknowledged || !later.is_in_phase_of(checkpoint)
        }) || later.publication.is_some_and(|later| later != *record)
        {
            return Err(AttemptError::Standby);
        }
        if confirmed > checkpoint.acknowledged {
            let (slot, acknowledged) = (slot_name.to_owned(), checkpoint.acknowledged);
            return Err(Refusal::SlotAhead { slot, confirmed, acknowledged }.into());
        }
        positions.extend(later.positions);
        tables.extend(self.healing(facts, &positions)?);
        // It also connects the producer before the first row.
        self.clients.save(checkpoint)?;
        let found = tables.into_iter().map(|table| {
            let position = positions.remove(&table.name());
            (table, position)
        });
        let SourceContext { source, database, metrics, acks, .. } = &*self.context;
        Ok(snapshot::begin(source, cluster, found.collect(), database, metrics, acks)?)
    }

    /// Checks the contract before anything is made. Harmful tables leave the relay's own publication first.
    fn contract(&self, session: &mut Session, has_slot: bool) -> Result<Checked, AttemptError> {
        let SourceContext { routes, source, .. } = &*self.context;
        contract::withdraw_harmful(session, source)?;
        Ok(Contract { routes, source }.verdict(session, has_slot)?.into_result()?)
    }

    /// Runs the stream.
    fn stream(
        &mut self,
        replication: Replication,
        ready: ReadySource,
        snapshots: Option<Snapshots>,
    ) -> Result<(), AttemptError> {
        let ReadySource { checkpoint, begin, record, watched } = ready;
        self.context.metrics.stream.sessions.inc();
        self.standby_wait.ends();
        let relay = &self.context.routes.relay;
        let (acknowledged, doubt) = (checkpoint.acknowledged, self.stuck.doubt());
        let watch = WatchStart {
            identity: ServerIdentity::from(&checkpoint),
            coverage: record.coverage.clone(),
            keys: self.keys.clone(),
            snapshot: watched,
        };
        let watch = Watch::begin(&self.context, watch, checkpoint.acknowledged);
        let standbys = self.standbys(&checkpoint);
        let mut emitted = Emitted::before(&checkpoint);
        let sent_lsn = self.emitted.until(&checkpoint);
        let start = SessionStart {
            checkpoint,
            begin,
            status: self.context.status.clone(),
            doubt,
            watch,
            standbys,
            candidate: self.candidate(),
            healed: record.healed.clone(),
            checkpoint_key: self.clients.checkpoint_key(),
            checkpoint_topic: relay.state_topic.get_ref().clone(),
            in_flight_bytes_max: relay.in_flight_bytes as i64,
            first_transaction_seq: self.next_transaction_seq,
            sent_lsn,
            stalls: self.stalls,
        };
        let (emitter, reader) = self.clients.both()?;
        emitter.set_chain(&start.checkpoint.chain_name);
        // The topics are read to their end. A release opens the reader again.
        reader.disconnect();
        let release_input = ReleaseInput {
            reader,
            topic: relay.dead_letter_topic.get_ref(),
            database: &self.context.database,
        };
        let (acks, metrics) = (&self.context.acks, &self.context.metrics);
        let clients = SessionClients { emitter, release_input, acks, metrics };
        let began = Instant::now();
        let (result, outcome) = Stream::new(replication, clients, start, snapshots).run();
        self.standby_wait.has_read(began.elapsed());
        (self.next_transaction_seq, self.stalls) = (outcome.next_transaction_seq, outcome.stalls);
        emitted.sent_lsn = outcome.sent_lsn;
        self.emitted = emitted;
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

    /// Classifies the error that ended a session.
    fn ended(&mut self, error: anyhow::Error, acknowledged: Lsn) -> AttemptError {
        if error.is::<HandedOver>() {
            return AttemptError::HandedOver;
        }
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
}
