//! Decides when to read from the replication stream. Pure.
//!
//! * Reads come in rounds. A round ends when the socket is drained, or when it has brought enough.
//! * The next round begins when every record of the last one is acknowledged, or at once if nothing is in flight. So a lone
//!   row waits for nothing, rows that arrive meanwhile share the requests to the broker, and the producer holds no record
//!   that it cannot send yet.
//! * A round of more than a few rows lasts at least `ROUND_INTERVAL`: a server whose reader takes each message at once sends
//!   them one by one.

use std::time::{Duration, Instant};

use crate::sinks::batch_size::BatchSize;

/// Bytes of WAL from which a round is `BatchSize::Medium`.
const MEDIUM_BYTES_MIN: usize = 4 << 10;
/// Bytes of WAL from which a round is `BatchSize::Large`.
const LARGE_BYTES_MIN: usize = 64 << 10;
/// A read of this size has not drained the socket.
const FULL_READ_BYTES_MIN: usize = 16 << 10;
/// A round ends here even if there is more to read, so that acknowledgements are handled.
const ROUND_BYTES_MAX: usize = 512 << 10;
const ROUND_INTERVAL: Duration = Duration::from_millis(5);
/// How long a partition that does not answer holds up the others.
const ROUND_TIMEOUT: Duration = Duration::from_millis(50);

/// The next step of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read at once, without polling the socket.
    Read,
    /// Wait until the socket is readable.
    Listen,
    /// Do not read for `time`, or until at most `in_flight` bytes are in flight. A negative value means the whole time.
    Pause { time: Duration, in_flight: i64 },
}

#[derive(Debug)]
pub struct ReadScheduler {
    began: Instant,
    /// Bytes of WAL read in this round.
    read: usize,
    /// Whether the last round was large.
    backlog: bool,
    over: bool,
}

impl ReadScheduler {
    pub fn new(now: Instant) -> ReadScheduler {
        ReadScheduler { began: now, read: 0, backlog: false, over: true }
    }

    /// Records a read of `bytes` of WAL.
    pub fn read(&mut self, now: Instant, bytes: usize) {
        if self.over {
            *self = ReadScheduler { began: now, read: 0, backlog: self.read >= LARGE_BYTES_MIN, over: false };
        }
        self.read += bytes;
        self.over = bytes < FULL_READ_BYTES_MIN || self.read >= ROUND_BYTES_MAX;
    }

    /// Returns the batch size of a read of `bytes`, together with its round.
    pub fn load(&self, bytes: usize) -> BatchSize {
        let (read, backlog) =
            if self.over { (bytes, self.read >= LARGE_BYTES_MIN) } else { (self.read + bytes, self.backlog) };
        match read {
            LARGE_BYTES_MIN.. => BatchSize::Large,
            // The first read of a round brings at most the socket's window.
            MEDIUM_BYTES_MIN.. if backlog => BatchSize::Large,
            MEDIUM_BYTES_MIN.. => BatchSize::Medium,
            _ => BatchSize::Small,
        }
    }

    pub fn next(&self, now: Instant, in_flight: i64) -> Next {
        if !self.over {
            return Next::Read;
        }
        let elapsed = now.saturating_duration_since(self.began);
        if self.read >= MEDIUM_BYTES_MIN && elapsed < ROUND_INTERVAL {
            return Next::Pause { time: ROUND_INTERVAL - elapsed, in_flight: -1 };
        }
        if in_flight > 0 && elapsed < ROUND_TIMEOUT {
            return Next::Pause { time: ROUND_TIMEOUT - elapsed, in_flight: 0 };
        }
        if self.read >= MEDIUM_BYTES_MIN { Next::Read } else { Next::Listen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: &[usize]) -> (ReadScheduler, Instant) {
        let began = Instant::now();
        let mut scheduler = ReadScheduler::new(began);
        reads.iter().for_each(|&bytes| scheduler.read(began, bytes));
        (scheduler, began)
    }

    #[test]
    fn with_nothing_in_flight_the_socket_is_listened_to() {
        let (scheduler, now) = after(&[]);
        assert_eq!(scheduler.next(now, 0), Next::Listen);
        let (scheduler, now) = after(&[300]);
        assert_eq!(scheduler.next(now, 0), Next::Listen);
    }

    #[test]
    fn a_handful_in_flight_is_awaited_but_not_for_ever() {
        let (scheduler, began) = after(&[300]);
        assert_eq!(scheduler.next(began, 1500), Next::Pause { time: ROUND_TIMEOUT, in_flight: 0 });
        assert_eq!(scheduler.next(began + ROUND_TIMEOUT, 1500), Next::Listen);
    }

    #[test]
    fn more_than_a_handful_waits_out_the_round_and_then_for_its_landing() {
        let (scheduler, began) = after(&[MEDIUM_BYTES_MIN]);
        assert_eq!(scheduler.next(began, 0), Next::Pause { time: ROUND_INTERVAL, in_flight: -1 });
        assert_eq!(
            scheduler.next(began + ROUND_INTERVAL, 1),
            Next::Pause { time: ROUND_TIMEOUT - ROUND_INTERVAL, in_flight: 0 }
        );
        assert_eq!(scheduler.next(began + ROUND_INTERVAL, 0), Next::Read);
    }

    #[test]
    fn a_socket_that_is_not_drained_is_read_on_until_it_is_enough() {
        let (mut scheduler, began) = after(&[FULL_READ_BYTES_MIN]);
        assert_eq!(scheduler.next(began, 100), Next::Read);
        scheduler.read(began, ROUND_BYTES_MAX);
        assert!(matches!(scheduler.next(began, 200), Next::Pause { .. }));
    }

    #[test]
    fn under_backlog_too_nothing_is_read_while_anything_is_in_flight() {
        let (scheduler, began) = after(&[LARGE_BYTES_MIN, 10]);
        let later = began + ROUND_INTERVAL;
        assert_eq!(
            scheduler.next(later, 1),
            Next::Pause { time: ROUND_TIMEOUT - ROUND_INTERVAL, in_flight: 0 }
        );
        assert_eq!(scheduler.next(later, 0), Next::Read);
    }

    #[test]
    fn an_empty_read_ends_the_haste() {
        let (mut scheduler, began) = after(&[LARGE_BYTES_MIN, 10]);
        let later = began + ROUND_TIMEOUT;
        scheduler.read(later, 0);
        assert_eq!(scheduler.next(later, 0), Next::Listen);
    }

    #[test]
    fn how_much_there_is() {
        let load = |before: &[usize], bytes| after(before).0.load(bytes);
        assert_eq!(load(&[], 300), BatchSize::Small);
        assert_eq!(load(&[], MEDIUM_BYTES_MIN), BatchSize::Medium);
        assert_eq!(load(&[], LARGE_BYTES_MIN), BatchSize::Large);
        assert_eq!(
            load(&[FULL_READ_BYTES_MIN], LARGE_BYTES_MIN - FULL_READ_BYTES_MIN),
            BatchSize::Large,
            "one round"
        );
        assert_eq!(load(&[FULL_READ_BYTES_MIN, 10], FULL_READ_BYTES_MIN), BatchSize::Medium, "another");
        assert_eq!(
            load(&[LARGE_BYTES_MIN, 10], MEDIUM_BYTES_MIN),
            BatchSize::Large,
            "after backlog, more of it"
        );
        assert_eq!(
            load(&[LARGE_BYTES_MIN, 10, FULL_READ_BYTES_MIN], 300),
            BatchSize::Large,
            "in the round after it"
        );
        assert_eq!(load(&[LARGE_BYTES_MIN, 10], 300), BatchSize::Small, "it is over");
    }
}
