//! Applies migrations beside a system under load.
//!
//! * A statement that waits for a lock makes every later statement on that table wait behind it. So no statement of a
//!   migration waits longer than `LOCK_TIMEOUT`: the migration is rolled back as a whole and tried again, with growing pauses in
//!   which the others go on.
//! * Autovacuum gives way to whoever waits for `deadlock_timeout`, so that is shorter. It also makes the migration, and nobody
//!   else, the victim of a deadlock.
//! * Nothing is applied while buckets are moved from or to the database (`sql/*/V*__moves.sql`): their rows are being copied into tables
//!   that have to stay as they are.
//! * Each attempt that was given up is said on stderr, with the transaction that is open longest.

use std::error::Error;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use refinery_core::{Migration, Runner};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::admin::{self, connect};

/// A migration may hold locks on three tables while it waits for that of a fourth, and clients still wait for less than a second.
const LOCK_TIMEOUT: &str = "set deadlock_timeout = '50ms'; set lock_timeout = '200ms'";
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A transaction that is open for so long is left alone: somebody has to decide about it.
const ATTEMPTS_TIMEOUT: Duration = Duration::from_secs(300);

/// The open transactions of a database, the oldest first, without our own.
const OLDEST: &str = "
    select format('process %s (%s, %s), open for %s s', pid, usename, coalesce(nullif(application_name, ''), 'without a name'),
                  extract(epoch from now() - xact_start)::bigint)
      from pg_stat_activity
     where datname = $1 and backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid()
     order by xact_start limit 1";

/// Applies those of `migrations` (name and text) that the table `history` does not have, as `coro_owner`.
///
/// # Errors
/// When one fails, has been changed since it was applied, or gets no lock within five minutes. Nothing of that one is applied.
pub async fn apply(
    admin_url: &str,
    database: &str,
    history: &str,
    migrations: &[(&str, &str)],
) -> Result<()> {
    let mut client = connect(&admin::with_database(admin_url, database)?).await?;
    admin::lock(&client, "migrations").await?;
    // The time-outs come first: the owner may not set them.
    let session = format!("{LOCK_TIMEOUT}; revoke create on schema public from public; set role coro_owner");
    client
        .batch_execute(&session)
        .await
        .context("cannot act as coro_owner; create the roles first (`migrate`)")?;
    ensure!(
        !is_moving(&client, history, migrations.len()).await?,
        "buckets are being moved from or to {database}, so nothing was applied. Wait until no move is open (`coroctl shard moves`)"
    );
    let migrations = migrations.iter().map(|(name, text)| Migration::unapplied(name, text));
    let mut runner = Runner::new(&migrations.collect::<Result<Vec<_>, _>>()?);
    runner.set_migration_table_name(history);
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let error = match runner.run_async(&mut client).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if !is_lock(&error) || began.elapsed() > ATTEMPTS_TIMEOUT {
            return Err(error)
                .with_context(|| format!("a migration of {database} failed; nothing of it was applied"));
        }
        let oldest = oldest(admin_url, database).await;
        let reason = last_cause(&error);
        eprintln!(
            "{database}: {error}: {reason}. Nothing was changed; it is tried again in {pause:?}. Longest: {oldest}"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether a move is open, and something is to be applied.
async fn is_moving(client: &Client, history: &str, migrations: usize) -> Result<bool> {
    let there = "select to_regclass('moves') is not null and to_regclass($1) is not null";
    if !client.query_one(there, &[&history]).await.context("cannot look for moves")?.try_get::<_, bool>(0)? {
        return Ok(false);
    }
    let table = admin::quote_identifier(history)?;
    let select = format!("select exists (select from moves where state = 'open'), count(*) from {table}");
    let row = client.query_one(&select, &[]).await.context("cannot look for moves")?;
    let applied = usize::try_from(row.try_get::<_, i64>(1)?).unwrap_or_default();
    Ok(row.try_get(0)? && applied < migrations)
}

/// Drops the table `history` of what was applied, when nothing of it is left.
///
/// # Errors
/// When the server refuses.
pub async fn forget(admin_url: &str, database: &str, history: &str) -> Result<()> {
    let client = connect(&admin::with_database(admin_url, database)?).await?;
    let table = admin::quote_identifier(history)?;
    client.batch_execute(&format!("drop table if exists {table}")).await.context("cannot drop a history")
}

/// Whether the statement may succeed once others have ended their transactions.
fn is_lock(error: &(dyn Error + 'static)) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    let is_one = code
        .is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code));
    is_one || error.source().is_some_and(is_lock)
}

/// What the server said.
fn last_cause(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), last_cause)
}

/// The transaction that is open longest. By a session of the superuser: others are not shown them.
async fn oldest(admin_url: &str, database: &str) -> String {
    let look = async {
        let client: Client = connect(admin_url).await?;
        anyhow::Ok(client.query_opt(OLDEST, &[&database]).await?.map(|row| row.get(0)))
    };
    match look.await {
        Ok(Some(found)) => found,
        Ok(None) => "none is open any more".to_owned(),
        Err(error) => format!("cannot be seen: {error:#}"),
    }
}
