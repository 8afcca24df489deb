//! When to read: pure, and what everything costs follows from it.
//!
//! Reads come in rounds. A round ends when the socket is drained, or when it has brought enough. Then:
//! * A handful of rows: the next round begins when they have landed, or at once if nothing is in flight. So a lone
//!   row waits for nothing, and rows that come meanwhile share the broker's requests, which it pays for one by one.
//! * More: the next round also waits out `ROUND`, since a reader that takes each message as it comes makes the
//!   server send them one by one.
//! * Backlog: one round may be in flight while the next one is told.

use std::time::{Duration, Instant};

/// Bytes of the log from which a round is more than a handful of rows.
const SOME: usize = 4 << 10;
/// From here on it is backlog.
const BACKLOG: usize = 64 << 10;
/// A read of this size leaves more behind.
const MORE: usize = 16 << 10;
/// A round ends here even if there is more, so that what has landed is looked after.
const ENOUGH: usize = 512 << 10;
const ROUND: Duration = Duration::from_millis(5);
/// A partition that does not answer holds up the others no longer than this.
const PATIENCE: Duration = Duration::from_millis(50);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read without asking: there is something, or soon will be.
    Read,
    /// Wait until the socket has something.
    Listen,
    /// Leave the socket alone for so long, or until no more than `in_flight` bytes are in flight (negative: for all
    /// of that time).
    Pause { time: Duration, in_flight: i64 },
}

#[derive(Debug)]
pub struct Pace {
    began: Instant,
    /// Bytes of the log read in this round.
    read: usize,
    /// Bytes handed to the sink in this round.
    told: i64,
    over: bool,
}

impl Pace {
    pub fn new(now: Instant) -> Pace {
        Pace { began: now, read: 0, told: 0, over: true }
    }

    /// A read brought `bytes` of the log, and `told` bytes were handed to the sink for it.
    pub fn read(&mut self, now: Instant, bytes: usize, told: i64) {
        if self.over {
            *self = Pace { began: now, read: 0, told: 0, over: false };
        }
        self.read += bytes;
        self.told += told;
        self.over = bytes < MORE || self.read >= ENOUGH;
    }

    /// Whether a read of so many bytes, or the round it belongs to, is more than a handful of rows.
    pub fn is_backlog(&self, bytes: usize) -> bool {
        bytes >= SOME || (!self.over && self.read >= SOME)
    }

    pub fn next(&self, now: Instant, in_flight: i64) -> Next {
        if !self.over {
            return Next::Read;
        }
        let elapsed = now.saturating_duration_since(self.began);
        if self.read >= SOME && elapsed < ROUND {
            return Next::Pause { time: ROUND - elapsed, in_flight: -1 };
        }
        let allowed = if self.read >= BACKLOG { self.told } else { 0 };
        if in_flight > allowed && elapsed < PATIENCE {
            return Next::Pause { time: PATIENCE - elapsed, in_flight: allowed };
        }
        if self.read >= SOME { Next::Read } else { Next::Listen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: &[(usize, i64)]) -> (Pace, Instant) {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        reads.iter().for_each(|&(bytes, told)| pace.read(began, bytes, told));
        (pace, began)
    }

    #[test]
    fn with_nothing_in_flight_the_socket_is_listened_to() {
        let (pace, now) = after(&[]);
        assert_eq!(pace.next(now, 0), Next::Listen);
        let (pace, now) = after(&[(300, 1500)]);
        assert_eq!(pace.next(now, 0), Next::Listen);
    }

    #[test]
    fn a_handful_in_flight_is_awaited_but_not_for_ever() {
        let (pace, began) = after(&[(300, 1500)]);
        assert_eq!(pace.next(began, 1500), Next::Pause { time: PATIENCE, in_flight: 0 });
        assert_eq!(pace.next(began + PATIENCE, 1500), Next::Listen);
    }

    #[test]
    fn more_than_a_handful_waits_out_the_round_and_then_for_its_landing() {
        let (pace, began) = after(&[(SOME, 20_000)]);
        assert_eq!(pace.next(began, 0), Next::Pause { time: ROUND, in_flight: -1 });
        assert_eq!(pace.next(began + ROUND, 1), Next::Pause { time: PATIENCE - ROUND, in_flight: 0 });
        assert_eq!(pace.next(began + ROUND, 0), Next::Read);
    }

    #[test]
    fn a_socket_that_is_not_drained_is_read_on_until_it_is_enough() {
        let (mut pace, began) = after(&[(MORE, 100)]);
        assert_eq!(pace.next(began, 100), Next::Read);
        pace.read(began, ENOUGH, 100);
        assert!(matches!(pace.next(began, 200), Next::Pause { .. }));
    }

    #[test]
    fn under_backlog_one_round_may_be_in_flight() {
        let (pace, began) = after(&[(BACKLOG, 300_000), (10, 0)]);
        let later = began + ROUND;
        assert_eq!(pace.next(later, 300_000), Next::Read);
        assert_eq!(pace.next(later, 300_001), Next::Pause { time: PATIENCE - ROUND, in_flight: 300_000 });
    }

    #[test]
    fn an_empty_read_ends_the_haste() {
        let (mut pace, began) = after(&[(BACKLOG, 300_000), (10, 0)]);
        let later = began + PATIENCE;
        pace.read(later, 0, 0);
        assert_eq!(pace.next(later, 0), Next::Listen);
    }
}
