//! The commands of `cargo stack` that put a load on a running Coro.

use anyhow::Result;
use clap::{Parser, Subcommand};
use coroctl::stack::Stack;
use e2e::bench::{self, Bench};
use e2e::{chaos, demo, drill, leader, load};
use saga::telemetry::{self, LogFormat};

#[derive(Parser)]
#[command(name = "e2e", about = "Loads, faults and measurements; usually called by `cargo stack`")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// A load under kills and outages, compared with its plan, then the audit.
    Chaos(chaos::Options),
    /// Some payments to watch while Postgres, the relay and the processor are killed.
    Demo,
    /// Break one thing, wait for its alert, and mend it by the runbook's own scripts.
    Drill(drill::Options),
    /// Lose nodes of a highly available stack under load: of Postgres, etcd, Kafka, RabbitMQ.
    Leader(leader::Options),
    /// A load of compose/k6/profiles.json, then the audit.
    Load(load::Options),
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[tokio::main]
async fn main() -> Result<()> {
    saga::http::install_provider();
    let cli = Cli::parse();
    telemetry::init(LogFormat::Text);
    let stack = Stack::from_env()?;
    match cli.command {
        Action::Bench(bench) => bench::run(&stack, &bench).await,
        Action::Chaos(options) => chaos::run(&stack, &options).await,
        Action::Demo => demo::run(&stack).await,
        Action::Drill(options) => drill::run(&stack, &options).await,
        Action::Leader(options) => Box::pin(leader::run(&stack, &options)).await,
        Action::Load(options) => load::run(&stack, &options).await,
    }
}
