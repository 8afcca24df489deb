//! `coroctl replay`: has the relay emit the last committed row of a payment's saga once more.
//!
//! * The row is the one whose event causes the next step. Emitting it again is safe at any time: the event has the same id.
//! * Only the relay emits. So this runs `cdc-relay replay` with the routes file that the relay runs with.
//! * Of several shards of a service those rows count that [`owned_rows`](crate::owned_rows) says. What the relay calls the source of
//!   a shard is not known here, so the operator names it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use uuid::Uuid;

use crate::databases::{self, DatabaseUrls, Databases};
use crate::find;
use crate::progress::{Facts, LastRow, last_row};
use crate::snapshots::SagaSnapshots;

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
    /// The source in the routes file that is the database of the row, where its service has several. Without it the command says which
    /// shard that is.
    #[arg(long, value_name = "NAME")]
    pub relay_source: Option<String>,
    #[command(flatten)]
    pub databases: DatabaseUrls,
}

const LAST_ENTRY: &str = "
    select kind from {ledger} l where user_id = $1 and payment_id = $2 order by phase desc limit 1";

const CHARGE: &str = "select status from {charges} c where payment_id = $1";

/// Runs the relay's command, whose output goes to the terminal.
///
/// # Errors
/// When a database does not answer, there is no such payment, nothing is to be emitted, or the relay's command fails.
pub async fn run(replay: &Replay) -> Result<()> {
    let databases = Databases::open(&replay.databases).await?;
    let payment_id = replay.payment_id;
    let snapshots = SagaSnapshots::take(&databases).await?;
    let payment = find::one(&snapshots.payments, payment_id).await?;
    let payment =
        payment.with_context(|| format!("there is no payment {payment_id}{}", snapshots.but_left_out()))?;
    // Without rows that are left out another one would be taken for the last.
    snapshots.ensure_decided(payment.user_id)?;
    let entry = snapshots.balance.query(LAST_ENTRY, &[&payment.user_id, &payment_id], "ledger").await?.pop();
    let charge = snapshots.processor.query(CHARGE, &[&payment_id], "charges").await?.pop();
    let facts = Facts {
        status: &payment.status,
        last_entry: entry.as_ref().map(|located| located.row.get(0)),
        charge: charge.as_ref().map(|located| located.row.get(0)),
        charge_agrees: true,
        parked_in: None,
    };
    let Some(last) = last_row(&facts) else {
        bail!("the payment waits for the gateway: its charge is under way, and no event would bring it on");
    };
    let (service, table, shard, condition) = match last {
        LastRow::Payment => ("payments", "payments", payment.shard.as_deref(), String::new()),
        LastRow::Entry(phase) => {
            let shard = entry.as_ref().and_then(|located| located.shard);
            ("balance", "ledger", shard, format!(" and phase = {phase}"))
        }
        LastRow::Charge => {
            ("processor", "charges", charge.as_ref().and_then(|located| located.shard), String::new())
        }
    };
    let source = match (&replay.relay_source, shard) {
        (Some(source), _) => source,
        (None, None) => service,
        (None, Some(shard)) => bail!(
            "the last row of {payment_id} is on shard {shard} of {service}: name the source in the routes file that is \
             this database: --relay-source"
        ),
    };
    let condition = format!("user_id = '{}' and payment_id = '{payment_id}'{condition}", payment.user_id);
    // The charge's row is found by its payment, also where it names another user.
    let condition = match last {
        LastRow::Charge => format!("payment_id = '{payment_id}'"),
        LastRow::Payment | LastRow::Entry(_) => condition,
    };
    let database = databases::name(service, shard);
    saga::say!("The last row of {payment_id} is in {database}.{table} ({condition}).");
    let mut command = Command::new(&replay.relay);
    command.arg("replay").arg("--routes").arg(&replay.routes).args(["--source", source, "--table", table]);
    command.args(["--where", &condition, if replay.dry_run { "--dry-run" } else { "--yes" }]);
    let status = command.status().with_context(|| format!("cannot run {}", replay.relay.display()))?;
    ensure!(status.success(), "{} replay failed ({status})", replay.relay.display());
    Ok(())
}
