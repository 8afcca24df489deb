//! A standby that has not received everything takes the place of the cluster.
//!
//! * It receives WAL as any standby does, until its link breaks. What is committed then is lost with the cluster.
//! * The stack reaches its cluster by a port. So once the standby is promoted, its data take the place of those that were lost: in
//!   production its address does.

use std::time::Duration;

use anyhow::{Context, Result};
use coroctl::databases;
use stack::control::Request;
use stack::servers::Server;

use super::BEFORE;
use super::cluster::{self, SERVER, STANDBY};
use super::files::{self, Files};
use crate::drill::harness::Harness;

/// The standby's port, counted from the stack's first. It has no service there.
const PORT: u16 = 99;
const STREAMS_TIMEOUT: Duration = Duration::from_secs(120);

/// # Errors
/// When the standby does not follow, or a script fails.
pub async fn take(harness: &mut Harness, files: &mut Files) -> Result<()> {
    files.run(harness, files::MAKE_STANDBY, None).await?;
    start(harness, files).await?;
    harness.accepts(BEFORE).await?;
    let admin = cluster::admin(&harness.stack).await?;
    let committed: String = admin.query_one("select pg_current_wal_lsn()::text", &[]).await?.get(0);
    let replayed = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
    let url = files.standby_url.clone();
    let follows =
        async || Ok(databases::connect(&url).await?.query_one(replayed, &[&committed]).await?.get(0));
    harness.until(STREAMS_TIMEOUT, "the standby to follow", follows).await?;
    let standby = databases::connect(&url).await.context("the standby")?;
    for statement in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
        standby.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    let received = "select not exists (select from pg_stat_wal_receiver)";
    let is_alone = async || Ok(standby.query_one(received, &[]).await?.get(0));
    harness.until(STREAMS_TIMEOUT, "the standby to receive nothing any more", is_alone).await?;
    harness.view.line("the link to the standby broke");
    Ok(())
}

/// Starts the standby beside the cluster, as another process of the stack.
async fn start(harness: &Harness, files: &mut Files) -> Result<()> {
    let layout = files.layout.clone();
    let mut specs = Server::Postgres.alone(&layout)?;
    let mut spec = specs.pop().context("Postgres has a process")?;
    let (port, data) = (layout.base_port + PORT, files.standby().display().to_string());
    STANDBY.clone_into(&mut spec.name);
    spec.argv.truncate(1);
    spec.argv.extend(["-D".to_owned(), data, "-c".to_owned(), format!("port={port}")]);
    (spec.log, spec.port) = (layout.log(STANDBY), Some(port));
    cluster::ask(&layout, Request::Run { spec }).await?;
    let admin_url = &harness.stack.postgres_admin_url;
    let primary = format!(":{}/", layout.port(stack::layout::Port::Postgres));
    files.standby_url = admin_url.replacen(&primary, &format!(":{port}/"), 1);
    let url = &files.standby_url;
    let answers = async || Ok(databases::connect(url).await.is_ok());
    harness.until(STREAMS_TIMEOUT, "the standby to answer", answers).await
}

/// # Errors
/// When a script fails, or the promoted standby does not start in the place of the lost cluster.
pub async fn bring_back(harness: &mut Harness, files: &Files) -> Result<()> {
    files.run(harness, files::STANDBY_TAKES_OVER, None).await?;
    cluster::remove_standby(&files.layout).await?;
    std::fs::rename(files.standby(), files.layout.postgres_data()).context("the standby's data")?;
    harness.cargo_stack(&["start", SERVER]).await.map(drop)
}
