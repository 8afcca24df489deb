//! Schedules the faults of a run, as a pure function of the seed.
//!
//! * Moments are counted in accepted payments, so a slow machine has the same run as a fast one.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Kills leave out so many percent of a run at both ends: nothing is under way yet, or hardly anything to come.
const MARGIN_PERCENT: usize = 4;
/// A fault follows its moment by up to so many milliseconds, so that it does not always find a payment freshly
/// accepted.
const DELAY_MS_MAX: u64 = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When so many payments have been accepted …
    pub after: usize,
    /// … and then so long.
    pub delay: Duration,
    /// A process or server of the stack.
    pub target: String,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL to a service: the supervisor brings it back.
    Kill,
    /// SIGKILL to a server, which is started again after so long.
    Crash(Duration),
    /// A server is asked to stop, and started again after so long.
    Stop(Duration),
    /// SIGSTOP, and SIGCONT after so long: a process that lost its time without knowing.
    Pause(Duration),
}

/// `NAME:SECONDS`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    pub target: String,
    pub time: Duration,
}

impl FromStr for Outage {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((target, seconds)) = text.split_once(':') else {
            bail!("expected NAME:SECONDS, e.g. kafka:30")
        };
        let seconds = seconds.parse().context("expected whole seconds after the colon")?;
        Ok(Self { target: target.to_owned(), time: Duration::from_secs(seconds) })
    }
}

/// `kills` kills over all `processes`, in order; with enough kills each of them has its turn.
pub fn kills(seed: u64, payments: usize, kills: usize, processes: &[String]) -> Vec<Fault> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut turn: Vec<&String> = processes.iter().collect();
    turn.shuffle(&mut random);
    let edge = payments * MARGIN_PERCENT / 100;
    let mut faults: Vec<Fault> = (0..kills)
        .map(|nth| {
            let target = match turn.get(nth) {
                Some(target) => (*target).clone(),
                None => processes[random.random_range(0..processes.len())].clone(),
            };
            let after = random.random_range(edge..=payments - edge);
            let delay = Duration::from_millis(random.random_range(0..DELAY_MS_MAX));
            Fault { after, delay, target, kind: FaultKind::Kill }
        })
        .collect();
    faults.sort_by_key(|fault| (fault.after, fault.delay));
    faults
}

/// Spreads faults evenly over the run, one after the other.
pub fn outages(payments: usize, kinds: Vec<(String, FaultKind)>) -> Vec<Fault> {
    let parts = kinds.len() + 2;
    let fault = |(nth, (target, kind))| Fault {
        after: payments * (nth + 1) / parts,
        delay: Duration::ZERO,
        target,
        kind,
    };
    kinds.into_iter().enumerate().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes() -> Vec<String> {
        ["a", "b", "c", "d", "e"].map(str::to_owned).into()
    }

    #[test]
    fn the_same_seed_kills_the_same_at_the_same_moments() {
        let schedule = |seed| kills(seed, 5_000, 20, &processes());
        assert_eq!(schedule(3), schedule(3));
        assert_ne!(schedule(3), schedule(4));
    }

    #[test]
    fn every_process_has_its_turn_in_the_middle_of_the_load() {
        for seed in 0..20 {
            let schedule = kills(seed, 1_000, 20, &processes());
            assert_eq!(schedule.len(), 20);
            assert!(processes().iter().all(|name| schedule.iter().any(|fault| fault.target == *name)));
            assert!(schedule.iter().all(|fault| (40..=960).contains(&fault.after)));
            assert!(schedule.is_sorted_by_key(|fault| fault.after));
        }
    }

    #[test]
    fn outages_are_spread_and_end_before_the_load_does() {
        let kafka: Outage = "kafka:30".parse().unwrap();
        assert_eq!(kafka, Outage { target: "kafka".into(), time: Duration::from_secs(30) });
        let pause = FaultKind::Pause(Duration::from_secs(5));
        let faults =
            outages(900, vec![(kafka.target, FaultKind::Stop(kafka.time)), ("redis".to_owned(), pause)]);
        assert_eq!(faults.iter().map(|fault| fault.after).collect::<Vec<_>>(), [225, 450]);
        assert_eq!((faults[1].target.as_str(), faults[1].kind), ("redis", pause));
        assert!("kafka".parse::<Outage>().is_err() && "kafka:x".parse::<Outage>().is_err());
    }
}
