//! What is said of a run: how payments ended, what was done to the system, what happened twice, what deviated.
#![allow(clippy::print_stdout, reason = "the report is the output")]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use anyhow::{Result, bail};
use uuid::Uuid;

use super::Run;
use super::board::Stand;
use super::faults::{Deed, Fault};
use super::load::{self, Load};
use super::plan::{Kind, Plan};
use crate::bench::report::table;
use crate::retrying_client::Troubles;
use coroctl::audit::{self, Finding};

/// How many deviations are printed in full.
const DEVIATIONS_SHOWN_MAX: usize = 10;
const ENDS: [&str; 4] = ["completed", "failed", "rejected", "cancelled"];

pub struct Report {
    pub seed: u64,
    pub payments: usize,
    pub seconds: f64,
    /// Payments by what they were planned to be and how they ended.
    ends: BTreeMap<(Kind, String), usize>,
    faults: Vec<String>,
    /// What clients met with.
    pub troubles: Troubles,
    /// The longest time from acceptance to end, with its payment.
    slowest: Option<(f64, Uuid, Kind)>,
    /// Events told again, by topic.
    pub told_again: BTreeMap<String, u64>,
    /// Duplicates that services met and left without effect.
    pub absorbed: BTreeMap<&'static str, u64>,
    findings: Vec<Finding>,
    pub deviations: Vec<String>,
}

impl Report {
    pub fn new(run: &Run, load: &Load, ids: &[Uuid], stands: &[Stand], findings: Vec<Finding>) -> Self {
        let mut ends: BTreeMap<(Kind, String), usize> = BTreeMap::new();
        let planned = |stand: &Stand| load::index(&stand.key).map(|index| run.plan.payment(index).kind);
        for stand in stands {
            if let Some(kind) = planned(stand) {
                *ends.entry((kind, stand.status.clone())).or_default() += 1;
            }
        }
        let slowest = stands.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let broken = findings.iter().filter(|finding| finding.is_violated()).map(broken);
        Self {
            seed: run.plan.seed,
            payments: run.plan.payments,
            seconds: 0.0,
            ends,
            faults: run.kills.iter().chain(&run.outages).map(told).collect(),
            troubles: load.trouble.so_far(),
            slowest: slowest.and_then(|stand| Some((stand.seconds, stand.payment_id, planned(stand)?))),
            told_again: BTreeMap::new(),
            absorbed: BTreeMap::new(),
            deviations: deviations(&run.plan, &load.users, ids, stands).into_iter().chain(broken).collect(),
            findings,
        }
    }

    #[must_use]
    pub fn took(self, seconds: f64) -> Self {
        Self { seconds, ..self }
    }

    #[must_use]
    pub fn repeated(self, told_again: BTreeMap<String, u64>, absorbed: BTreeMap<&'static str, u64>) -> Self {
        Self { told_again, absorbed, ..self }
    }

    /// How often something came that had been before, at least.
    pub fn duplicates(&self) -> u64 {
        self.absorbed.values().sum::<u64>() + self.troubles.replayed
    }

    pub fn print(&self) {
        println!("\nSeed {}, {} payments in {:.0} s.\n", self.seed, self.payments, self.seconds);
        println!("{}\n", self.ends());
        println!("{}\n", self.disturbances());
        println!("{}", audit::report::text(&self.findings, &[]));
    }

    fn ends(&self) -> String {
        let mut table =
            table(&["PLANNED", "PAYMENTS", "COMPLETED", "FAILED", "REJECTED", "CANCELLED", "OPEN"]);
        for kind in Kind::ALL {
            let of = |status: &str| self.ends.get(&(kind, status.to_owned())).copied().unwrap_or_default();
            let all: usize = self.ends.iter().filter(|((k, _), _)| *k == kind).map(|(_, count)| count).sum();
            let mut row = vec![kind.as_str().to_owned(), all.to_string()];
            let ended = ENDS.map(of);
            row.extend(ended.map(number));
            row.push(number(all - ended.iter().sum::<usize>()));
            table.add_row(row);
        }
        table.trim_fmt()
    }

    fn disturbances(&self) -> String {
        let mut by: BTreeMap<&str, usize> = BTreeMap::new();
        for fault in &self.faults {
            *by.entry(fault).or_default() += 1;
        }
        let mut table = table(&["WHAT HAPPENED", "TIMES"]);
        for (what, times) in by {
            table.add_row([what.to_owned(), times.to_string()]);
        }
        for (topic, times) in &self.told_again {
            table.add_row([format!("events told again on {topic}"), times.to_string()]);
        }
        for (what, times) in &self.absorbed {
            table.add_row([(*what).to_owned(), format!("≥ {times}")]);
        }
        let Troubles { unavailable, unheard, hung, replayed } = self.troubles;
        for (what, times) in [
            ("requests that had been carried out", replayed),
            ("requests told to come back (502, 503, 504)", unavailable),
            ("requests that nobody heard", unheard),
            ("requests not answered in time", hung),
        ] {
            table.add_row([what.to_owned(), times.to_string()]);
        }
        let mut text = table.trim_fmt();
        if let Some((seconds, payment_id, kind)) = &self.slowest {
            text.push_str(&format!(
                "\n\nThe slowest took {seconds:.1} s from its 201 to its end ({}, {payment_id}).",
                kind.as_str()
            ));
        }
        text
    }

    /// What it comes to, in a sentence.
    ///
    /// # Errors
    /// When anything deviated: from the plan, or from an invariant.
    pub fn verdict(&self) -> Result<String> {
        if self.deviations.is_empty() {
            let Self { payments, faults, .. } = self;
            return Ok(format!(
                "Everything held: {payments} payments under {}, each ended as planned, none charged twice, no \
                 money missing.\nAt least {} duplicates changed nothing.",
                counted(faults.len(), "fault"),
                self.duplicates()
            ));
        }
        let mut text = format!("{}:", counted(self.deviations.len(), "deviation"));
        for deviation in self.deviations.iter().take(DEVIATIONS_SHOWN_MAX) {
            write!(text, "\n  {deviation}")?;
        }
        bail!(text)
    }
}

fn number(count: usize) -> String {
    if count == 0 { "·".to_owned() } else { count.to_string() }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn told(fault: &Fault) -> String {
    let Fault { whom, deed, .. } = fault;
    match deed {
        Deed::Kill => format!("{whom} killed"),
        Deed::Crash(time) => format!("{whom} killed, and away for {} s", time.as_secs()),
        Deed::Stop(time) => format!("{whom} stopped for {} s", time.as_secs()),
        Deed::Pause(time) => format!("{whom} paused for {} s", time.as_secs()),
    }
}

fn broken(finding: &Finding) -> String {
    let Finding { name, promise, examined, violations, first, .. } = finding;
    let first = first.as_deref().unwrap_or("?");
    format!("{name} ({promise}): {violations} of {examined}, the first {first}")
}

/// Every payment that is not there exactly as it was accepted, or did not end as planned.
fn deviations(plan: &Plan, users: &[Uuid], ids: &[Uuid], stands: &[Stand]) -> Vec<String> {
    let mut deviations = Vec::new();
    let mut rows: HashMap<Uuid, &Stand> = stands.iter().map(|stand| (stand.payment_id, stand)).collect();
    for (index, payment_id) in ids.iter().enumerate() {
        let planned = plan.payment(index);
        let Some(stand) = rows.remove(payment_id) else {
            deviations.push(format!("{payment_id} was accepted and is gone"));
            continue;
        };
        let Stand { user_id, key, amount, status, reason, .. } = stand;
        if (*user_id, key.as_str(), *amount) != (users[planned.user], &load::key(index), planned.amount) {
            deviations.push(format!("{payment_id} is not the payment that was accepted: {stand:?}"));
        } else if !planned.kind.may_end(status) {
            let reason = reason.as_deref().unwrap_or("no reason");
            let (kind, number) = (planned.kind.as_str(), planned.client_number);
            deviations.push(format!("{payment_id} ({kind}, {number}) is {status} ({reason})"));
        }
    }
    deviations
        .extend(rows.values().map(|stand| format!("{} was never accepted: {stand:?}", stand.payment_id)));
    deviations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::plan::Mix;

    const PLAN: Plan = Plan { seed: 1, payments: 40, users: 2, mix: Mix::WHOLE };

    fn end(kind: Kind) -> &'static str {
        ENDS.into_iter().find(|status| kind.may_end(status)).unwrap()
    }

    /// Everything as planned.
    fn world() -> (Vec<Uuid>, Vec<Uuid>, Vec<Stand>) {
        let users: Vec<Uuid> = (1..=2).map(Uuid::from_u128).collect();
        let ids: Vec<Uuid> = (0..PLAN.payments).map(|index| Uuid::from_u128(1_000 + index as u128)).collect();
        let stand = |(index, id): (usize, &Uuid)| {
            let planned = PLAN.payment(index);
            Stand {
                payment_id: *id,
                user_id: users[planned.user],
                key: load::key(index),
                amount: planned.amount,
                status: end(planned.kind).to_owned(),
                reason: None,
                seconds: 1.0,
            }
        };
        let stands = ids.iter().enumerate().map(stand).collect();
        (users, ids, stands)
    }

    #[test]
    fn a_run_as_planned_deviates_in_nothing() {
        let (users, ids, stands) = world();
        assert_eq!(deviations(&PLAN, &users, &ids, &stands), Vec::<String>::new());
    }

    #[test]
    fn what_is_lost_altered_open_ended_otherwise_or_too_much_is_found() {
        let (users, ids, stands) = world();
        let with = |change: fn(&mut Vec<Stand>)| {
            let mut stands = stands.clone();
            change(&mut stands);
            let found = deviations(&PLAN, &users, &ids, &stands);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        assert!(with(|stands| drop(stands.pop())).contains("is gone"));
        assert!(with(|stands| stands[0].amount += 1).contains("not the payment"));
        assert!(with(|stands| stands[1].status = "authorized".into()).contains("is authorized"));
        assert!(
            with(|stands| {
                let more = Stand { payment_id: Uuid::from_u128(7), ..stands[0].clone() };
                stands.push(more);
            })
            .contains("never accepted")
        );
    }
}
