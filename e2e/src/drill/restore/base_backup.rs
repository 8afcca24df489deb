//! The cluster comes back from a base backup and the WAL that was archived since, up to a point in time.
//!
//! * Payments that were accepted between the base backup and that time come back by the WAL alone: each of them has to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use uuid::Uuid;

use super::BEFORE;
use super::cluster;
use super::files::{self, Files};
use crate::drill::harness::Harness;

/// A segment is copied within a moment; the server tries again after a minute what failed.
const ARCHIVED_TIMEOUT: Duration = Duration::from_secs(90);

/// # Errors
/// When the server archives nothing, or a script fails.
pub async fn take(harness: &mut Harness, files: &Files) -> Result<()> {
    let admin = cluster::admin(&harness.stack).await?;
    let mode: String = admin.query_one("show archive_mode", &[]).await?.get(0);
    ensure!(
        mode == "on",
        "archive_mode is {mode}; the stack is of an earlier version: cargo stack down, then up"
    );
    files.run(harness, files::TAKE_BASE_BACKUP, None).await?;
    harness.accepts(BEFORE).await
}

/// The time of the server, as it reads it.
///
/// # Errors
/// When it does not answer.
pub async fn now(harness: &Harness) -> Result<String> {
    let admin = cluster::admin(&harness.stack).await?;
    Ok(admin.query_one("select clock_timestamp()::text", &[]).await.context("the server's time")?.get(0))
}

/// The WAL up to now is in the archive, as with `archive_timeout`; then the cluster is lost.
///
/// # Errors
/// When a segment is not archived in time, or the server cannot be killed.
pub async fn lose(harness: &Harness, files: &Files) -> Result<()> {
    let admin = cluster::admin(&harness.stack).await?;
    let switch = "select pg_walfile_name(pg_switch_wal())";
    let segment: String = admin.query_one(switch, &[]).await.context("pg_switch_wal")?.get(0);
    let archived = "select coalesce(last_archived_wal >= $1, false) from pg_stat_archiver";
    let is_archived = async || Ok(admin.query_one(archived, &[&segment]).await?.get(0));
    harness.until(ARCHIVED_TIMEOUT, "the last segment to be archived", is_archived).await?;
    cluster::lose(harness, &files.layout).await
}

/// # Errors
/// When a script fails, or a payment from before the time is not there.
pub async fn bring_back(harness: &mut Harness, files: &Files, before: &[Uuid]) -> Result<()> {
    files.run(harness, files::CLUSTER_COMES_BACK, None).await?;
    // A reader is let in, whether a database is open or closed.
    let reader = databases::reader("payments", &harness.stack.payments_database_url).await?;
    let count = "select count(*) from payments where payment_id = any($1)";
    let there: i64 = reader.query_one(count, &[&before]).await.context("payments")?.get(0);
    ensure!(
        there == i64::try_from(before.len())?,
        "{there} of {} payments from before {} are there",
        before.len(),
        files.target_time
    );
    harness
        .note(format!("All {there} payments from before the point in time came back by base backup and WAL"));
    Ok(())
}
