//! The figures of a step, and what they mean for a load: pure.
//!
//! * A step is held if every payment was asked for, accepted and settled, within the limits.
//! * The knee is the highest rate that was held before one that was not.

use std::collections::BTreeMap;

use serde::Serialize;

use super::profile::{Limits, Profile, Step};
use crate::bench::latency::Summary;

/// What became of the payments of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    #[serde(flatten)]
    pub step: Step,
    /// Payments that were not asked for, since too many were under way.
    pub dropped: u64,
    /// Payments that were not accepted, by the answer.
    pub refused: BTreeMap<String, u64>,
    /// Payments that were accepted and did not end in time.
    pub unsettled: u64,
    /// Answers and ends that no payment may have, whatever the load.
    pub wrong: BTreeMap<String, u64>,
    pub accept: Summary,
    pub settle: Summary,
}

impl Figures {
    /// Why the step was not held, but for its latencies.
    fn losses(&self) -> Vec<String> {
        let mut losses = Vec::new();
        let Step { rate, .. } = self.step;
        if self.dropped > 0 {
            losses.push(format!("at {rate}/s: {} payments were dropped", self.dropped));
        }
        for (answer, count) in &self.refused {
            losses.push(format!("at {rate}/s: {count} payments were refused: {answer}"));
        }
        if self.unsettled > 0 {
            losses.push(format!("at {rate}/s: {} payments did not end in time", self.unsettled));
        }
        losses
    }

    /// The limits that were crossed.
    fn crossed(&self, limits: &Limits) -> Vec<String> {
        let Step { rate, .. } = self.step;
        let figures = [
            ("accept p99", self.accept.p99_ms, limits.accept_p99_ms),
            ("settle p95", self.settle.p95_ms, limits.settle_p95_ms),
            ("settle p99", self.settle.p99_ms, limits.settle_p99_ms),
        ];
        let above = figures.into_iter().filter(|(_, figure, limit)| *figure > f64::from(*limit));
        above
            .map(|(name, figure, limit)| format!("at {rate}/s: {name} is {figure:.0} ms, above {limit}"))
            .collect()
    }

    pub fn is_held(&self, limits: &Limits) -> bool {
        self.wrong.is_empty() && self.losses().is_empty() && self.crossed(limits).is_empty()
    }
}

/// The highest rate that was held, of steps that rise until one is not.
pub fn knee(steps: &[Figures], limits: &Limits) -> Option<u32> {
    steps.iter().take_while(|figures| figures.is_held(limits)).last().map(|figures| figures.step.rate)
}

/// Why the load failed; empty if it passed. The audit has its own verdict.
pub fn faults(profile: &Profile, steps: &[Figures], with_limits: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for figures in steps {
        let Step { rate, .. } = figures.step;
        faults
            .extend(figures.wrong.iter().map(|(what, count)| format!("at {rate}/s: {what} ({count} times)")));
        // A load that looks for the knee goes beyond it.
        if !profile.finds_knee {
            faults.extend(figures.losses());
            faults.extend(if with_limits { figures.crossed(&profile.limits) } else { Vec::new() });
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::super::profile::Changes;
    use super::*;

    fn quick() -> Figures {
        let summary = Summary { count: 100, p50_ms: 1.0, p95_ms: 2.0, p99_ms: 3.0, max_ms: 4.0 };
        Figures {
            step: Step { rate: 100, seconds: 1 },
            dropped: 0,
            refused: BTreeMap::new(),
            unsettled: 0,
            wrong: BTreeMap::new(),
            accept: summary,
            settle: summary,
        }
    }

    fn once(what: &str) -> BTreeMap<String, u64> {
        BTreeMap::from([(what.to_owned(), 1)])
    }

    /// Each way in which a step is not held, and whether it also fails a load that looks for the knee.
    fn mishaps() -> Vec<(Figures, &'static str, bool)> {
        let slow = |p95_ms, p99_ms| Summary { p95_ms, p99_ms, ..quick().settle };
        vec![
            (Figures { dropped: 1, ..quick() }, "1 payments were dropped", false),
            (Figures { refused: once("503"), ..quick() }, "refused: 503", false),
            (Figures { unsettled: 1, ..quick() }, "did not end in time", false),
            (Figures { wrong: once("it ended as completed"), ..quick() }, "it ended as completed", true),
            (Figures { accept: slow(2.0, 251.0), ..quick() }, "accept p99 is 251 ms, above 250", false),
            (Figures { settle: slow(2001.0, 2001.0), ..quick() }, "settle p95 is 2001 ms, above 2000", false),
            (Figures { settle: slow(2.0, 5001.0), ..quick() }, "settle p99 is 5001 ms, above 5000", false),
        ]
    }

    #[test]
    fn one_mishap_is_enough() {
        let smoke = Profile::named("smoke", Changes::default()).unwrap();
        assert!(quick().is_held(&smoke.limits));
        assert_eq!(faults(&smoke, &[quick()], true), Vec::<String>::new());
        let knee_finder = Profile { finds_knee: true, ..smoke.clone() };
        for (figures, expected, also_beyond_the_knee) in mishaps() {
            assert!(!figures.is_held(&smoke.limits), "{expected}");
            let steps = [quick(), figures];
            let found = faults(&smoke, &steps, true);
            assert!(matches!(found.as_slice(), [fault] if fault.contains(expected)), "{expected}: {found:?}");
            let is_latency = expected.contains("above");
            assert_eq!(faults(&smoke, &steps, false).is_empty(), is_latency, "{expected}");
            assert_eq!(faults(&knee_finder, &steps, true).is_empty(), !also_beyond_the_knee, "{expected}");
        }
    }

    #[test]
    fn the_knee_is_the_highest_rate_before_the_first_that_was_not_held() {
        let limits = Profile::named("stress", Changes::default()).unwrap().limits;
        let at = |rate, dropped| Figures { step: Step { rate, seconds: 1 }, dropped, ..quick() };
        assert_eq!(knee(&[at(100, 0), at(200, 0), at(400, 1)], &limits), Some(200));
        assert_eq!(knee(&[at(100, 0), at(200, 1), at(400, 0)], &limits), Some(100));
        assert_eq!(knee(&[at(100, 0), at(200, 0)], &limits), Some(200));
        assert_eq!(knee(&[at(100, 1)], &limits), None);
    }
}
