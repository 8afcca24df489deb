//! Emits current rows of a table once more, with the same ids.
//!
//! * It never emits a row for the first time: only the stream can do that in order. The rows are read in one snapshot, a
//!   logical message marks the WAL after the snapshot, and nothing is emitted before the slot is confirmed up to the
//!   message.
//! * Rows of halted keys are left out: they were not emitted yet (`release` emits them).
//! * The routes must be those of the checkpoint, since other routes would emit other events.
//! * A replayed event may follow later changes of the same row; its id says so. It has no position, because its place in
//!   the chain is taken.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::state::Phase;
use crate::dead_letter::halts::table_destination;
use crate::postgres::decode::pgoutput::{self, Scratch};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::session::Session;
use crate::postgres::sql::{identifier, literal};
use crate::routes::catalog::Catalog;
use crate::routes::problem::Problem;
use crate::routes::route::{Plan, Record, Topics, Transaction};
use crate::routes::row::Row;
use crate::routes::{Routes, Source, Table as Routed, TableName};
use crate::sinks::ack_waiter::AckWaiter;
use crate::sinks::emit::{EmitOutcome, OpenTransaction, PlannedRow, ReEmission, Tally};
use crate::source::backfill::rows::{self, Table};
use crate::source::clients::KafkaClients;
use crate::source::context::SourceContext;
use crate::source::inspect::{self, text};

/// The prefix of the logical message that marks the WAL. Nobody reads it.
const PREFIX: &str = "cdc-relay.replay";
/// How often the slot is queried.
const SLOT_INTERVAL: Duration = Duration::from_millis(100);
/// A shorter wait is not reported.
const WAIT_NOTICE_MIN: Duration = Duration::from_secs(1);
/// How long the server may take to find the first row.
const FIRST_ROW_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Sinks that acknowledge nothing for this long are taken to be down.
const SINK_TIMEOUT: Duration = Duration::from_secs(60);
const TIMESTAMPS: [u32; 3] = [1184, 1114, 1082];

/// The rows to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// Rows with this Kafka key.
    Key(String),
    /// Rows that fulfil this SQL condition.
    Where(String),
    /// Rows whose column is at this time or later.
    Since { at: jiff::Timestamp, column: Option<String> },
}

/// The chosen rows, in a snapshot of their own.
pub struct Selection {
    session: Session,
    pub table: Table,
    sql: String,
    /// The Kafka key to compare, where the query cannot choose by it.
    key: Option<String>,
    limit: Option<u64>,
}

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

impl Selection {
    /// Prepares the query, and takes the snapshot that the rows are read in.
    pub fn open(source: &Source, table: &str, rows: &Rows, limit: Option<u64>) -> Result<Selection> {
        let name: TableName = table.parse().map_err(|problem| anyhow::anyhow!("--table: {problem}"))?;
        let routed = source.table(&name).with_context(|| format!("--table: {name} has no routes"))?;
        let config = source
            .url
            .get_ref()
            .parse()
            .with_context(|| format!("`url` of source {}", source.name.get_ref()))?;
        let mut session = Session::connect_to_read(&config)?;
        // Names in the condition resolve as they do for the role.
        session.query("reset search_path; begin isolation level repeatable read read only")?;
        let tables = rows::tables(&mut session, source.publication.get_ref())?;
        let table = tables
            .into_iter()
            .find(|table| table.relation.table_name() == name)
            .with_context(|| format!("{name} is not published"))?;
        if let Some(why) = &table.unreadable {
            bail!("{why}");
        }
        let (sql, key) = query(&table, routed, rows, limit)?;
        // `parse` accepts one statement only, and the transaction is read only.
        session.parse(&sql).context("the condition cannot be used: correct it")?;
        Ok(Selection { session, table, sql, key, limit })
    }

    /// The query, for the terminal.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Waits until the relay has emitted every row of the snapshot. `notify` receives the reason for the wait.
    pub fn wait_until_emitted(
        &mut self,
        source: &Source,
        timeout: Duration,
        mut notify: impl FnMut(&str),
    ) -> Result<()> {
        let config = source.url.get_ref().parse()?;
        let mut other = Session::connect_to_read(&config)?;
        // A commit flushes all WAL before it, and lets an idle slot move on.
        other.query(&format!("select pg_logical_emit_message(true, {}, '')", literal(PREFIX)))?;
        let rows = other.query("select pg_current_wal_flush_lsn()")?;
        let end: Lsn = rows
            .first()
            .and_then(|row| text(row, 0).parse().ok())
            .context("the server answered no WAL position")?;
        let (since, slot) = (Instant::now(), source.slot.get_ref());
        loop {
            let found = inspect::slot(&mut other, slot)?;
            let found = found.with_context(|| {
                format!(
                    "slot {slot} does not exist, so nothing was emitted from it. Start `cdc-relay run` first"
                )
            })?;
            let confirmed = found.confirmed.unwrap_or_default();
            if confirmed >= end {
                return Ok(());
            }
            let behind = end.0.saturating_sub(confirmed.0);
            if found.active_pid.is_none() {
                notify(
                    "no relay reads the slot, and only emitted rows can be emitted again: waiting for a relay",
                );
            } else if since.elapsed() > WAIT_NOTICE_MIN {
                notify(&format!(
                    "waiting until the relay has emitted all current rows: {behind} bytes to go"
                ));
            }
            ensure!(
                since.elapsed() < timeout,
                "the relay has not emitted all current rows: {behind} bytes to go. Start a relay if none runs, or give it \
                 more time (--timeout)"
            );
            std::thread::sleep(SLOT_INTERVAL);
        }
    }

    /// Passes the rows to `each`, one by one, until it returns false.
    fn each(&mut self, mut each: impl FnMut(&Row<'_>) -> Result<bool>) -> Result<()> {
        self.session.set_silence_timeout(FIRST_ROW_TIMEOUT)?;
        let (mut scratch, mut enough) = (Scratch::default(), false);
        let read = self.session.each(&self.sql, |body| {
            let row = Row::insert(pgoutput::data_row(body, &mut scratch)?);
            enough = !each(&row)?;
            // An error is the only way out of a running query.
            ensure!(!enough, "enough");
            Ok(())
        });
        if enough { Ok(()) } else { read }
    }
}

/// Returns the query, and the key to compare if the query cannot choose by it.
fn query(
    table: &Table,
    routed: &Routed,
    rows: &Rows,
    limit: Option<u64>,
) -> Result<(String, Option<String>)> {
    let by_key: Vec<String> = table.key_columns().map(identifier).collect();
    let by_key = if by_key.is_empty() { String::new() } else { format!("order by {}", by_key.join(", ")) };
    let limited = limit.map_or_else(String::new, |limit| format!(" limit {limit}"));
    Ok(match rows {
        Rows::Key(key) => match lone_column(table, routed) {
            Some(column) => (
                table.select_where(&table.equals(column, key), &format!("{by_key}{limited}")),
                Some(key.clone()),
            ),
            None => (table.select_where("true", &by_key), Some(key.clone())),
        },
        Rows::Where(condition) => {
            let order = if limit.is_some() { by_key.as_str() } else { "" };
            (table.select_where(condition, &format!("{order}{limited}")), None)
        }
        Rows::Since { at, column } => {
            let column = identifier(since_column(table, column.as_deref())?);
            let condition = format!("{column} >= {}", literal(&at.to_string()));
            (table.select_where(&condition, &format!("order by {column}{limited}")), None)
        }
    })
}

/// Returns the column whose text is the key, if the key is one column.
fn lone_column<'t>(table: &'t Table, routed: &Routed) -> Option<&'t str> {
    let name = routed.key.as_ref()?.get_ref().strip_prefix('{')?.strip_suffix('}')?;
    let column = table.relation.columns.iter().find(|column| column.name == name)?;
    let as_it_stands = !routed.names.contains_key(name) && !TIMESTAMPS.contains(&column.type_oid);
    as_it_stands.then_some(column.name.as_str())
}

fn since_column<'t>(table: &'t Table, named: Option<&'t str>) -> Result<&'t str> {
    let columns = &table.relation.columns;
    if let Some(named) = named {
        ensure!(
            columns.iter().any(|column| column.name == named),
            "--column: {} publishes no column {named}",
            table.name()
        );
        return Ok(named);
    }
    let times: Vec<&str> = columns
        .iter()
        .filter(|column| TIMESTAMPS.contains(&column.type_oid))
        .map(|column| column.name.as_str())
        .collect();
    match times.as_slice() {
        [only] => Ok(only),
        [] => bail!("{} publishes no column with a time. Use --where", table.name()),
        several => bail!("--column: which of {}?", several.join(", ")),
    }
}

/// An event that would be emitted: its destination, the record, and the plan.
pub type Shown<'a> = (&'a str, &'a Record, &'a Plan);

/// Shows the events that would be emitted, and emits nothing.
pub fn show(
    selection: &mut Selection,
    (routes, source): (&Routes, &Source),
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
    (context, clients): (&SourceContext, &mut KafkaClients),
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
    clients.load_halted()?;
    let emitter = clients.emitter()?;
    let table = selection.table.name();
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

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
