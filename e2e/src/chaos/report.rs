//! Reports a run: the ends of its payments, its faults, its duplicates, and every deviation.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use anyhow::{Result, bail};
use uuid::Uuid;

use super::Run;
use super::board::PaymentRow;
use super::faults::{Fault, FaultKind};
use super::load::{self, Load};
use super::plan::{Kind, Plan};
use crate::bench::figures::table;
use crate::retrying_client::RetryCounts;
use coroctl::audit::{self, Finding};

/// How many deviations are printed in full.
const DEVIATIONS_SHOWN_MAX: usize = 10;
/// The check of the audit that compares payments with their notifications.
const NOTIFICATIONS: &str = "D2";
const ENDS: [&str; 4] = ["completed", "failed", "rejected", "cancelled"];

pub struct Report {
    pub seed: u64,
    pub payments: usize,
    pub seconds: f64,
    /// Payments by planned kind and end.
    ends: BTreeMap<(Kind, String), usize>,
    faults: Vec<String>,
    /// Why clients repeated requests.
    pub retries: RetryCounts,
    /// The longest time from acceptance to end, with its payment.
    slowest: Option<(f64, Uuid, Kind)>,
    /// Events that were emitted again, by topic.
    pub re_emitted: BTreeMap<String, u64>,
    /// Duplicates that services recognised and did not apply.
    pub duplicate_counts: BTreeMap<&'static str, u64>,
    findings: Vec<Finding>,
    pub deviations: Vec<String>,
}

impl Report {
    pub fn new(run: &Run, load: &Load, ids: &[Uuid], rows: &[PaymentRow], findings: Vec<Finding>) -> Self {
        let mut ends: BTreeMap<(Kind, String), usize> = BTreeMap::new();
        let planned = |row: &PaymentRow| load::index(&row.key).map(|index| run.plan.payment(index).kind);
        for row in rows {
            if let Some(kind) = planned(row) {
                *ends.entry((kind, row.status.clone())).or_default() += 1;
            }
        }
        let slowest = rows.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let broken = findings.iter().filter(|finding| finding.is_violated()).map(broken);
        Self {
            seed: run.plan.seed,
            payments: run.plan.payments,
            seconds: 0.0,
            ends,
            faults: run.kills.iter().chain(&run.outages).map(describe).collect(),
            retries: load.retries.snapshot(),
            slowest: slowest.and_then(|row| Some((row.seconds, row.payment_id, planned(row)?))),
            re_emitted: BTreeMap::new(),
            duplicate_counts: BTreeMap::new(),
            deviations: deviations(&run.plan, &load.users, ids, rows).into_iter().chain(broken).collect(),
            findings,
        }
    }

    /// It deviates when the audit has examined fewer notifications than the payments that have to have one.
    #[must_use]
    pub fn with_notifications(mut self, notified: usize) -> Self {
        let unexamined = unexamined(&self.findings, notified);
        self.deviations.extend(unexamined);
        self
    }

    #[must_use]
    pub fn with_duration(self, seconds: f64) -> Self {
        Self { seconds, ..self }
    }

    #[must_use]
    pub fn with_duplicates(
        self,
        re_emitted: BTreeMap<String, u64>,
        duplicate_counts: BTreeMap<&'static str, u64>,
    ) -> Self {
        Self { re_emitted, duplicate_counts, ..self }
    }

    /// The duplicates that were met, at least.
    pub fn duplicates(&self) -> u64 {
        self.duplicate_counts.values().sum::<u64>() + self.retries.replays
    }

    pub fn print(&self) {
        saga::say!("\nSeed {}, {} payments in {:.0} s.\n", self.seed, self.payments, self.seconds);
        saga::say!("{}\n", self.ends());
        saga::say!("{}\n", self.disturbances());
        saga::say!("{}", audit::report::text(&self.findings, &[]));
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
        for (topic, times) in &self.re_emitted {
            table.add_row([format!("events emitted again on {topic}"), times.to_string()]);
        }
        for (what, times) in &self.duplicate_counts {
            table.add_row([(*what).to_owned(), format!("≥ {times}")]);
        }
        let RetryCounts { unavailable, unanswered, timed_out, replays } = self.retries;
        for (what, times) in [
            ("requests that had been carried out", replays),
            ("requests to be repeated (502, 503, 504)", unavailable),
            ("requests without an answer", unanswered),
            ("requests not answered in time", timed_out),
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

    /// The result in a sentence.
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

fn describe(fault: &Fault) -> String {
    let Fault { target, kind, .. } = fault;
    match kind {
        FaultKind::Kill => format!("{target} killed"),
        FaultKind::Crash(time) => format!("{target} killed, and away for {} s", time.as_secs()),
        FaultKind::Stop(time) => format!("{target} stopped for {} s", time.as_secs()),
        FaultKind::Pause(time) => format!("{target} paused for {} s", time.as_secs()),
    }
}

fn broken(finding: &Finding) -> String {
    let Finding { name, promise, examined, violations, first, .. } = finding;
    let first = first.as_deref().unwrap_or("?");
    format!("{name} ({promise}): {violations} of {examined}, the first {first}")
}

/// That each notification holds says nothing where none was examined.
fn unexamined(findings: &[Finding], notified: usize) -> Option<String> {
    let finding = findings.iter().find(|finding| finding.name == NOTIFICATIONS);
    let examined = finding.map_or(0, |finding| finding.examined);
    let is_enough = usize::try_from(examined).is_ok_and(|examined| examined >= notified);
    (!is_enough).then(|| {
        format!("{NOTIFICATIONS} examined {examined} notifications, and {notified} payments have to have one")
    })
}

/// Every payment that is missing, differs from what was accepted, or did not end as planned.
fn deviations(plan: &Plan, users: &[Uuid], ids: &[Uuid], rows: &[PaymentRow]) -> Vec<String> {
    let mut deviations = Vec::new();
    let mut rows: HashMap<Uuid, &PaymentRow> = rows.iter().map(|row| (row.payment_id, row)).collect();
    for (index, payment_id) in ids.iter().enumerate() {
        let planned = plan.payment(index);
        let Some(row) = rows.remove(payment_id) else {
            deviations.push(format!("{payment_id} was accepted and is gone"));
            continue;
        };
        let PaymentRow { user_id, key, amount, status, reason, .. } = row;
        if (*user_id, key.as_str(), *amount) != (users[planned.user], &load::key(index), planned.amount) {
            deviations.push(format!("{payment_id} is not the payment that was accepted: {row:?}"));
        } else if !planned.kind.may_end(status) {
            let reason = reason.as_deref().unwrap_or("no reason");
            let (kind, number) = (planned.kind.as_str(), planned.client_number);
            deviations.push(format!("{payment_id} ({kind}, {number}) is {status} ({reason})"));
        }
    }
    deviations.extend(rows.values().map(|row| format!("{} was never accepted: {row:?}", row.payment_id)));
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
    fn as_planned() -> (Vec<Uuid>, Vec<Uuid>, Vec<PaymentRow>) {
        let users: Vec<Uuid> = (1..=2).map(Uuid::from_u128).collect();
        let ids: Vec<Uuid> = (0..PLAN.payments).map(|index| Uuid::from_u128(1_000 + index as u128)).collect();
        let row = |(index, id): (usize, &Uuid)| {
            let planned = PLAN.payment(index);
            PaymentRow {
                payment_id: *id,
                user_id: users[planned.user],
                key: load::key(index),
                amount: planned.amount,
                status: end(planned.kind).to_owned(),
                reason: None,
                seconds: 1.0,
            }
        };
        let rows = ids.iter().enumerate().map(row).collect();
        (users, ids, rows)
    }

    #[test]
    fn a_run_whose_notifications_nobody_examined_deviates() {
        let finding = |name, examined| Finding {
            name,
            promise: "one notification per end and channel",
            examined,
            violations: 0,
            first: None,
            payment_id: None,
            skipped: None,
        };
        assert_eq!(unexamined(&[finding("D1", 0), finding("D2", 40)], 40), None);
        assert_eq!(unexamined(&[], 0), None, "without a notifier nothing has to be there");
        for findings in [vec![], vec![finding("D2", 39), finding("D1", 40)], vec![finding("D2", 0)]] {
            let found = unexamined(&findings, 40).unwrap();
            assert!(found.contains("40 payments have to have one"), "{found}");
        }
    }

    #[test]
    fn a_run_as_planned_deviates_in_nothing() {
        let (users, ids, rows) = as_planned();
        assert_eq!(deviations(&PLAN, &users, &ids, &rows), Vec::<String>::new());
    }

    #[test]
    fn what_is_lost_altered_open_ended_otherwise_or_too_much_is_found() {
        let (users, ids, rows) = as_planned();
        let with = |change: fn(&mut Vec<PaymentRow>)| {
            let mut rows = rows.clone();
            change(&mut rows);
            let found = deviations(&PLAN, &users, &ids, &rows);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        assert!(with(|rows| drop(rows.pop())).contains("is gone"));
        assert!(with(|rows| rows[0].amount += 1).contains("not the payment"));
        assert!(with(|rows| rows[1].status = "authorized".into()).contains("is authorized"));
        assert!(
            with(|rows| {
                let more = PaymentRow { payment_id: Uuid::from_u128(7), ..rows[0].clone() };
                rows.push(more);
            })
            .contains("never accepted")
        );
    }
}
