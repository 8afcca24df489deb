//! Rows against Kafka, in both directions, and what lies about on the way.

use std::collections::BTreeSet;

use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

use super::finding::{Offender, Tally};
use super::seen::Seen;
use super::told::Place;

/// T1: each version of a payment, each ledger entry, and the outcome each charge has now.
pub fn told(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        let told = seen.told.payments.get(id).cloned().unwrap_or_default();
        for version in 1..=payment.version {
            let there = told.versions.has(version) || version < told.retold;
            tally.look(there, *id, || format!("version {version} is not on {PAYMENT_TOPIC}"));
        }
    }
    for (id, entries) in &seen.ledger.rows {
        let told = seen.told.ledger.get(id).map(|told| told.entries).unwrap_or_default();
        for (entry, told) in [entries.first, entries.second].into_iter().zip(told) {
            let Some(entry) = entry else { continue };
            let what = || format!("its {} is not on {BALANCE_TOPIC}", entry.kind.as_str());
            tally.look(told.is_some(), *id, what);
        }
    }
    for (id, charge) in seen.charges.rows.iter().filter(|(_, charge)| charge.status.is_told()) {
        let there = seen.told.charges.get(id).is_some_and(|told| told.versions.has(charge.version));
        tally.look(there, *id, || {
            let (status, version) = (charge.status.as_str(), charge.version);
            format!("its charge is {status} (version {version}), which is not on {PAYMENT_RESULT_TOPIC}")
        });
    }
    tally
}

/// T3: each event tells a version that is committed, the last one as its row is. What services have set aside
/// is known; what somebody has explained was not read.
pub fn committed(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    let mut judge = |topic: &str, id: Uuid, at: Place, problem: Option<&str>| {
        tally.saw();
        if let Some(problem) = problem.filter(|_| !seen.is_parked(topic, at)) {
            tally.offends(id, || format!("{topic}/{}/{} {problem}", at.0, at.1));
        }
    };
    for (id, told) in &seen.told.payments {
        let problem = match seen.payments.rows.get(id) {
            None => Some("tells of a payment that has no row"),
            Some(row) if told.versions.last > row.version => Some("tells a version that was never committed"),
            Some(row) if told.versions.last == row.version && told.print() != row.print => {
                Some("differs from its row")
            }
            Some(_) => None,
        };
        judge(PAYMENT_TOPIC, *id, told.at, problem);
    }
    for (id, told) in &seen.told.ledger {
        let rows = seen.ledger.rows.get(id).map(|row| [row.first, row.second]).unwrap_or_default();
        for (told, row) in told.entries.iter().zip(rows) {
            let Some((print, at)) = told else { continue };
            let problem = match row {
                None => Some("tells of a ledger entry that has no row"),
                Some(row) => (row.print != *print).then_some("differs from its ledger row"),
            };
            judge(BALANCE_TOPIC, *id, *at, problem);
        }
    }
    for (id, told) in &seen.told.charges {
        let problem = match seen.charges.rows.get(id) {
            None => Some("tells of a charge that has no row"),
            Some(row) if told.versions.last > row.version => {
                Some("tells a charge's version that was never committed")
            }
            Some(row) if told.versions.last == row.version && told.print() != row.print => {
                Some("differs from its charge row")
            }
            Some(_) => None,
        };
        judge(PAYMENT_RESULT_TOPIC, *id, told.at, problem);
    }
    tally.examined = tally.examined.max(seen.told.records);
    for foreign in seen.told.foreign.iter().filter(|foreign| !seen.parked_ids.contains(&foreign.at)) {
        tally.offends(None, || {
            format!("{} is no event: {}; nobody parked or explained it", foreign.at, foreign.why)
        });
    }
    tally
}

/// T5: one row per (payment, phase), one charge, and not more versions than things that happened.
pub fn once(seen: &Seen) -> Tally {
    let twice = [&seen.payments.twice, &seen.ledger.twice, &seen.charges.twice];
    let mut tally = twice.into_iter().fold(Tally::default(), Tally::and);
    for (id, payment) in &seen.payments.rows {
        // An outcome that was once unknown leaves no column behind.
        let most = payment.shown + 1;
        if payment.version > most {
            let (version, status) = (payment.version, payment.status.as_str());
            tally.offends(*id, || format!("version {version}, though {status} takes at most {most}"));
        }
    }
    tally
}

/// T6: nothing is set aside that nobody has explained.
pub fn set_aside(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    let known = |id: &str| seen.explained.contains(id);
    let parked = [
        ("payments", &seen.payments.parked),
        ("balance", &seen.ledger.parked),
        ("processor", &seen.charges.parked),
    ];
    for (database, parked) in parked {
        for message in parked {
            let what = || format!("{database} parked {}: {}", message.parked_id, message.reason);
            tally.look(known(&message.parked_id), message.payment_id, what);
        }
    }
    for letter in &seen.letters {
        tally.look(known(&letter.at), None, || format!("dead letter {}: {}", letter.at, letter.why));
    }
    tally
}

/// T6: the work queue is empty.
pub fn queue(seen: &Seen) -> Tally {
    let waiting = u64::from(seen.waiting);
    counted(waiting, waiting, || format!("{waiting} messages wait"))
}

/// T6: each group has applied what there is.
pub fn lag(seen: &Seen) -> Tally {
    let there = seen.lags.iter().map(|lag| lag.there.unsigned_abs()).sum();
    let behind = seen.lags.iter().map(|lag| lag.behind.unsigned_abs()).sum();
    let late = seen.lags.iter().filter(|lag| lag.behind > 0);
    let late = late.map(|lag| format!("{} is {} records behind", lag.group, lag.behind));
    counted(there, behind, || late.collect::<Vec<_>>().join(", "))
}

fn counted(examined: u64, violations: u64, what: impl FnOnce() -> String) -> Tally {
    let first = (violations > 0).then(|| Offender { payment_id: None, what: what() });
    Tally { examined, violations, first }
}

/// T4: no slot is confirmed beyond what the relay remembers as acknowledged by all sinks.
pub fn acknowledged(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for memory in &seen.memories {
        if let Some(problem) = seen.slot_problem(memory) {
            tally.look(false, None, || format!("slot {}: {problem}", memory.slot));
        } else {
            tally.saw();
        }
    }
    let remembered: BTreeSet<&str> = seen.memories.iter().map(|memory| memory.source.as_str()).collect();
    for source in seen.told.chains.sources().filter(|source| !remembered.contains(source)) {
        tally.look(false, None, || format!("{source} was told, but the relay's memory of it is gone"));
    }
    tally
}
