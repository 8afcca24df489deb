//! Databases are lost while payments go on, and come back from something that lacks hundreds of them.
//!
//! * The loss is real: a database is dropped, and its slot with it; or the server of all is killed, and its data are out of reach.
//!   [`loss`] has the ways, [`dump`], [`base_backup`] and [`promotion`] what each does.
//! * They have to come back closed: each service says so, clients get 503 with a time to come back, and nothing is charged by a
//!   processor that has forgotten what it did.
//! * The runbook's scripts take the backup, bring it back, name what it lacks, make that again, and start the relay.
//! * What clients have noted since the backup has to be there: each request that is repeated has the same payment.

mod base_backup;
mod cluster;
mod dump;
mod files;
mod loss;
mod promotion;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroctl::client::order;
use coroctl::stack::Stack;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use stack::layout::Layout;
use uuid::Uuid;

use self::files::Files;
pub use self::loss::Loss;
use self::loss::{Database, Origin};
use super::harness::Harness;
use crate::steady_load::{self, Paid};

/// Payments that the backup has, and those that it lacks.
const BEFORE: usize = 20;
const LOST: usize = 150;
/// The relay has emitted what was committed before these.
const EMITTED: usize = 3;
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

/// # Errors
/// When a step of the runbook fails, a database is not closed, or what was lost is not there again.
pub async fn play(harness: &mut Harness, loss: &Loss) -> Result<()> {
    for group in loss.groups()? {
        lose_and_recover(harness, loss.from, &group).await.with_context(|| names(&group))?;
    }
    let is_documented = |answer: &&String| !answer.contains("500 Internal");
    let undocumented = harness.load.failed().into_iter().find(|answer| !is_documented(&answer));
    ensure!(undocumented.is_none(), "a client was answered: {}", undocumented.unwrap_or_default());
    Ok(())
}

/// Lets a database be used again that could not be dropped, and puts a lost cluster back that nothing replaced. A database that
/// is gone is brought back by the runbook alone.
///
/// # Errors
/// When one is gone, or Postgres does not answer.
pub async fn undo(stack: &Stack) -> Result<()> {
    let layout = Layout::from_env()?;
    cluster::undo(stack, &layout).await?;
    let admin = cluster::admin(stack).await?;
    for name in Database::all().iter().map(|database| database.name()) {
        let found = admin.query_opt("select from pg_database where datname = $1", &[&name]).await?;
        ensure!(found.is_some(), "{name} is gone; its backup is below {}", layout.data.display());
        admin.batch_execute(&format!("alter database {name} allow_connections true")).await?;
    }
    Ok(())
}

fn names(group: &[Database]) -> String {
    group.iter().map(|database| database.name()).collect::<Vec<_>>().join(", ")
}

async fn lose_and_recover(harness: &mut Harness, origin: Origin, group: &[Database]) -> Result<()> {
    let mut files = Files::new(origin)?;
    ensure!(
        origin == Origin::Dump || cluster::is_there(&files.layout.postgres_data()),
        "this stack has no single cluster that could be lost"
    );
    harness.accepts(BEFORE).await?;
    match origin {
        Origin::Dump => dump::take(harness, &files, group).await?,
        Origin::BaseBackup => base_backup::take(harness, &files).await?,
        Origin::Promotion => promotion::take(harness, &mut files).await?,
    }
    let taken = harness.load.accepted_count();
    // After the count: whatever has been accepted by now was committed before that time.
    files.target_time = base_backup::now(harness).await?;
    for _ in 0..LOST / AT_ONCE {
        harness.accepts(AT_ONCE).await?;
    }
    for client_number in UNDER_WAY {
        harness.pay(client_number, AMOUNT).await?;
    }
    // Nobody repeats these requests, so their first events have to be on Kafka.
    harness.accepts(EMITTED).await?;
    let what = match origin {
        Origin::Dump => dump::lose(harness, group).await.map(|()| "dropped")?,
        Origin::BaseBackup => base_backup::lose(harness, &files).await.map(|()| "lost with their cluster")?,
        Origin::Promotion => {
            cluster::lose(harness, &files.layout).await.map(|()| "lost with their cluster")?
        }
    };
    let paid = harness.load.accepted();
    let (kept, lost) = paid.split_at(taken);
    harness.is_broken(&format!("{what}: {}; the backup lacks {} payments", names(group), lost.len()));

    match origin {
        Origin::Dump => dump::bring_back(harness, &files, group).await?,
        Origin::BaseBackup => {
            let kept: Vec<Uuid> = kept.iter().map(|paid| paid.payment_id).collect();
            base_backup::bring_back(harness, &files, &kept).await?;
        }
        Origin::Promotion => promotion::bring_back(harness, &files).await?,
    }
    recover(harness, &files, group).await?;
    if origin != Origin::Dump {
        if harness.stack.fraud_database_url.is_some() {
            files.run(harness, files::SUBSCRIBERS, None).await?;
        }
        cluster::end(&harness.stack, &files.layout).await?;
    }
    harness.alert_ends(END_TIMEOUT).await?;
    harness.accepts(BEFORE).await?;
    repeated(harness, lost).await?;
    harness.note(format!(
        "{}: {} requests from the lost time were repeated, each has its payment",
        names(group),
        lost.len()
    ));
    files.remove()
}

/// From databases that are back and closed to a relay that streams them.
async fn recover(harness: &mut Harness, files: &Files, group: &[Database]) -> Result<()> {
    for database in group {
        is_closed(harness, *database).await?;
    }
    for database in group {
        let printed = files.run(harness, files::LACKS, Some(*database)).await?;
        let (name, service) = (database.name(), database.service());
        ensure!(printed.contains("no row"), "the audit does not name what {name} lacks:\n{printed}");
        ensure!(printed.contains("lacking"), "{service} does not name what it lacks:\n{printed}");
    }
    harness.alert_fires().await?;
    for database in group {
        is_closed(harness, *database).await?;
    }
    for database in group {
        files.run(harness, files::RECOVER, Some(*database)).await?;
        is_open(harness, *database).await?;
    }
    for database in group {
        files.run(harness, files::RELAY_GOES_ON, Some(*database)).await?;
    }
    Ok(())
}

/// The service says why it is not ready, and a refused client gets the time to come back.
async fn is_closed(harness: &Harness, database: Database) -> Result<()> {
    let says_so = async || {
        let (status, text) = ready(harness, database).await?;
        let advice = format!("{} recover", database.service());
        Ok(status == StatusCode::SERVICE_UNAVAILABLE && text.contains(&advice))
    };
    harness.until(CLOSED_TIMEOUT, "the service to say that its database is closed", says_so).await?;
    if database == Database::Payments {
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

async fn is_open(harness: &Harness, database: Database) -> Result<()> {
    let is_ready = async || Ok(ready(harness, database).await?.0 == StatusCode::OK);
    harness.until(OPEN_TIMEOUT, "the service to be ready", is_ready).await
}

/// What the first instance of the service says of itself.
async fn ready(harness: &Harness, database: Database) -> Result<(StatusCode, String)> {
    let stack = &harness.stack;
    let admin = match database {
        Database::Balance => &stack.balance_admin_url,
        Database::Payments => &stack.payments_admin_url,
        Database::Processor => &stack.processor_admin_url,
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
