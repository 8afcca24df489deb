//! `coroctl replay`: has the relay emit the last committed row of a payment's saga once more.
//!
//! * The row is the one whose event causes the next step. Emitting it again is safe at any time: the event has the same id.
//! * Only the relay emits. So this runs `cdc-relay replay` with the routes file that the relay runs with.

#![allow(clippy::print_stdout, reason = "its report is its output")]

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use uuid::Uuid;

use crate::databases::{DatabaseUrls, Databases};
use crate::find;
use crate::progress::{Facts, LastRow, last_row};

#[derive(Args)]
pub struct Replay {
    /// The payment_id of the 201.
    pub payment_id: Uuid,
    /// Print what would be emitted, and emit nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// The program of the relay. It takes its own variables: those of the routes file, KAFKA_BROKERS, KAFKA_CONFIG, AMQP_URL.
    #[arg(long, env = "RELAY_PROGRAM", value_name = "PROGRAM", default_value = "cdc-relay")]
    pub relay: PathBuf,
    /// The routes file with which the relay runs.
    #[arg(long, env = "RELAY_ROUTES", value_name = "FILE")]
    pub routes: PathBuf,
    #[command(flatten)]
    pub databases: DatabaseUrls,
}

const LAST_ENTRY: &str = "
    select kind from ledger where user_id = $1 and payment_id = $2 order by phase desc limit 1";

const CHARGE: &str = "select status from charges where payment_id = $1";

/// Runs the relay's command, whose output goes to the terminal.
///
/// # Errors
/// When a database does not answer, there is no such payment, nothing is to be emitted, or the relay's command fails.
pub async fn run(replay: &Replay) -> Result<()> {
    let databases = Databases::open(&replay.databases).await?;
    let payment_id = replay.payment_id;
    let payment = find::one(&databases.payments, payment_id).await?;
    let payment = payment.with_context(|| format!("there is no payment {payment_id}"))?;
    let entry =
        databases.balance.query_opt(LAST_ENTRY, &[&payment.user_id, &payment_id]).await.context("ledger")?;
    let charge = databases.processor.query_opt(CHARGE, &[&payment_id]).await.context("charges")?;
    let facts = Facts {
        status: &payment.status,
        last_entry: entry.as_ref().map(|row| row.get(0)),
        charge: charge.as_ref().map(|row| row.get(0)),
        charge_agrees: true,
        parked_in: None,
    };
    let Some(last) = last_row(&facts) else {
        bail!("the payment waits for the gateway: its charge is under way, and no event would bring it on");
    };
    let (source, table, condition) = match last {
        LastRow::Payment => ("payments", "payments", String::new()),
        LastRow::Entry(phase) => ("balance", "ledger", format!(" and phase = {phase}")),
        LastRow::Charge => ("processor", "charges", String::new()),
    };
    let condition = format!("user_id = '{}' and payment_id = '{payment_id}'{condition}", payment.user_id);
    // The charge's row is found by its payment, also where it names another user.
    let condition = match last {
        LastRow::Charge => format!("payment_id = '{payment_id}'"),
        LastRow::Payment | LastRow::Entry(_) => condition,
    };
    println!("The last row of {payment_id} is in {source}.{table} ({condition}).");
    let mut command = Command::new(&replay.relay);
    command.arg("replay").arg("--routes").arg(&replay.routes).args(["--source", source, "--table", table]);
    command.args(["--where", &condition, if replay.dry_run { "--dry-run" } else { "--yes" }]);
    let status = command.status().with_context(|| format!("cannot run {}", replay.relay.display()))?;
    ensure!(status.success(), "{} replay failed ({status})", replay.relay.display());
    Ok(())
}
