//! The commands of `cargo stack` that look at a running Coro from outside.
#![allow(clippy::print_stdout, reason = "its reports are its output")]

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::bench::{self, Bench};
use e2e::stack::Stack;
use e2e::{chaos, demo, explain, first_payment};
use saga::telemetry::{self, LogFormat};
use uuid::Uuid;

#[derive(Parser)]
#[command(name = "e2e", about = "Coro from outside; usually called by `cargo stack`")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Deposit, pay, and print the payment's life.
    FirstPayment,
    /// The whole life of one payment, and where it stands still.
    Explain { payment_id: Uuid },
    /// A load under kills and outages, compared with its plan, then the audit.
    Chaos(chaos::Options),
    /// Some payments to watch while Postgres, the relay and the processor are killed.
    Demo,
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    telemetry::init(LogFormat::Text);
    let stack = Stack::from_env()?;
    let report = match cli.command {
        Action::FirstPayment => first_payment::run(&stack).await?,
        Action::Explain { payment_id } => explain::life(&stack, payment_id).await?,
        Action::Chaos(options) => return chaos::run(&stack, &options).await,
        Action::Demo => return demo::run(&stack).await,
        Action::Bench(bench) => return bench::run(&stack, &bench).await,
    };
    println!("{report}");
    Ok(())
}
