//! Each database is lost in turn, while payments go on, and comes back from a backup that lacks hundreds of them.
//!
//! * The loss is real: the database is dropped, and its slot with it. Only the dump is left.
//! * It has to come back closed: its service says so, clients get 503 with a time to come back, and nothing is charged by a
//!   processor that has forgotten what it did.
//! * The runbook's scripts take the backup, bring it back, name what it lacks, make that again, and start the relay.
//! * What clients have noted since the backup has to be there: each request that is repeated has the same payment.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::client::order;
use coroctl::databases;
use coroctl::stack::Stack;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use uuid::Uuid;

use super::harness::Harness;
use crate::steady_load::{self, Paid};

const PAGE: &str = "restore.md";
/// Payments that the backup has, and those that it lacks.
const BEFORE: usize = 20;
const LOST: usize = 150;
/// A part of them at a time, since a wait for payments is bounded.
const AT_ONCE: usize = 50;
/// Charges whose outcome is not known when the database is lost: charged and unanswered, charged later, never charged.
const UNDER_WAY: [&str; 6] = [
    "0812-thenhang",
    "0812-thenreset",
    "0812-hang",
    "0812-reset",
    "0812-late12000",
    "0812-thenhttp500-lag3000",
];
const AMOUNT: i64 = 20;
const END_TIMEOUT: Duration = Duration::from_secs(120);
const CLOSED_TIMEOUT: Duration = Duration::from_secs(30);
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
const REPEATED_AT_ONCE: usize = 8;

/// A database of the saga, and the service that owns it.
struct Target {
    database: &'static str,
    service: &'static str,
}

const TARGETS: [Target; 3] = [
    Target { database: "balance", service: "balance-svc" },
    Target { database: "processor", service: "processor-svc" },
    Target { database: "payments", service: "payments-svc" },
];

/// # Errors
/// When a step of the runbook fails, a database is not closed, or what was lost is not there again.
pub async fn play(harness: &mut Harness) -> Result<()> {
    for target in &TARGETS {
        lose_and_recover(harness, target).await.with_context(|| target.database)?;
    }
    let is_documented = |answer: &&String| !answer.contains("500 Internal");
    let undocumented = harness.load.failed().into_iter().find(|answer| !is_documented(&answer));
    ensure!(undocumented.is_none(), "a client was answered: {}", undocumented.unwrap_or_default());
    Ok(())
}

/// Lets a database be used again that could not be dropped. One that is gone is brought back by the runbook alone.
///
/// # Errors
/// When one is gone, or Postgres does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    let admin = databases::connect(&stack.postgres_admin_url).await.context("Postgres")?;
    for Target { database, .. } in &TARGETS {
        let found = admin.query_opt("select from pg_database where datname = $1", &[database]).await?;
        ensure!(found.is_some(), "{database} is gone; its backup is in {}", std::env::temp_dir().display());
        admin.batch_execute(&format!("alter database {database} allow_connections true")).await?;
    }
    Ok(())
}

async fn lose_and_recover(harness: &mut Harness, target: &Target) -> Result<()> {
    let Target { database, service } = *target;
    let file = std::env::temp_dir().join(format!("{database}-{}.dump", Uuid::new_v4()));
    let backup = file.display().to_string();
    harness.accepts(BEFORE).await?;
    let variables = [("DATABASE", database), ("SERVICE", service), ("BACKUP", backup.as_str())];
    let operator = [("CORO_OPERATOR", "drill"), ("REASON", "a drill: the database was dropped")];
    let variables = [variables.as_slice(), &operator].concat();
    harness.run_section(PAGE, "A backup", &variables).await?;
    let taken = harness.load.accepted_count();
    for _ in 0..LOST / AT_ONCE {
        harness.accepts(AT_ONCE).await?;
    }
    for client_number in UNDER_WAY {
        harness.pay(client_number, AMOUNT).await?;
    }
    drop_database(harness, database).await?;
    let lost: Vec<Paid> = harness.load.accepted().into_iter().skip(taken).collect();
    harness.is_broken(&format!("{database} was dropped; the backup lacks {} payments", lost.len()));

    harness.run_section(PAGE, "The backup comes back", &variables).await?;
    is_closed(harness, target).await?;
    let printed = harness.run_section(PAGE, "What it lacks", &variables).await?.join("\n");
    ensure!(printed.contains("no row"), "the audit does not name what {database} lacks:\n{printed}");
    ensure!(printed.contains("lacking"), "{service} does not name what it lacks:\n{printed}");
    harness.alert_fires().await?;
    is_closed(harness, target).await?;

    harness.run_section(PAGE, "Recover, and open", &variables).await?;
    is_open(harness, target).await?;
    harness.run_section(PAGE, "The relay goes on", &variables).await?;
    harness.alert_ends(END_TIMEOUT).await?;
    harness.accepts(BEFORE).await?;
    repeated(harness, &lost).await?;
    harness.note(format!(
        "{database}: {} requests from the lost time were repeated, each has its payment",
        lost.len()
    ));
    std::fs::remove_file(file).context("the backup")?;
    std::fs::remove_file(format!("{backup}.since")).context("the time of the backup")
}

/// The loss. An active slot would refuse it, so nobody may connect any more.
async fn drop_database(harness: &Harness, database: &str) -> Result<()> {
    let admin = databases::connect(&harness.stack.postgres_admin_url).await.context("Postgres")?;
    admin.batch_execute(&format!("alter database {database} allow_connections false")).await?;
    let drop = format!("drop database {database} with (force)");
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    let is_gone = async || {
        admin.execute(end, &[&database]).await?;
        Ok(admin.batch_execute(&drop).await.is_ok())
    };
    harness.until(CLOSED_TIMEOUT, "the database to be dropped", is_gone).await
}

/// The service says why it is not ready, and a refused client gets the time to come back.
async fn is_closed(harness: &Harness, target: &Target) -> Result<()> {
    let says_so = async || {
        let (status, text) = ready(harness, target).await?;
        Ok(status == StatusCode::SERVICE_UNAVAILABLE && text.contains(&format!("{} recover", target.service)))
    };
    harness.until(CLOSED_TIMEOUT, "the service to say that its database is closed", says_so).await?;
    if target.database == "payments" {
        let body = order("0812", &harness.stack.demo_service_id, AMOUNT, &Uuid::new_v4().to_string());
        let answer = harness.client.post_payment(Uuid::now_v7(), &body).await?;
        let (status, retry_after) = (answer.status(), answer.headers().contains_key(RETRY_AFTER));
        ensure!(
            status == StatusCode::SERVICE_UNAVAILABLE && retry_after,
            "a client of a closed database is answered {status}, Retry-After: {retry_after}"
        );
    }
    Ok(())
}

async fn is_open(harness: &Harness, target: &Target) -> Result<()> {
    let is_ready = async || Ok(ready(harness, target).await?.0 == StatusCode::OK);
    harness.until(OPEN_TIMEOUT, "the service to be ready", is_ready).await
}

/// What the first instance of the service says of itself.
async fn ready(harness: &Harness, target: &Target) -> Result<(StatusCode, String)> {
    let stack = &harness.stack;
    let admin = match target.database {
        "balance" => &stack.balance_admin_url,
        "processor" => &stack.processor_admin_url,
        _ => &stack.payments_admin_url,
    };
    let answer = reqwest::get(format!("{admin}/ready")).await.context("/ready")?;
    Ok((answer.status(), answer.text().await.context("/ready")?))
}

/// Repeats each request as its client would that never saw the answer.
async fn repeated(harness: &Harness, paid: &[Paid]) -> Result<()> {
    let again = stream::iter(paid).map(async |Paid { user_id, payment_id, body, .. }| {
        let found = steady_load::accepted(&harness.client, *user_id, body).await;
        let found = found.map_err(|why| anyhow::anyhow!("{payment_id} was repeated, and answered {why}"))?;
        ensure!(found == *payment_id, "{payment_id} was repeated, and became another payment, {found}");
        Ok(())
    });
    again.buffer_unordered(REPEATED_AT_ONCE).try_collect().await
}
