//! Emits every row again, from a new slot's snapshot: the way on after the WAL between what was emitted and what is there
//! was lost, or cannot be trusted.
//!
//! The order is what makes it safe. The old slot is dropped first: only one that nobody reads can be, and without it no
//! relay can begin to stream. Then the checkpoint says `reconciling`, then the new slot is made, and from its snapshot
//! every row is emitted; what is committed later is the slot's. Only when every sink has acknowledged all of it does the
//! memory say `streaming`, from where the slot begins. Whatever breaks in between leaves a memory that `run` refuses
//! and that the next reconcile starts over from.

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
use crate::checkpoint::state::{Checkpoint, Cluster, CommitId, Phase, admit};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::source::backfill::rows::{self, Table};
use crate::source::backfill::snapshot::TableProgress;
use crate::source::clients::{KafkaClients, Loaded};
use crate::source::context::SourceContext;
use crate::source::coverage::baseline::baseline;
use crate::source::coverage::record::Record;
use crate::source::inspect;

/// Making a slot waits for the transactions that run; a row filter may pass over much before the first row.
const SLOT_AND_FIRST_ROW_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What a person may see while it lasts.
pub enum Step<'a> {
    Waits(&'a str),
    Table {
        name: String,
        estimate: Option<u64>,
    },
    /// Rows of the present table so far.
    Rows(u64),
    TableDone(&'a TableReport),
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub source: String,
    pub slot: String,
    /// Where the new slot begins: later commits are streamed.
    pub begins_at: String,
    pub tables: Vec<TableReport>,
    pub seconds: f64,
}

pub enum Ending {
    Done(Report),
    /// It would drop a slot, and nobody agreed to that. Nothing was changed.
    NotAgreed(Plan),
}

/// Reconciles one source. `agreed`: a slot that is there may be dropped. Errors leave the source refused, and it may
/// be started over; before the slot is dropped nothing is changed.
pub fn run(context: SourceContext, agreed: bool, view: &mut dyn FnMut(Step<'_>)) -> Result<Ending> {
    let began = Instant::now();
    let context = Arc::new(context);
    let mut clients = KafkaClients::new(&context);
    view(Step::Waits("connecting"));
    let Loaded { checkpoint, publication, positions, .. } = load(&mut clients)?;
    let mut session = Session::connect(&context.database)?;
    session.set_silence_timeout(SLOT_AND_FIRST_ROW_TIMEOUT)?;
    let (cluster, database) = inspect::cluster(&mut session)?;
    let slot_name = context.source.slot.get_ref();
    lock_out_others(&mut session, slot_name)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let tables = examine::examine(&mut session, &context, slot.as_ref(), &database)?;
    if let Some(slot) = slot {
        if !agreed {
            let refusal = admit(checkpoint.as_ref(), &cluster, slot_name, Some(&slot), &database).err();
            let refusal = refusal.map(|refusal| refusal.to_string());
            return Ok(Ending::NotAgreed(examine::plan(&context, &cluster, &slot, refusal, &tables)));
        }
        session
            .query(&format!("select pg_catalog.pg_drop_replication_slot({})", literal(slot_name)))
            .with_context(|| format!("slot {slot_name} cannot be dropped; nothing was changed"))?;
        tracing::info!(slot = slot_name, "slot dropped");
    }
    let phase = |phase, acknowledged| Checkpoint {
        system_id: cluster.system_id.clone(),
        timeline: cluster.timeline,
        slot: slot_name.clone(),
        phase,
        acknowledged,
        sent_lsn: acknowledged,
        chain: Lsn::ZERO,
        last: CommitId::default(),
        vouched: acknowledged,
        routes: context.source.fingerprint(),
    };
    clients.save(&phase(Phase::Resnapshot, Lsn::ZERO))?;
    view(Step::Waits("making the slot: waiting for the transactions that run now"));
    let begins_at =
        rows::create_slot_with_snapshot(&mut session, &context.database, slot_name, &mut |blocker| {
            view(Step::Waits(&format!("making the slot: waiting for {blocker} to end")));
        })?;
    tracing::info!(slot = slot_name, %begins_at, "slot created");
    // By the slot's own snapshot: whatever is changed later is noticed by the stream that goes on from there.
    let coverage = baseline(&mut session, &context.routes, &context.source)
        .context("the publication was changed while the slot was made; put it right, then start over")?;
    let mut resnapshot = Resnapshot::new(&context, clients, (&cluster, begins_at), view);
    let tables = resnapshot.tables(&mut session)?;
    let (clients, view) = resnapshot.into_parts();
    view(Step::Waits("writing down that it is done"));
    ensure_untouched(&context, slot_name, begins_at)?;
    finish_snapshots((&context, &clients), &cluster, (&tables, &positions))?;
    clients.save_publication(&Record::healed(publication, coverage, (begins_at, &[])))?;
    clients.save(&phase(Phase::Streaming, begins_at))?;
    Ok(Ending::Done(Report {
        source: context.source.name.get_ref().clone(),
        slot: slot_name.clone(),
        begins_at: begins_at.to_string(),
        tables: tables.into_iter().map(|(_, report)| report).collect(),
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// What is saved of the source. Topics that were just created take a while to have a leader.
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
        .notify(|error: &anyhow::Error, _| tracing::warn!("{error:#}"))
        .call()
}

/// The slot must still be the one that was made, and unread: otherwise somebody has emitted from it, or it is another.
fn ensure_untouched(context: &SourceContext, slot_name: &str, begins_at: Lsn) -> Result<()> {
    // By another session: this one's sight is as old as the slot.
    let mut session = Session::connect(&context.database)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let slot = slot.with_context(|| format!("slot {slot_name} is gone again; start over"))?;
    ensure!(
        slot.confirmed == Some(begins_at) && slot.active_pid.is_none() && slot.wal_status != "lost",
        "slot {slot_name} was read, advanced or lost meanwhile; start over"
    );
    Ok(())
}

/// Tables whose existing rows the stream would emit in chunks need that no more: those with `snapshot`, and those that
/// were to be healed.
fn finish_snapshots(
    (context, clients): (&SourceContext, &KafkaClients),
    cluster: &Cluster,
    (tables, positions): (&[(Table, TableReport)], &BTreeMap<String, TableProgress>),
) -> Result<()> {
    for (table, report) in tables {
        let routed = context.source.table(&table.relation.table_name());
        let heals = positions.get(&table.name()).is_some_and(|position| position.heals);
        if heals || routed.is_some_and(|routed| routed.snapshot) {
            let beginning = TableProgress::beginning(table, &cluster.system_id, false);
            let position = TableProgress { rows: report.rows, done: true, ..beginning };
            clients.save_progress(&table.name(), &position)?;
        }
    }
    Ok(())
}
