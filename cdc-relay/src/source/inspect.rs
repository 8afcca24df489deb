//! Queries the cluster and the slot.

use anyhow::{Result, ensure};

#[cfg(feature = "sinks")]
use crate::checkpoint::state::Checkpoint;
use crate::checkpoint::state::{Cluster, Slot};
#[cfg(feature = "sinks")]
use crate::postgres::connection_url::Database;
use crate::postgres::error::PostgresError;
use crate::postgres::lsn::Lsn;
use crate::postgres::session::{Row, Session};
use crate::postgres::sql::{self, literal};
#[cfg(feature = "sinks")]
use crate::source::succession::{Candidate, Instance};

pub fn text(row: &Row, index: usize) -> &str {
    row.get(index).and_then(Option::as_deref).unwrap_or_default()
}

/// Connects a command to the checkpoint's server, or to one that was promoted since. From then on no connection goes to a former
/// primary.
///
/// # Errors
/// No host can be reached, or, of several, only a former primary.
#[cfg(feature = "sinks")]
pub fn connect(database: &Database, checkpoint: Option<&Checkpoint>) -> Result<Session, PostgresError> {
    database.keep_to(checkpoint.map(Into::into));
    Session::connect(database)
}

/// Returns the cluster and the name of the session's database.
pub fn cluster(session: &mut Session) -> Result<(Cluster, String), PostgresError> {
    let rows = session.query("IDENTIFY_SYSTEM")?;
    let row =
        rows.first().ok_or_else(|| PostgresError::Protocol("IDENTIFY_SYSTEM returned no row".to_owned()))?;
    let cluster = Cluster {
        system_id: text(row, 0).to_owned(),
        timeline: text(row, 1).parse().unwrap_or_default(),
        flush: text(row, 2).parse().unwrap_or_default(),
    };
    Ok((cluster, text(row, 3).to_owned()))
}

/// Like [`cluster`], of a server that writes.
///
/// A server in recovery may be promoted before the slot is ours, and nothing would show the new timeline then. A server out
/// of recovery keeps its timeline while the session lasts, so the order of the two queries matters.
pub fn primary(session: &mut Session) -> Result<(Cluster, String)> {
    ensure!(!standby(session)?, "the server is in recovery: the relay begins once it is a primary");
    Ok(cluster(session)?)
}

/// Whether the server is in recovery, as a standby is until it is promoted.
pub fn standby(session: &mut Session) -> Result<bool, PostgresError> {
    let rows = session.query("select pg_catalog.pg_is_in_recovery()")?;
    Ok(rows.first().is_some_and(|row| text(row, 0) == "t"))
}

/// Returns the history file of a timeline. It is empty for the first timeline, which has none.
pub fn timeline_history(session: &mut Session, timeline: u32) -> Result<String, PostgresError> {
    if timeline <= 1 {
        return Ok(String::new());
    }
    let rows = session.query(&format!("TIMELINE_HISTORY {timeline}"))?;
    Ok(rows.first().map(|row| text(row, 1).to_owned()).unwrap_or_default())
}

pub fn slot(session: &mut Session, name: &str) -> Result<Option<Slot>, PostgresError> {
    let rows = session.query(&format!(
        "select plugin, database, coalesce(wal_status, 'lost'), confirmed_flush_lsn, active_pid \
         from pg_catalog.pg_replication_slots where slot_name = {}",
        literal(name)
    ))?;
    Ok(rows.first().map(|row| Slot {
        plugin: text(row, 0).to_owned(),
        database: text(row, 1).to_owned(),
        wal_status: text(row, 2).to_owned(),
        confirmed: text(row, 3).parse::<Lsn>().ok(),
        active_pid: text(row, 4).parse().ok(),
    }))
}

/// The other relays that wait for the candidate's slot.
#[cfg(feature = "sinks")]
pub fn standbys(session: &mut Session, candidate: &Candidate) -> Result<Vec<Instance>, PostgresError> {
    let rows = session.query(&format!(
        "select application_name from pg_catalog.pg_stat_activity \
         where datname = current_database() and pid <> pg_catalog.pg_backend_pid() and starts_with(application_name, {})",
        literal(&candidate.sessions())
    ))?;
    Ok(rows.iter().filter_map(|row| candidate.waiting(text(row, 0))).collect())
}

/// The command that makes the slot.
pub fn slot_creation(name: &str) -> String {
    // Without a snapshot: a first start does not emit the existing rows.
    format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput NOEXPORT_SNAPSHOT",
        sql::replication_identifier(name)
    )
}
