//! `coroctl shard`: the shards of a service, and moves of buckets between them.
//!
//! * [`list`], [`plan`], [`verify`] read only. [`connections`]: the shards by their names, and the map that services make of them.
//! * [`moves`]: the next step of a move, from what its two shards recorded.
//! * [`conditions`]: whether a move may begin. [`replication`]: the SQL by which its rows are copied.

pub mod conditions;
pub mod connections;
pub mod list;
pub mod moves;
pub mod plan;
pub mod replication;
pub mod verify;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Shard {
    /// Print the shards of a service, and the buckets that each owns.
    List(list::List),
    /// Print the moves that bring each bucket to the shard that should own it.
    ///
    /// A shard that is new in the list takes its part from all others, and one that is drained gives its own to all others.
    Plan(plan::Plan),
    /// Check that every row is on the shard that owns its user's bucket.
    ///
    /// It reads every table that has a user_id, whole. Exit code 1 when a row is elsewhere, or a bucket has two owners.
    Verify(verify::Verify),
}

/// Carries out one of the commands.
///
/// # Errors
/// As each says.
pub async fn run(command: &Shard) -> Result<()> {
    match command {
        Shard::List(options) => list::run(options).await,
        Shard::Plan(options) => plan::run(options).await,
        Shard::Verify(options) => verify::run(options).await,
    }
}
