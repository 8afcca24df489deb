//! Goes on under the fence when something fails: nobody owns the buckets until they are granted or taken back.
//!
//! * Both sessions are made anew, since it is not known which of them hangs, and both shards are locked anew.
//! * A statement that was under way was committed or not: the rows say which. The time of the fence goes on meanwhile, so as a rule
//!   it is lifted next.
//! * After [`FENCED_TIMEOUT`] the command ends, and a person has to act.

use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use tokio::time::{sleep, timeout};

use super::Mover;

/// More than a lock and a standby together may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A server that comes back later than this needs a person anyway.
const FENCED_TIMEOUT: Duration = Duration::from_secs(600);

impl Mover {
    /// Connects again after an error under the fence.
    ///
    /// # Errors
    /// The last one, when it has failed for too long.
    pub(super) async fn go_on_after(&mut self, mut error: Error) -> Result<()> {
        let since = *self.progress.fails_since.get_or_insert_with(Instant::now);
        loop {
            (self.report)(&format!("nobody owns the buckets, and the mover goes on: {error:#}"));
            if since.elapsed() >= FENCED_TIMEOUT {
                return Err(error);
            }
            sleep(pause(self.progress.failures)).await;
            self.progress.failures += 1;
            match self.reconnect().await {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
    }

    async fn reconnect(&mut self) -> Result<()> {
        for shard in [&mut self.source, &mut self.target] {
            in_time(shard.reconnect()).await?;
        }
        self.progress.forget_drain();
        Ok(())
    }
}

/// # Errors
/// That of the future, or that it has not ended in time.
pub(super) async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::msg("a shard does not answer")),
    }
}

fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(2_u32.saturating_pow(failures)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_a_limit() {
        assert_eq!([0, 1, 2].map(pause), [50, 100, 200].map(Duration::from_millis));
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
