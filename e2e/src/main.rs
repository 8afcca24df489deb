//! The commands of `cargo stack` that look at a running Coro from outside.
#![allow(clippy::print_stdout, reason = "its reports are its output")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::audit::command::{self as audit, Audit};
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
    /// Every invariant over everything there is. Exits 1 when one is violated, 2 when it could not look.
    Audit(Audit),
    /// A load under kills and outages, compared with its plan, then the audit.
    Chaos(chaos::Options),
    /// Some payments to watch while Postgres, the relay and the processor are killed.
    Demo,
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    telemetry::init(LogFormat::Text);
    let report = match cli.command {
        Action::FirstPayment => first_payment::run(&Stack::from_env()?).await?,
        Action::Explain { payment_id } => explain::life(&Stack::from_env()?, payment_id).await?,
        // It needs no whole stack, and has exit codes of its own.
        Action::Audit(options) => return Ok(ExitCode::from(audit::run(&options).await)),
        Action::Bench(bench) => {
            bench::run(&Stack::from_env()?, &bench).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Action::Chaos(options) => {
            chaos::run(&Stack::from_env()?, &options).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Action::Demo => {
            demo::run(&Stack::from_env()?).await?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
