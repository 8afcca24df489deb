//! The back-off of the services: pauses between the tries of work that must succeed.
//!
//! * A pause grows from 20 milliseconds to a maximum, with jitter.
//! * The pauses never end: only success or shutdown ends the tries.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

use crate::telemetry::log_text;

/// Pause after the first try.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// Pauses of at most `max`, without end.
pub fn unlimited(max: Duration) -> ExponentialBackoff {
    growing(PAUSE_MIN, max)
}

/// Pauses from `min` to `max`, each twice as long as the one before, without end. Jitter makes each up to twice as long.
pub fn growing(min: Duration, max: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Repeats `work` until it succeeds, with a pause of at most `max` after each failure. `None` when it failed and `stop` is
/// cancelled: it is tried once in any case. `failed` is what the log says of a failure.
pub async fn until_done<T, F>(
    max: Duration,
    stop: &CancellationToken,
    failed: &str,
    mut work: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let mut pauses = unlimited(max);
    loop {
        match work().await {
            Ok(done) => return Some(done),
            Err(error) => tracing::warn!(error = log_text(&error), "{failed}; it is tried again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(pauses.next().unwrap_or(max))).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn work_is_tried_until_it_succeeds_or_the_process_ends() {
        let (tries, stop) = (Cell::new(0), CancellationToken::new());
        let third = || async {
            tries.set(tries.get() + 1);
            anyhow::ensure!(tries.get() == 3, "not yet");
            Ok(tries.get())
        };
        let max = Duration::from_millis(1);
        assert_eq!(until_done(max, &stop, "counting failed", third).await, Some(3));
        tries.set(0);
        stop.cancel();
        assert_eq!(until_done(Duration::from_secs(3600), &stop, "counting failed", third).await, None);
        assert_eq!(tries.get(), 1, "it is tried once, and not again after the end");
        tries.set(2);
        assert_eq!(
            until_done(max, &stop, "counting failed", third).await,
            Some(3),
            "what succeeds at once is done"
        );
    }
}
