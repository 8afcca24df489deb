//! The Postgres pool of a service, and which failures are worth another try.

use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod, Runtime};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

pub use deadpool_postgres::{Client, Pool, Transaction};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Waiting longer than this for a connection means overload: answer 503 rather than queue.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// No statement of ours takes seconds; one that does holds locks others wait for.
///
/// The plans are pinned: every statement of a service reaches its rows by key, so the one generic plan is
/// the right one, and a fresh table without statistics must not tempt the planner into scanning it.
const SESSION: &str = "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s \
     -c timezone=UTC -c plan_cache_mode=force_generic_plan -c jit=off \
     -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off";

/// A pool of at most `size_max` connections. Connects lazily: the database may be down at start.
pub fn pool(url: &str, size_max: usize, application_name: &str) -> anyhow::Result<Pool> {
    let mut config: tokio_postgres::Config = url.parse().context("database URL")?;
    config
        .application_name(application_name)
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(10))
        .tcp_user_timeout(Duration::from_secs(20))
        .options(SESSION);
    // Fast: a broken connection is noticed by its use, and every use is retried anyway.
    let manager =
        Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager)
        .max_size(size_max)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT_TIMEOUT))
        .create_timeout(Some(CONNECT_TIMEOUT))
        .build()
        .context("database pool")
}

/// One round trip to the database; the text says what is wrong.
pub async fn reachable(pool: &Pool) -> Result<(), String> {
    let client = pool.get().await.map_err(|error| format!("no database connection: {error}"))?;
    client
        .simple_query("select 1")
        .await
        .map_err(|error| format!("the database does not answer: {error}"))?;
    Ok(())
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The same statement may succeed later: connection lost, deadlock, shutdown, out of something.
    Transient,
    /// It will fail the same way for ever: the data breaks a constraint or cannot be represented.
    Poison,
}

/// Classifies by SQLSTATE. What is not known to be poison is tried again: money is never dropped on a guess.
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
