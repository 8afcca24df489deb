//! The cluster is lost as a whole: its server is killed, and its data are out of reach.
//!
//! * The data are moved aside, and removed when the drill has brought back others. If nothing took their place, they come back.
//! * What a drill has set on the server is reset, since it comes back with the data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use coroctl::stack::Stack;
use stack::control::{Client, Request};
use stack::layout::Layout;
use tokio_postgres::Client as Session;

use crate::drill::harness::Harness;
use crate::drill::script;

pub const SERVER: &str = "postgres";
/// The standby's name in the stack, for as long as there is one.
pub const STANDBY: &str = "postgres-standby";
/// What the drill or the runbook has set, here or in a copy that took the cluster's place.
const SETTINGS: [&str; 5] = [
    "archive_command",
    "restore_command",
    "recovery_target_time",
    "recovery_target_action",
    "primary_conninfo",
];

/// The loss.
///
/// # Errors
/// When the server cannot be killed, or its data cannot be moved.
pub async fn lose(harness: &Harness, layout: &Layout) -> Result<()> {
    harness.cargo_stack(&["kill", SERVER]).await?;
    std::fs::rename(layout.postgres_data(), aside(layout)).context("cannot move the cluster aside")
}

/// Where the data of the lost cluster are meanwhile.
fn aside(layout: &Layout) -> PathBuf {
    layout.postgres_data().with_extension("lost")
}

/// Ends it well: nothing of the drill stays.
///
/// # Errors
/// When the server refuses, or the old data cannot be removed.
pub async fn end(stack: &Stack, layout: &Layout) -> Result<()> {
    reset(stack).await?;
    std::fs::remove_dir_all(aside(layout)).context("the lost cluster")
}

/// Puts the lost cluster back if nothing has taken its place, and removes what the drill had started and set.
///
/// # Errors
/// When a cluster that the runbook brought back is in its place, or the server does not start.
pub async fn undo(stack: &Stack, layout: &Layout) -> Result<()> {
    remove_standby(layout).await?;
    let (cluster, aside) = (layout.postgres_data(), aside(layout));
    if is_there(&aside) && !is_there(&cluster) {
        std::fs::rename(&aside, &cluster).context("cannot put the cluster back")?;
    }
    if !is_there(&cluster) {
        // A stack with several servers: there was none to lose.
        return Ok(());
    }
    script::cargo_stack(&["start", SERVER]).await?;
    reset(stack).await?;
    ensure!(!is_there(&aside), "another cluster is in its place; the lost one is in {}", aside.display());
    Ok(())
}

/// Whether there are data of a cluster.
pub fn is_there(cluster: &Path) -> bool {
    cluster.join("PG_VERSION").is_file()
}

/// # Errors
/// When the supervisor does not answer.
pub async fn remove_standby(layout: &Layout) -> Result<()> {
    ask(layout, Request::Remove { name: STANDBY.to_owned() }).await
}

/// # Errors
/// When the supervisor does not answer, or refuses.
pub async fn ask(layout: &Layout, request: Request) -> Result<()> {
    let layout = layout.clone();
    // The supervisor's protocol blocks.
    let asked = move || Client::of_running(&layout)?.send(&request).map(drop);
    tokio::task::spawn_blocking(asked).await.context("the request to the supervisor panicked")?
}

/// A session of the superuser.
///
/// # Errors
/// When the server does not answer.
pub async fn admin(stack: &Stack) -> Result<Session> {
    databases::connect(&stack.postgres_admin_url).await.context("Postgres")
}

async fn reset(stack: &Stack) -> Result<()> {
    let admin = admin(stack).await?;
    for setting in SETTINGS {
        admin.batch_execute(&format!("alter system reset {setting}")).await.context(setting)?;
    }
    admin.batch_execute("select pg_reload_conf()").await.context("pg_reload_conf")
}
