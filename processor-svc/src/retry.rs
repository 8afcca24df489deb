//! Retries database work with jittered back-off for as long as the database is away.
//!
//! * Only poison and the end of the process stop the retries.

use std::time::Duration;

use saga::backoff;
use saga::postgres::{Failure, classify};
use saga::telemetry::log_text;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The reason why work was given up.
#[derive(Debug)]
pub enum Stop {
    /// The data cannot be stored: every further try fails too.
    Poison(anyhow::Error),
    /// The process is ending.
    Abandoned,
}

/// Repeats `work` until it succeeds, fails for good, or `abandon` is cancelled.
pub async fn until_done<T, F>(
    what: &str,
    metrics: &Metrics,
    abandon: &CancellationToken,
    mut work: impl FnMut() -> F,
) -> Result<T, Stop>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut pauses = backoff::unlimited(PAUSE_MAX);
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if classify(&error) == Failure::Poison {
            return Err(Stop::Poison(error));
        }
        Metrics::count(&metrics.failures, "database");
        tracing::warn!(error = log_text(&error), "the database failed at: {what}; it is tried again");
        tokio::select! {
            () = tokio::time::sleep(pauses.next().unwrap_or(PAUSE_MAX)) => {}
            () = abandon.cancelled() => return Err(Stop::Abandoned),
        }
    }
}
