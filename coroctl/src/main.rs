//! The operator's command.
#![allow(clippy::print_stdout, reason = "its reports are its output")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use coroctl::audit::command::{self as audit, Audit};
use coroctl::stack::Stack;
use coroctl::{explain, first_payment};
use saga::telemetry::{self, LogFormat};
use uuid::Uuid;

/// Looks at a running Coro: explains a payment, audits everything there is.
///
/// Addresses come from the environment (`. .stack/env` sets them all) or, for `audit`, from options.
/// `audit` and `explain` read only.
#[derive(Parser)]
#[command(name = "coroctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print the whole life of one payment, and the step that it waits for.
    ///
    /// Its rows in the three databases, its events with their offsets, the gateway's answer, and milliseconds per hop.
    Explain {
        /// The payment_id of the 201.
        payment_id: Uuid,
    },
    /// Check every invariant over everything there is.
    ///
    /// Exit codes: 0 every check that was made holds, 1 an invariant is violated, 2 the audit could not be made.
    Audit(Box<Audit>),
    /// Deposit, pay, wait for the end, and print the payment's life.
    ///
    /// It writes: a deposit for DEMO_USER_ID, and one payment.
    FirstPayment,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    saga::http::install_provider();
    let cli: Cli = secret_files::try_parse().unwrap_or_else(|error| error.exit());
    telemetry::init(LogFormat::Text);
    let report = match cli.command {
        Action::FirstPayment => first_payment::run(&Stack::from_env()?).await?,
        Action::Explain { payment_id } => explain::life(&Stack::from_env()?, payment_id).await?,
        // It needs no whole stack, and has exit codes of its own.
        Action::Audit(options) => return Ok(ExitCode::from(audit::run(&options).await)),
    };
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
