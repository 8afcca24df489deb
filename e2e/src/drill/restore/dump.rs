//! A database is dropped, and comes back from a dump.

use anyhow::{Context, Result};
use coroctl::databases;

use super::CLOSED_TIMEOUT;
use super::files::{self, Files};
use super::loss::Database;
use crate::drill::harness::Harness;

/// # Errors
/// When a script fails.
pub async fn take(harness: &mut Harness, files: &Files, group: &[Database]) -> Result<()> {
    for database in group {
        files.run(harness, files::TAKE_DUMP, Some(*database)).await?;
    }
    Ok(())
}

/// The loss, of all at once: their slots go with them.
///
/// # Errors
/// When a database cannot be dropped.
pub async fn lose(harness: &Harness, group: &[Database]) -> Result<()> {
    let admin = databases::connect(&harness.stack.postgres_admin_url).await.context("Postgres")?;
    let names: Vec<&str> = group.iter().map(|database| database.name()).collect();
    for name in &names {
        // An active slot would refuse the drop, so nobody may connect any more.
        admin.batch_execute(&format!("alter database {name} allow_connections false")).await?;
    }
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = any($1)";
    for name in &names {
        let drop = format!("drop database {name} with (force)");
        let is_gone = async || {
            admin.execute(end, &[&names]).await?;
            Ok(admin.batch_execute(&drop).await.is_ok())
        };
        harness.until(CLOSED_TIMEOUT, "the database to be dropped", is_gone).await?;
    }
    Ok(())
}

/// # Errors
/// When a script fails.
pub async fn bring_back(harness: &mut Harness, files: &Files, group: &[Database]) -> Result<()> {
    for database in group {
        files.run(harness, files::DUMP_COMES_BACK, Some(*database)).await?;
    }
    Ok(())
}
