//! Gives the shards of a stack their buckets, before a service knows them, and introduces those that were added.
//!
//! * Those of a new stack are shared out (`coroctl shard distribute`). A shard that is added to a stack with data owns none
//!   (`coroctl shard add`): an operator moves some to it.
//! * Services know a shard once it owns what it should. Operators know it once the relay reads it: what is written to a shard before is
//!   never emitted.
//! * Interrupted anywhere, the next `up` goes on.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::beside::until_it_streams;
use crate::control::{Client, Request};
use crate::layout::Layout;
use crate::login::Login;
use crate::services::{Instance, Service};
use crate::shards::kept::Kept;
use crate::shards::{self, DATABASES, FurtherShard};
use crate::up::wait_for_service;
use crate::{environment, workspace};

/// Returns the shards that are to be [introduced](introduce).
///
/// # Errors
/// When a shard does not answer, or has rows.
pub fn run(layout: &Layout, programs: &Path) -> Result<Vec<FurtherShard>> {
    let kept = Kept::of(layout);
    if kept.known == 0 {
        coroctl(layout, programs, &["distribute"])?;
        // The first services, with the first relay, are still to start.
        Kept { known: kept.count, introduced: kept.count, ..kept }.keep(layout)?;
        return Ok(Vec::new());
    }
    // Again until it is introduced: operators may have changed the services of the others meanwhile.
    let added = FurtherShard::after(layout, kept.introduced);
    for shard in &added {
        coroctl(layout, programs, &["add", shard.name()])?;
    }
    if !added.is_empty() {
        Kept { known: kept.count, ..kept }.keep(layout)?;
        shards::write_routes(layout, &layout.root)?;
    }
    Ok(added)
}

/// Waits until the relay reads the shards that were added. The auditor starts anew: it reads its list at its start. Services have read
/// theirs, or do when a bucket moves.
///
/// # Errors
/// When the relay or the auditor does not get ready.
pub fn introduce(layout: &Layout, added: &[FurtherShard]) -> Result<()> {
    let sources: Vec<String> = added.iter().flat_map(|shard| shard.sources()).collect();
    let mut client = Client::of_running(layout)?;
    let children = client.status()?;
    for instance in Instance::of(layout) {
        let runs = children.iter().any(|child| child.name == instance.name && child.id.is_some());
        match instance.service {
            Service::Relay => until_it_streams(layout, instance, &sources)?,
            Service::Auditor if runs => {
                client.send(&Request::Restart { name: instance.name.to_owned() })?;
                wait_for_service(layout, instance)?;
            }
            _ => {}
        }
    }
    let kept = Kept::of(layout);
    Kept { introduced: kept.known, ..kept }.keep(layout)?;
    environment::write(layout)
}

/// `coroctl shard` on each database.
fn coroctl(layout: &Layout, programs: &Path, arguments: &[&str]) -> Result<()> {
    let program = programs.join("coroctl").display().to_string();
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
