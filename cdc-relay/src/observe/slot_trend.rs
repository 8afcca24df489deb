//! Derives trends from a slot's positions: the rate of WAL, the time until invalidation, the last progress. Pure.

use std::time::Duration;

use crate::postgres::lsn::PgTime;

/// How long a burst counts: about the interval of the server's checkpoints, since each of them begins with one.
const SMOOTHING_INTERVAL: Duration = Duration::from_secs(300);

/// The positions of a slot at one moment, in bytes from the beginning of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The end of the WAL.
    pub written: i64,
    pub confirmed: i64,
}

/// The readings so far, in constant space.
#[derive(Debug, Default)]
pub struct Trend {
    last: Option<(PgTime, Reading)>,
    /// Bytes written and the seconds that took; older ones weigh less.
    bytes: f64,
    seconds: f64,
    progressed: Option<PgTime>,
}

impl Trend {
    /// Takes the next reading. WAL that ends before the last reading is another server's: the trend begins anew.
    pub fn read(&mut self, now: PgTime, reading: Reading) {
        let Some((before, last)) = self.last.replace((now, reading)) else {
            self.progressed = Some(now);
            return;
        };
        if reading.written < last.written || now < before {
            *self = Trend { last: self.last, progressed: Some(now), ..Trend::default() };
            return;
        }
        let elapsed = (now.0 - before.0) as f64 / 1e6;
        let decay = (-elapsed / SMOOTHING_INTERVAL.as_secs_f64()).exp();
        self.bytes = self.bytes * decay + (reading.written - last.written) as f64;
        self.seconds = self.seconds * decay + elapsed;
        if reading.confirmed > last.confirmed || reading.confirmed >= reading.written {
            self.progressed = Some(now);
        }
    }

    /// Recent bytes of WAL per second; 0 before there are two readings.
    pub fn bytes_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes / self.seconds } else { 0.0 }
    }

    /// When a reading last showed that the slot had advanced, or had nothing to advance over; at first, the first reading.
    pub fn progressed(&self) -> Option<PgTime> {
        self.progressed
    }
}

/// Seconds until a slot is invalidated, if nothing is confirmed from now on. `safe`: the bytes that may be written
/// until then; `None` means that there is no limit.
pub fn seconds_left(safe: Option<i64>, bytes_per_second: f64) -> f64 {
    match safe {
        None => f64::INFINITY,
        Some(safe) if safe <= 0 => 0.0,
        Some(_) if bytes_per_second <= 0.0 => f64::INFINITY,
        Some(safe) => safe as f64 / bytes_per_second,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;

    /// Readings five seconds apart, beginning with one at position 0.
    fn trend(steps: &[(i64, i64)]) -> Trend {
        let mut trend = Trend::default();
        trend.read(PgTime(0), Reading { written: 0, confirmed: 0 });
        for (index, &(written, confirmed)) in (1..).zip(steps) {
            trend.read(PgTime(index * 5 * SECOND), Reading { written, confirmed });
        }
        trend
    }

    #[test]
    fn time_left_by_room_and_rate() {
        let cases = [
            (None, 1e6, f64::INFINITY),
            (Some(3_600_000_000), 1e6, 3600.0),
            (Some(3_600_000_000), 0.0, f64::INFINITY),
            (Some(0), 1e6, 0.0),
            (Some(0), 0.0, 0.0),
            (Some(-5), 1e6, 0.0),
        ];
        for (safe, rate, left) in cases {
            assert_eq!(seconds_left(safe, rate), left, "{safe:?} at {rate}/s");
        }
    }

    #[test]
    fn a_steady_rate_is_that_rate_from_the_first_interval_on() {
        assert_eq!(trend(&[]).bytes_per_second(), 0.0);
        for count in [1, 2, 10, 1000] {
            let steps: Vec<_> = (1..=count).map(|n| (n * 5000, 0)).collect();
            let rate = trend(&steps).bytes_per_second();
            assert!((rate - 1000.0).abs() < 1e-6, "{count} intervals: {rate}");
        }
    }

    #[test]
    fn a_burst_does_not_alarm_and_a_lasting_change_does() {
        let mut steps: Vec<_> = (1..=200).map(|n| (n * 5000, 0)).collect();
        steps.push((200 * 5000 + 50_000, 0));
        let burst = trend(&steps).bytes_per_second();
        assert!((1000.0..1200.0).contains(&burst), "ten times as much, once: {burst}");
        // Ten minutes of it.
        steps.extend((1..=120).map(|n| (1_050_000 + n * 50_000, 0)));
        let lasting = trend(&steps).bytes_per_second();
        assert!((8500.0..=10_000.0).contains(&lasting), "{lasting}");
    }

    #[test]
    fn progress_is_what_was_confirmed_not_what_was_written() {
        let cases: [(&[(i64, i64)], i64); 5] = [
            (&[], 0),
            // It advances.
            (&[(100, 50), (200, 60)], 10),
            // It stands, while the WAL grows, and then while it does not.
            (&[(100, 50), (200, 50), (300, 50), (300, 50)], 5),
            // There is nothing to confirm.
            (&[(100, 100), (100, 100), (100, 100)], 15),
            // It goes on.
            (&[(100, 50), (200, 50), (300, 300)], 15),
        ];
        for (steps, seconds) in cases {
            assert_eq!(trend(steps).progressed(), Some(PgTime(seconds * SECOND)), "{steps:?}");
        }
    }

    #[test]
    fn another_server_begins_anew() {
        let trend = trend(&[(5_000_000, 0), (1000, 0)]);
        assert_eq!(trend.bytes_per_second(), 0.0);
        assert_eq!(trend.progressed(), Some(PgTime(10 * SECOND)));
    }

    proptest! {
        /// Whatever the clock and the server do, the rate is one that the WAL had at some time.
        #[test]
        fn the_rate_stays_between_the_slowest_and_the_fastest(
            steps in prop::collection::vec((0i64..60 * SECOND, 0i64..1 << 40), 1..50),
        ) {
            let mut trend = Trend::default();
            let (mut now, mut written) = (0, 0);
            let (mut least, mut most) = (f64::INFINITY, 0.0f64);
            trend.read(PgTime(0), Reading { written: 0, confirmed: 0 });
            for (elapsed, bytes) in steps {
                let elapsed = elapsed.max(1);
                (now, written) = (now + elapsed, written + bytes);
                trend.read(PgTime(now), Reading { written, confirmed: 0 });
                let rate = bytes as f64 * 1e6 / elapsed as f64;
                (least, most) = (least.min(rate), most.max(rate));
            }
            let rate = trend.bytes_per_second();
            prop_assert!(rate >= least * 0.999_999 && rate <= most * 1.000_001, "{least} {rate} {most}");
        }
    }
}
