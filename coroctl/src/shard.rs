//! `coroctl shard`: the shards of a service, and moves of buckets between them.
//!
//! * [`list`], [`plan`], [`verify`] read only. [`connections`]: the shards by their names, and the map that services make of them.
//! * [`services`]: what each shard of payments has. [`adopt`]: what a restored shard gives up. [`distribute`]: the buckets of new databases. [`moving`]: `add`, `move`, `drain`. [`interrupted`]: `moves`, `resume`, `abort`. [`mover`]:
//!   carries out a move.
//! * [`moves`]: the next step of a move, from what its two shards recorded.
//! * [`conditions`]: whether a move may begin. [`replication`]: the SQL by which its rows are copied.

pub mod adopt;
pub mod conditions;
pub mod connections;
pub mod distribute;
pub mod interrupted;
pub mod list;
pub mod mover;
pub mod moves;
pub mod moving;
pub mod plan;
pub mod replication;
mod services;
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
    /// Have a new, empty database give up every bucket, before the services know it, and take what can be paid from another shard.
    Add(moving::Add),
    /// Share the buckets of new, empty databases out among them, as the plan has it.
    ///
    /// Nothing is copied: it is refused where a database has rows, or a bucket was ever moved. Run again, it goes on where it was
    /// interrupted, and changes nothing where everything is as planned.
    Distribute(distribute::Distribute),
    /// Move buckets from one shard to another, while services write to them.
    ///
    /// Rows are copied by logical replication. Then nobody owns the buckets for 300 ms, unless a server fails in that time; requests
    /// about them wait. It is refused, with all reasons, before anything is changed.
    Move(moving::Begin),
    /// Move all buckets of a shard to where they belong without it.
    Drain(moving::Drain),
    /// Have a restored shard give up the buckets that were moved after its backup, before it is opened.
    Adopt(adopt::Adopt),
    /// Print the moves that have not ended.
    Moves(interrupted::Listing),
    /// Go on with a move that was interrupted.
    Resume(interrupted::Open),
    /// Roll a move back. After the grant it goes forward all the same.
    Abort(interrupted::Open),
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
        Shard::Add(options) => moving::add(options).await,
        Shard::Distribute(options) => distribute::run(options).await,
        Shard::Move(options) => moving::begin(options).await,
        Shard::Drain(options) => moving::drain(options).await,
        Shard::Adopt(options) => adopt::run(options).await,
        Shard::Moves(options) => interrupted::list_moves(options).await,
        Shard::Resume(options) => interrupted::resume(options).await,
        Shard::Abort(options) => interrupted::abort(options).await,
    }
}
