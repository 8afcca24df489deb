//! Emits current rows of a table once more, with the same ids.
//!
//! * It never emits a row for the first time: only the stream can do that in order. The rows are read in one snapshot, a
//!   logical message marks the WAL after the snapshot, and nothing is emitted before the slot is confirmed up to the
//!   message.
//! * Rows of halted keys are left out: they were not emitted yet (`release` emits them).
//! * The routes must be those of the checkpoint, since other routes would emit other events.
//! * A replayed event may follow later changes of the same row; its id says so. So nothing is replayed to a compacted topic,
//!   which keeps the last record of a key. The event has no position, because its place in the chain is taken.

mod selection;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use self::selection::{Rows, Selection};
use crate::checkpoint::state::Phase;
use crate::dead_letter::halts::table_destination;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::routes::catalog::Catalog;
use crate::routes::problem::Problem;
use crate::routes::route::{Plan, Record, Topics, Transaction};
use crate::routes::{Routes, Source, Table};
use crate::sinks::ack_waiter::AckWaiter;
use crate::sinks::emit::{EmitOutcome, OpenTransaction, PlannedRow, ReEmission, Tally};
use crate::source::clients::KafkaClients;
use crate::source::context::SourceContext;

/// Sinks that acknowledge nothing for this long are taken to be down.
const SINK_TIMEOUT: Duration = Duration::from_secs(60);

/// Counts of a replay.
#[derive(Debug, Default)]
pub struct Summary {
    pub rows: u64,
    pub tally: Tally,
    /// Rows that cannot be emitted, and the reasons of the first ones.
    pub failed: u64,
    pub reasons: Vec<String>,
}

impl Summary {
    fn fail(&mut self, problem: Problem) {
        self.failed += 1;
        if self.reasons.len() < 5 && !self.reasons.contains(&problem.0) {
            self.reasons.push(problem.0);
        }
    }
}

/// An event that would be emitted: its destination, the record, and the plan.
pub type Shown<'a> = (&'a str, &'a Record, &'a Plan);

/// Shows the events that would be emitted, and emits nothing.
pub fn show(
    selection: &mut Selection,
    routes: &Routes,
    source: &Source,
    mut show: impl FnMut(Shown<'_>) -> Result<()>,
) -> Result<Summary> {
    // As in `Emitter::plan`, so that the events shown are those that would be emitted.
    let (mut catalog, mut relation) = (Catalog::default(), selection.table.relation.clone());
    catalog.load(&mut selection.session, std::slice::from_ref(&relation))?;
    catalog.annotate(&mut relation);
    relation.identity = b'f';
    let plan = usable(Plan::compile(routes, source, &relation))?;
    let (topics, mut record, mut summary) =
        (Topics::new(routes, Vec::new()), Record::default(), Summary::default());
    let transaction = Transaction::of_existing(String::new(), Lsn::ZERO);
    let (key, limit) = (selection.key.clone(), selection.limit.unwrap_or(u64::MAX));
    selection.each(|row| {
        let mut counts = key.is_none();
        for route in &plan.routes {
            match route.matches(row) {
                Ok(false) => continue,
                Ok(true) => match route.render(row, &transaction, &topics, &mut record) {
                    Ok(_) if key.as_ref().is_some_and(|key| key.as_bytes() != record.key) => {}
                    Ok(_) => {
                        counts = true;
                        summary.tally.count(&route.leads_to);
                        show((&route.leads_to, &record, &plan))?;
                    }
                    Err(problem) => summary.fail(problem),
                },
                Err(problem) => summary.fail(problem),
            }
        }
        summary.rows += u64::from(counts);
        Ok(summary.rows < limit)
    })?;
    Ok(summary)
}

/// Emits the rows, and waits until every sink has acknowledged them. The relay must have emitted them before.
/// `notify` receives the reason for a wait.
pub fn emit(
    selection: &mut Selection,
    context: &SourceContext,
    clients: &mut KafkaClients,
    notify: &mut dyn FnMut(&str),
) -> Result<Summary> {
    let loaded = clients.load(0)?;
    let checkpoint =
        loaded.checkpoint.context("nothing was emitted from this slot yet. Start `cdc-relay run` first")?;
    ensure!(
        checkpoint.phase == Phase::Streaming,
        "a resnapshot is unfinished, and emits every row anyway. Run `cdc-relay resnapshot` again"
    );
    ensure!(
        checkpoint.routes == context.source.fingerprint(),
        "the relay runs with other routes than these, or was not restarted since they changed, so its events are not \
         those of these routes. Restart it, or use its routes file"
    );
    let table = selection.table.name();
    let compacted: Vec<&str> = context
        .source
        .table(&selection.table.relation.table_name())
        .into_iter()
        .flat_map(Table::compacted_topics)
        .collect();
    ensure!(
        compacted.is_empty(),
        "{table} leads to a compacted topic ({}), where an older row would replace a newer one for good. Use `cdc-relay \
         resnapshot`",
        compacted.join(", ")
    );
    clients.load_halted()?;
    let emitter = clients.emitter()?;
    emitter.set_chain(&checkpoint.chain_name);
    ensure!(
        !emitter.halted().contains(&table_destination(&table), None),
        "rows of {table} are in the dead-letter topic and have to be emitted first. Release them with `cdc-relay release`"
    );
    let plan = usable(emitter.plan(&selection.table.relation)?)?;
    let mut waiter =
        AckWaiter::new(&context.acks, context.routes.relay.in_flight_bytes as i64, Some(SINK_TIMEOUT));
    let transaction_seq = waiter.progress.begin(Lsn::ZERO, PgTime::default());
    let cluster = format!("{}/{}", checkpoint.system_id, checkpoint.timeline);
    let mut transaction = Transaction::of_existing(cluster, Lsn::ZERO);
    let mut summary = Summary::default();
    summary.tally.key.clone_from(&selection.key);
    let limit = selection.limit.unwrap_or(u64::MAX);
    emitter.set_large_batches();
    selection.each(|row| {
        waiter.make_room(emitter.kafka(), notify)?;
        let progress = &mut waiter.progress;
        let mut open =
            OpenTransaction { transaction: &mut transaction, transaction_seq, progress, again: false };
        let before = summary.tally.seen;
        let routed = PlannedRow { plan: &plan, row };
        match emitter.re_emit(routed, ReEmission::Emitted(&mut summary.tally), &mut open)? {
            EmitOutcome::Emitted => {}
            EmitOutcome::Failed(problem) => summary.fail(problem),
        }
        if summary.tally.key.is_none() || summary.tally.seen > before {
            summary.rows += 1;
        }
        Ok(summary.rows < limit)
    })?;
    waiter.finish(emitter.kafka(), notify)?;
    Ok(summary)
}

/// Fails unless every route has a template id: only such ids are the same again.
fn usable(plan: Plan) -> Result<Plan> {
    if let Some(problem) = plan.problems().next() {
        bail!("{}", problem.0);
    }
    ensure!(
        plan.routes.iter().all(crate::routes::route::CompiledRoute::has_id),
        "{0} has no `id` in the routes, so the ids of its events are WAL positions, which a row does not have. Give {0} an `id`",
        plan.relation
    );
    Ok(plan)
}
