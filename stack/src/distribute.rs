//! Gives the shards of a stack their buckets, before a service knows them.
//!
//! * Those of a new stack are shared out (`coroctl shard distribute`). A shard that is added to a stack with data owns none
//!   (`coroctl shard add`): an operator moves some to it.
//! * Interrupted anywhere, it is done again; but for the auditor's start, which is the last.

use anyhow::{Context, Result, ensure};

use crate::beside::until_it_streams;
use crate::control::{Client, Request};
use crate::layout::Layout;
use crate::login::Login;
use crate::services::{Instance, Service};
use crate::shards::{self, DATABASES, FurtherShard};
use crate::up::wait_for_service;
use crate::{environment, workspace};

/// Returns the shards that were added.
///
/// # Errors
/// When a shard does not answer, or has rows.
pub fn run(layout: &Layout) -> Result<Vec<FurtherShard>> {
    let added = FurtherShard::added(layout);
    match layout.shared_out() {
        None => coroctl(layout, &["distribute"])?,
        Some(_) => added.iter().try_for_each(|shard| coroctl(layout, &["add", shard.name()]))?,
    }
    shards::keep_all(layout)?;
    environment::write(layout)?;
    shards::write_routes(layout, &layout.root)?;
    Ok(added)
}

/// Waits until the relay reads the shards that were added. The auditor starts anew: it reads its list at its start. Services have read
/// theirs, or do when a bucket moves.
///
/// # Errors
/// When the relay or the auditor does not get ready.
pub fn introduce(layout: &Layout, added: &[FurtherShard]) -> Result<()> {
    let sources: Vec<String> = added.iter().flat_map(|shard| shard.sources()).collect();
    for instance in Instance::of(layout) {
        match instance.service {
            Service::Relay => until_it_streams(layout, instance, &sources)?,
            Service::Auditor => {
                Client::of_running(layout)?.send(&Request::Restart { name: instance.name.to_owned() })?;
                wait_for_service(layout, instance)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// `coroctl shard` on each database.
fn coroctl(layout: &Layout, arguments: &[&str]) -> Result<()> {
    let program = workspace::binary(layout, "coroctl").display().to_string();
    for database in DATABASES {
        let mut command = workspace::command(layout, &program);
        command.arg("shard").args(arguments);
        let all = FurtherShard::of(layout);
        command.env("SHARDS_ADMIN", shards::list_of(layout, &all, database, Login::Superuser)?);
        let output = command.output().with_context(|| format!("cannot run {program}"))?;
        let reason = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`coroctl shard {}` of {database}: {}",
            arguments.join(" "),
            reason.trim()
        );
    }
    Ok(())
}
