//! Benchmarks of a running stack: throughput, latencies, and processor time (`cargo stack bench NAME`).
//!
//! * [`relay`]: the relay beside Debezium, on one backlog.
//! * [`saga`]: whole payments: a closed loop beside the SQL floor, then open loops at given rates.
//! * [`waiters`]: the cost of clients that follow their payments.
//! * [`shard_away`]: what users of the other shards see while one shard is away.
//! * The generator shares the machine with everything it measures, so it is cheap and accounts for itself.

pub mod audited;
pub mod caller;
pub mod closed;
pub mod costs;
pub mod cpu;
pub mod endings;
pub mod figures;
pub mod floor;
pub mod floor_sql;
pub mod latency;
pub mod open;
pub mod relay;
pub mod saga;
pub mod shard_away;
pub mod users;
pub mod waiters;

use anyhow::Result;
use clap::Subcommand;

use coroctl::stack::Stack;

/// A benchmark.
#[derive(Subcommand)]
pub enum Bench {
    /// Whole payments: settled per second beside SQL alone, latencies, processor time.
    Saga(saga::Options),
    /// The relay beside Debezium and `pg_recvlogical`: rows per second, processor time, memory, latencies.
    Relay(relay::Options),
    /// Clients that follow their payments: memory of many streams, processor time of many waiters.
    Waiters(waiters::Options),
    /// One of several shards is stopped: latencies of the users of the others.
    ShardAway(shard_away::Options),
}

/// Measures, prints the figures, and fails if money, a payment or a row went missing meanwhile.
pub async fn run(stack: &Stack, bench: &Bench) -> Result<()> {
    match bench {
        Bench::Saga(options) => saga::run(stack, options).await,
        Bench::Relay(options) => relay::run(stack, options).await,
        Bench::Waiters(options) => waiters::run(stack, options).await,
        Bench::ShardAway(options) => shard_away::run(stack, options).await,
    }
}
