//! Emits every row again from the snapshot of a new slot, after WAL was lost or cannot be trusted.
//!
//! The order of the steps makes it safe:
//! * The old slot is dropped first. Postgres drops only a slot that nobody reads, and without it no relay can begin to
//!   stream.
//! * The checkpoint then has the phase `reconciling`, which `run` refuses, and from which the next resnapshot starts over.
//! * The new slot is made, and every row of its snapshot is emitted. Later commits belong to the slot.
//! * The checkpoint has the phase `streaming` again only when every sink has acknowledged every row.

mod examine;
pub mod heal;
mod re_emit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use backon::BlockingRetryable;
use serde::Serialize;

pub use self::examine::{Plan, Planned, lock_out_others};
use self::re_emit::Resnapshot;
pub use self::re_emit::TableReport;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::state::{Checkpoint, Cluster, NewSlot, Phase, admit};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::routes::{Source, SynchronousRule};
use crate::source::backfill::rows::{self, Table};
use crate::source::backfill::snapshot::TableProgress;
use crate::source::clients::{KafkaClients, Loaded};
use crate::source::context::SourceContext;
use crate::source::coverage::baseline::baseline;
use crate::source::coverage::record::Record;
use crate::source::inspect;
use crate::source::synchronous::{await_standbys, ensure_visible};

/// The new slot waits for running transactions, and a row filter may skip many rows before the first one.
const SLOT_AND_FIRST_ROW_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Progress for the terminal.
pub enum Step<'a> {
    Waits(&'a str),
    Table {
        name: String,
        estimate: Option<u64>,
    },
    /// Rows of the current table so far.
    Rows(u64),
    TableDone(&'a TableReport),
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub source: String,
    pub slot: String,
    /// The position at which the new slot begins.
    pub begins_at: String,
    pub tables: Vec<TableReport>,
    pub seconds: f64,
}

pub enum Ending {
    Done(Report),
    /// A slot would be dropped, and `agreed` is false. Nothing was changed.
    NotAgreed(Plan),
}

/// Emits every row of one source again. `agreed`: an existing slot may be dropped.
///
/// # Errors
/// Before the slot is dropped, an error changes nothing. After that the source stays refused until a resnapshot
/// succeeds.
pub fn run(context: SourceContext, agreed: bool, view: &mut dyn FnMut(Step<'_>)) -> Result<Ending> {
    let began = Instant::now();
    let context = Arc::new(context);
    let mut clients = KafkaClients::new(&context);
    view(Step::Waits("connecting"));
    let Loaded { checkpoint, publication, positions, .. } = load(&mut clients)?;
    let mut session = inspect::connect(&context.database, checkpoint.as_ref())?;
    session.set_silence_timeout(SLOT_AND_FIRST_ROW_TIMEOUT)?;
    let (cluster, database) = inspect::primary(&mut session)?;
    let slot_name = context.source.slot.get_ref();
    lock_out_others(&mut session, slot_name)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let tables = examine::examine(&mut session, &context, slot.as_ref(), &database)?;
    let waits_for_standbys = context.source.synchronous == SynchronousRule::Require;
    if waits_for_standbys {
        ensure_visible(&context)?;
    }
    if let Some(slot) = slot {
        if !agreed {
            let refusal = admit(checkpoint.as_ref(), &cluster, slot_name, Some(&slot), &database).err();
            let refusal = refusal.map(|refusal| refusal.to_string());
            return Ok(Ending::NotAgreed(examine::plan(&context, &cluster, &slot, refusal, &tables)));
        }
        session
            .query(&format!("select pg_catalog.pg_drop_replication_slot({})", literal(slot_name)))
            .with_context(|| format!("slot {slot_name} cannot be dropped, and nothing was changed. Stop whoever reads it, then run the command again"))?;
        tracing::info!(slot = slot_name, "slot dropped");
    }
    let fingerprint = context.source.fingerprint();
    let chain_name = ChainName::begin(context.source.name.get_ref(), PgTime::now());
    let new_slot = NewSlot { name: slot_name, chain_name: &chain_name, routes: &fingerprint };
    let phase = |phase, acknowledged| Checkpoint::of_new_slot(&cluster, &new_slot, phase, acknowledged);
    clients.save(&phase(Phase::Resnapshot, Lsn::ZERO))?;
    view(Step::Waits("making the slot: waiting for running transactions"));
    let begins_at =
        rows::create_slot_with_snapshot(&mut session, &context.database, slot_name, &mut |blocker| {
            view(Step::Waits(&format!("making the slot: waiting for {blocker} to end")));
        })?;
    tracing::info!(slot = slot_name, %begins_at, "slot created");
    if waits_for_standbys {
        // Every row of the slot's snapshot was committed before it.
        await_standbys(&context, begins_at, &mut |what| view(Step::Waits(what)))?;
    }
    // It is read in the slot's snapshot, so that the stream notices every later change.
    let coverage = baseline(&mut session, &context.routes, &context.source).context(
        "the publication was changed while the slot was made. Correct it, then run the command again",
    )?;
    clients.emitter()?.set_chain(&chain_name);
    let mut resnapshot = Resnapshot::new(&context, clients, &cluster, begins_at, view);
    let tables = resnapshot.tables(&mut session)?;
    let (clients, view) = resnapshot.into_parts();
    view(Step::Waits("saving the checkpoint"));
    ensure_untouched(&context, slot_name, begins_at)?;
    finish_snapshots(&clients, &context.source, &cluster, &tables, &positions)?;
    clients.save_publication(&Record::healed(publication, coverage, begins_at, &[]))?;
    clients.save(&phase(Phase::Streaming, begins_at))?;
    Ok(Ending::Done(Report {
        source: context.source.name.get_ref().clone(),
        slot: slot_name.clone(),
        begins_at: begins_at.to_string(),
        tables: tables.into_iter().map(|(_, report)| report).collect(),
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// Loads the checkpoint of the source. It tries again for a while, since new topics have no leader at first.
fn load(clients: &mut KafkaClients) -> Result<Loaded> {
    let delays =
        backon::ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_times(6);
    let ask = || {
        clients.connect()?;
        clients.load_halted()?;
        clients.load(0)
    };
    ask.retry(delays)
        .sleep(std::thread::sleep)
        .notify(|error: &anyhow::Error, _| {
            tracing::warn!("the checkpoint could not be loaded; trying again: {error:#}");
        })
        .call()
}

/// Fails unless the slot is the one that was made, and nobody has read it.
fn ensure_untouched(context: &SourceContext, slot_name: &str, begins_at: Lsn) -> Result<()> {
    // The other session's snapshot is as old as the slot.
    let mut session = Session::connect(&context.database)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let slot = slot
        .with_context(|| format!("slot {slot_name} was dropped by somebody else. Run the command again"))?;
    ensure!(
        slot.confirmed == Some(begins_at) && slot.active_pid.is_none() && slot.wal_status != "lost",
        "slot {slot_name} was read, advanced or lost while the rows were emitted. Run the command again"
    );
    Ok(())
}

/// Marks the snapshots of these tables as done, since all of their rows were emitted. This concerns tables with
/// `snapshot`, and tables that were to be healed.
fn finish_snapshots(
    clients: &KafkaClients,
    source: &Source,
    cluster: &Cluster,
    tables: &[(Table, TableReport)],
    positions: &BTreeMap<String, TableProgress>,
) -> Result<()> {
    for (table, report) in tables {
        let routed = source.table(&table.relation.table_name());
        let heals = positions.get(&table.name()).is_some_and(|position| position.heals);
        if heals || routed.is_some_and(|routed| routed.snapshot) {
            let beginning = TableProgress::beginning(table, &cluster.system_id, false);
            let position = TableProgress { rows: report.rows, done: true, ..beginning };
            clients.save_progress(&table.name(), &position)?;
        }
    }
    Ok(())
}
