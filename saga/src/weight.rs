//! The weight of an instance: how much of the requests it can take beside the others, in percent. The edge gives it that part.
//!
//! * Each answer carries it (`coro-weight`), and the edge takes it off the answer.
//! * It is measured by requests that do their work at once, from their arrival to their end. Waiting for a payment to end is none.
//! * Up to [`FULL_TIME`] a request is quick, and the weight is whole. Beyond, it falls as the time grows, and never below a tenth: who gets
//!   nothing could not show that it is well again. A request that failed counts as a slow one: failing fast is no reason to get more.
//! * It follows the mean of the last requests, and changes when that has moved by a fifth: one slow request changes nothing, and the
//!   weight does not swing.
//! * Where the cause is shared, as with a slow database, all instances say the same, and nothing changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use listener::answer_headers;
use prometheus::{IntGauge, Registry};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header::{HeaderName, HeaderValue};
use warp::reply::Response;

const WEIGHT: HeaderName = HeaderName::from_static("coro-weight");

/// The mean time of requests up to which an instance is as quick as it should be.
const FULL_TIME: Duration = Duration::from_millis(50);
/// A request counts with this time at most.
const TIME_MAX: Duration = Duration::from_millis(500);
/// About so many of the last requests make the mean.
const MEAN_OF: f64 = 16.0;
const WEIGHT_MAX: u16 = 100;
const WEIGHT_MIN: u16 = 10;

/// What is known from the requests until now.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    mean: Duration,
    /// In percent.
    weight: u16,
}

impl Measured {
    const NOTHING: Self = Self { mean: Duration::ZERO, weight: WEIGHT_MAX };
}

/// After one more request that took so long.
fn next(before: Measured, took: Duration) -> Measured {
    let (old, new) = (before.mean.as_secs_f64(), took.min(TIME_MAX).as_secs_f64());
    let mean = old + (new - old) / MEAN_OF;
    let wanted = f64::from(WEIGHT_MAX) * FULL_TIME.as_secs_f64() / mean;
    // Between two small numbers.
    let wanted = wanted.clamp(f64::from(WEIGHT_MIN), f64::from(WEIGHT_MAX)) as u16;
    let has_moved = wanted.abs_diff(before.weight) * 5 >= before.weight;
    // At either end it is said, however near it was.
    let is_at_an_end = [WEIGHT_MIN, WEIGHT_MAX].contains(&wanted);
    let weight = if has_moved || is_at_an_end { wanted } else { before.weight };
    Measured { mean: Duration::from_secs_f64(mean), weight }
}

/// The weight of this instance. Clones have the measurements in common.
#[derive(Clone)]
pub struct Weight {
    measured: Arc<Mutex<Measured>>,
    shown: IntGauge,
}

impl Weight {
    /// # Errors
    /// When the metric cannot be registered.
    pub fn register(registry: &Registry) -> anyhow::Result<Self> {
        let shown = IntGauge::new(
            "http_weight_percent",
            "The part of its requests that this instance says it can take, in percent. Worry when it stays below 100 at one instance: its machine, or its way to the database, is slower than those of the others.",
        )?;
        registry.register(Box::new(shown.clone()))?;
        Ok(Self::showing(shown))
    }

    fn showing(shown: IntGauge) -> Self {
        shown.set(WEIGHT_MAX.into());
        Self { measured: Arc::new(Mutex::new(Measured::NOTHING)), shown }
    }

    /// A request was answered, or failed, after this time.
    pub fn observe(&self, took: Duration, is_answered: bool) {
        let took = if is_answered { took } else { TIME_MAX };
        // Whole whatever panicked while it was locked.
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        *measured = next(*measured, took);
        self.shown.set(measured.weight.into());
    }

    /// Does the work of a request, and measures it.
    pub async fn timed<T, E>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let since = Instant::now();
        let done = work.await;
        self.observe(since.elapsed(), done.is_ok());
        done
    }

    /// Makes the answers of these routes carry the weight.
    pub fn on(&self, routes: BoxedFilter<(Response,)>) -> BoxedFilter<(Response,)> {
        let weight = self.clone();
        let give = move || answer_headers::give(WEIGHT, HeaderValue::from(weight.percent()));
        warp::any().map(give).untuple_one().and(routes).boxed()
    }

    fn percent(&self) -> u16 {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn the_weight_falls_as_requests_get_slow_and_comes_back() {
        // The weight before, the mean before, and the time of one request: the weight after.
        for (weight, mean, took, expected) in [
            (100, 0, 0, 100),
            (100, 50, 50, 100),
            // A fifth less is said, less than a fifth is not.
            (100, 61, 61, 100),
            (100, 63, 63, 79),
            (79, 100, 100, 50),
            (50, 90, 90, 50),
            (50, 80, 80, 62),
            (20, 500, 500, 10),
            // The ends, however near: not for ever a little beside them.
            (90, 50, 50, 100),
            (11, 500, 500, 10),
            (10, 600, 10_000, 10),
            // One request that is slow beyond measure is one of sixteen.
            (100, 5, 3_600_000, 100),
        ] {
            let before = Measured { mean: ms(mean), weight };
            assert_eq!(next(before, ms(took)).weight, expected, "{weight} % at {mean} ms, then {took} ms");
        }
    }

    #[test]
    fn a_weight_does_not_swing_with_the_times_around_its_mean() {
        let mut measured = Measured { mean: ms(100), weight: 50 };
        let mut weights = vec![measured.weight];
        for nth in 0_u64..1000 {
            // 50 to 150 ms, in an order without a pattern.
            measured = next(measured, ms(50 + nth * 7919 % 101));
            weights.push(measured.weight);
        }
        weights.dedup();
        assert!(weights.len() <= 5, "{weights:?}");
        assert!(weights.iter().all(|weight| (35..=75).contains(weight)), "{weights:?}");
    }

    #[tokio::test]
    async fn an_instance_that_fails_has_less_and_one_that_is_quick_again_has_all() {
        let weight = Weight::register(&Registry::new()).unwrap();
        for _ in 0..100 {
            weight.observe(ms(1), false);
        }
        assert_eq!((weight.percent(), weight.shown.get()), (WEIGHT_MIN, WEIGHT_MIN.into()));
        for _ in 0..100 {
            weight.observe(ms(1), true);
        }
        assert_eq!((weight.percent(), weight.shown.get()), (WEIGHT_MAX, WEIGHT_MAX.into()));
    }
}
