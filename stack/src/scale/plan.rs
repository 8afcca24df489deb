//! Decides which instances start and which are drained, so that there are as many as somebody wants.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::services::further::INSTANCES_MAX;

/// What is to be done with one instance, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Start(usize),
    Drain(usize),
}

/// Whether there may be so many instances.
///
/// # Errors
/// When there may not.
pub fn check(name: &str, wanted: usize) -> Result<()> {
    ensure!(
        wanted > 0,
        "nobody would do the work of {name}: give a number from 1 to {INSTANCES_MAX}. Nothing was changed"
    );
    ensure!(
        wanted <= INSTANCES_MAX,
        "the edge and the ports of a stack are for {INSTANCES_MAX} instances of {name}: give a number from 1 to \
         {INSTANCES_MAX}. Nothing was changed"
    );
    Ok(())
}

/// The steps from what is there, in their order: by number, whether the instance runs. Instances 1 to `wanted` stay or start,
/// the lowest first. The others are drained, the highest first, once those that stay are there.
pub fn steps(present: &BTreeMap<usize, bool>, wanted: usize) -> Vec<Step> {
    let runs = |number: &usize| present.get(number).is_some_and(|runs| *runs);
    let starts = (1..=wanted).filter(|number| !runs(number)).map(Step::Start);
    let drains = present.keys().rev().filter(|number| **number > wanted).map(|number| Step::Drain(*number));
    starts.chain(drains).collect()
}

#[cfg(test)]
mod tests {
    use super::Step::{Drain, Start};
    use super::*;

    /// The instances that are there and whether each runs, how many are wanted, and what is done.
    type Case<'a> = (&'a [(usize, bool)], usize, &'a [Step]);

    #[test]
    fn instances_start_from_below_and_are_drained_from_above() {
        let cases: [Case; 9] = [
            (&[(1, true), (2, true)], 2, &[]),
            (&[(1, true), (2, true)], 4, &[Start(3), Start(4)]),
            (&[(1, true), (2, true), (3, true)], 1, &[Drain(3), Drain(2)]),
            (&[], 2, &[Start(1), Start(2)]),
            // Those that do not run start, also in between.
            (&[(1, true), (2, false), (3, true)], 3, &[Start(2)]),
            (&[(1, false), (2, true)], 1, &[Start(1), Drain(2)]),
            // One that does not run is removed as well: it would come back otherwise.
            (&[(1, true), (2, false)], 1, &[Drain(2)]),
            // What an interrupted command left.
            (&[(1, true), (5, true)], 2, &[Start(2), Drain(5)]),
            (&[(1, true), (3, true), (5, true)], 4, &[Start(2), Start(4), Drain(5)]),
        ];
        for (present, wanted, expected) in cases {
            let present = present.iter().copied().collect();
            assert_eq!(steps(&present, wanted), expected, "{present:?} to {wanted}");
        }
    }

    #[test]
    fn none_is_refused_and_so_is_more_than_there_is_room_for() {
        for wanted in [0, INSTANCES_MAX + 1, usize::MAX] {
            let refusal = check("payments-svc", wanted).unwrap_err().to_string();
            assert!(refusal.contains("payments-svc") && refusal.contains("Nothing was changed"), "{refusal}");
        }
        assert!((1..=INSTANCES_MAX).all(|wanted| check("payments-svc", wanted).is_ok()));
    }
}
