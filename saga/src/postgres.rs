//! The Postgres pool of a service, and the classification of failures.
//!
//! * The pool connects lazily: a database may be down when its service starts.
//! * The URL may name several hosts with `target_session_attrs=read-write`: the pool follows the one that takes writes, and
//!   leaves one that is frozen, or that its standbys have left (`watch`, `leader`).
//! * A commit that no synchronous standby has confirmed counts as one whose outcome is not known (`login`). The pool of a service of
//!   the saga shows its rows only once a later commit is confirmed (`doubt`).
//! * A connection is made with the URL that the file of DATABASE_URL_FILE has at that time (`login`).
//! * TLS is that of libpq: `sslmode`, `sslrootcert`, `sslcert` and `sslkey` in the URL.
//! * The pool of a service of the saga hands out no connection to a closed database ([`incarnation`](crate::incarnation)).
//! * A failure is poison only by its SQLSTATE. Every other failure is retried: money is never dropped on a guess.
//!
//! Plans are pinned: every statement of a service reaches its rows by key, and sessions force the one generic plan and forbid
//! sequential scans, hash and merge joins. A fresh table without statistics must not tempt the planner into scanning it.

mod connector;
mod doubt;
mod leader;
mod login;
mod watch;

use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{
    HookError, Manager, ManagerConfig, PoolBuilder, PoolError, RecyclingMethod, Runtime,
};
use postgres_tls::Connection;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::incarnation;
use login::Login;

pub use self::doubt::confirm_visible;
pub use deadpool_postgres::{Client, Pool, Transaction};

/// For a whole connection to one host, signing in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A longer wait for a connection means overload: the service answers 503 instead of queueing.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Session settings. No statement of ours takes seconds; one that does holds locks that others wait for.
///
/// The plans are pinned: every statement of a service reaches its rows by key, so the generic plan is
/// the right one, and a fresh table without statistics must not tempt the planner into scanning it. Nor may it start parallel
/// workers: where it guesses many rows, they cost more than the few that there are.
const SESSION: &str = "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s \
     -c timezone=UTC -c plan_cache_mode=force_generic_plan -c jit=off \
     -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
     -c max_parallel_workers_per_gather=0";

/// A pool of at most `size_max` connections, which connects lazily.
///
/// # Errors
/// When the URL is malformed, or a certificate that it names cannot be read.
pub fn pool(url: &str, size_max: usize, application_name: &str) -> anyhow::Result<Pool> {
    builder(Login::new(url, application_name)?, size_max).build().context("cannot create the database pool")
}

/// As [`pool`], for `service`, whose database is one of the saga: while it is closed, or has standbys that do not confirm what it
/// has committed, it is as if it were away.
///
/// # Errors
/// As [`pool`].
pub fn guarded_pool(url: &str, size_max: usize, service: &str) -> anyhow::Result<Pool> {
    let login = Login::new(url, service)?;
    let doubt = login.doubt();
    let pool = doubt::settle(incarnation::guard(builder(login, size_max), service), &doubt);
    pool.build().context("cannot create the database pool")
}

fn builder(login: Login, size_max: usize) -> PoolBuilder {
    // Fast: a query notices a broken connection, and every query is retried anyway.
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let connect_timeout = login.connect_timeout();
    let manager = Manager::from_connect(login.config(), login, recycling);
    Pool::builder(manager)
        .max_size(size_max)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT_TIMEOUT))
        .create_timeout(Some(connect_timeout))
}

/// The database of a URL, with the settings of a service's sessions.
fn settings(url: &str, application_name: &str) -> anyhow::Result<Connection> {
    let mut connection: Connection = url.parse().context("the database URL cannot be used")?;
    connection
        .config
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(10))
        .tcp_user_timeout(Duration::from_secs(20))
        .options(SESSION);
    Ok(connection)
}

/// One round trip to the database.
///
/// # Errors
/// When there is no connection or no answer; the text says which.
pub async fn reachable(pool: &Pool) -> Result<(), String> {
    let client = pool.get().await.map_err(|error| match error {
        // The database is there, and not to be used.
        PoolError::PostCreateHook(HookError::Message(why)) => why.into_owned(),
        error => format!("no database connection: {error}"),
    })?;
    client
        .simple_query("select 1")
        .await
        .map_err(|error| format!("the database does not answer: {error}"))?;
    Ok(())
}

/// The parameters of a statement, in order.
pub type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The rows of one statement, which is a transaction by itself and stays prepared. `failed` says what it could not do.
///
/// # Errors
/// When there is no connection, or the statement failed. Nothing was written then, or the connection was lost.
pub async fn query(
    pool: &Pool,
    text: &str,
    parameters: Parameters<'_>,
    failed: &'static str,
) -> anyhow::Result<Vec<Row>> {
    let client = pool.get().await.context("no connection to the database")?;
    let statement = client.prepare_cached(text).await.context(failed)?;
    client.query(&statement, parameters).await.context(failed)
}

/// As [`query`], for a statement without rows; returns how many rows it changed.
///
/// # Errors
/// As [`query`].
pub async fn execute(
    pool: &Pool,
    text: &str,
    parameters: Parameters<'_>,
    failed: &'static str,
) -> anyhow::Result<u64> {
    let client = pool.get().await.context("no connection to the database")?;
    let statement = client.prepare_cached(text).await.context(failed)?;
    client.execute(&statement, parameters).await.context(failed)
}

/// Whether a failure is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The same statement may succeed later: a lost connection, a deadlock, a shutdown, exhausted resources.
    Transient,
    /// The statement always fails: its data breaks a constraint or cannot be represented.
    Poison,
}

/// Classifies a failure by its SQLSTATE. A failure that is not known to be poison is transient.
pub fn classify(error: &anyhow::Error) -> Failure {
    let state = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())
        .and_then(tokio_postgres::Error::code);
    match state {
        Some(state) if is_poison(state) => Failure::Poison,
        Some(_) | None => Failure::Transient,
    }
}

/// Class 22 is data exception, class 23 integrity constraint violation (PostgreSQL manual, appendix A).
fn is_poison(state: &SqlState) -> bool {
    let class = &state.code()[..2];
    class == "22" || class == "23"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlocks_are_tried_again_and_constraint_violations_are_not() {
        assert!(!is_poison(&SqlState::T_R_DEADLOCK_DETECTED));
        assert!(!is_poison(&SqlState::T_R_SERIALIZATION_FAILURE));
        assert!(!is_poison(&SqlState::ADMIN_SHUTDOWN));
        assert!(is_poison(&SqlState::CHECK_VIOLATION));
        assert!(is_poison(&SqlState::NUMERIC_VALUE_OUT_OF_RANGE));
    }

    #[test]
    fn what_is_not_known_is_transient() {
        assert_eq!(classify(&anyhow::anyhow!("connection reset")), Failure::Transient);
    }
}
