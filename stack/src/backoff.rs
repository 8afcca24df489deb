//! How long a service that ended waits before it is started again.

use std::time::Duration;

const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);
/// Having run so long, an end counts as the first again.
const STEADY_MIN: Duration = Duration::from_secs(10);

/// Counts ends in a row. The first restart is nearly immediate: most crashes in a stack are injected ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a child that ran for `ran` has ended.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY_MIN {
            self.failures = 0;
        }
        let wait = DELAY_MIN.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(16);
        wait.min(DELAY_MAX)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_from_a_tenth_of_a_second_to_five_seconds() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after(Duration::from_millis(5)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        for _ in 0..100 {
            assert_eq!(backoff.after(Duration::ZERO), DELAY_MAX);
        }
    }

    #[test]
    fn a_steady_run_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(Duration::from_secs(10)), DELAY_MIN);
        assert_eq!(backoff.after(Duration::ZERO), DELAY_MIN * 2);
    }
}
