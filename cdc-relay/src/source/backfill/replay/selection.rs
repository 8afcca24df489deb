//! Chooses the rows of a replay, reads them in one snapshot, and waits until the relay has emitted them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::{self, Scratch};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::postgres::sql::{identifier, literal};
use crate::routes::row::Row;
use crate::routes::{Source, Table as Routed, TableName};
use crate::source::backfill::rows::{self, Table};
use crate::source::inspect::{self, text};

/// The prefix of the logical message that marks the WAL. Nobody reads it.
const PREFIX: &str = "cdc-relay.replay";
/// How often the slot is queried.
const SLOT_INTERVAL: Duration = Duration::from_millis(100);
/// A shorter wait is not reported.
const WAIT_NOTICE_MIN: Duration = Duration::from_secs(1);
/// How long the server may take to find the first row.
const FIRST_ROW_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The oids of the types that hold a time.
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
    pub database: Database,
    pub(super) session: Session,
    pub table: Table,
    sql: String,
    /// The Kafka key to compare, where the query cannot choose by it.
    pub(super) key: Option<String>,
    pub(super) limit: Option<u64>,
}

impl Selection {
    /// Prepares the query, and takes the snapshot that the rows are read in.
    pub fn open(
        database: Database,
        source: &Source,
        table: &str,
        rows: &Rows,
        limit: Option<u64>,
    ) -> Result<Selection> {
        let name: TableName = table.parse().map_err(|problem| anyhow::anyhow!("--table: {problem}"))?;
        let routed = source.table(&name).with_context(|| format!("--table: {name} has no routes"))?;
        let mut session = Session::connect_to_read(&database)?;
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
        Ok(Selection { database, session, table, sql, key, limit })
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
        let mut other = Session::connect_to_read(&self.database)?;
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
    pub(super) fn each(&mut self, mut each: impl FnMut(&Row<'_>) -> Result<bool>) -> Result<()> {
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

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
