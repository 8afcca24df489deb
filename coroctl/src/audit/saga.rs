//! What each payment was promised: an end, a legal way there, one per key, and that it is not forgotten.

use saga::contract::PAYMENT_TOPIC;

use super::finding::Tally;
use super::rows::Entries;
use super::seen::Seen;
use super::words::{Kind, Status};

/// S1: it has ended.
pub fn ended(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        tally.look(payment.status.has_ended(), *id, || format!("still {}", payment.status.as_str()));
    }
    tally
}

/// S2: only legal steps, versions without gaps: as told on Kafka, and at least as many as the columns show.
pub fn legal(seen: &Seen) -> Tally {
    let mut tally = seen.told.steps.clone();
    for (id, told) in &seen.told.payments {
        if let Some(version) = told.versions.gap(told.retold) {
            let last = told.versions.last;
            tally.offends(*id, || format!("version {last} is told, version {version} never was"));
        }
    }
    for (id, payment) in &seen.payments.rows {
        let (version, shown) = (payment.version, payment.shown);
        tally.look(version >= shown, *id, || {
            format!(
                "version {version}, though its columns show {shown} versions ({})",
                payment.status.as_str()
            )
        });
    }
    tally
}

/// S4: what was accepted is there: each payment that was told, and each that a caller was answered.
pub fn kept(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, told) in &seen.told.payments {
        let there = seen.payments.rows.contains_key(id);
        let explained = || seen.is_parked(PAYMENT_TOPIC, told.at);
        tally.look(there || explained(), *id, || "told on PaymentTopic, and has no row".to_owned());
    }
    for id in &seen.accepted {
        tally.look(seen.payments.rows.contains_key(id), *id, || "accepted, and has no row".to_owned());
    }
    tally
}

/// M4: what is held is held for a payment that has not ended.
pub fn held_for(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    let is_hold = |entries: &Entries| entries.first.is_some_and(|entry| entry.kind == Kind::Hold);
    for (id, entries) in seen.ledger.rows.iter().filter(|(_, entries)| is_hold(entries)) {
        let status = seen.payments.rows.get(id).map(|payment| payment.status);
        let lives = match status {
            Some(Status::Initiated | Status::Authorized) => true,
            Some(Status::Completed | Status::Rejected | Status::Failed | Status::Cancelled) | None => false,
        };
        tally.look(lives || entries.second.is_some(), *id, || {
            format!("money is held, and the payment is {}", status.map_or("missing", Status::as_str))
        });
    }
    tally
}

/// M6: user, amount and service of each ledger entry, and of the charge with its client number, are the payment's.
pub fn same(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        let entries =
            seen.ledger.rows.get(id).into_iter().flat_map(|entries| [entries.first, entries.second]);
        let entries = entries.flatten().map(|entry| (entry.kind.as_str(), entry.terms));
        let charge = seen.charges.rows.get(id).map(|charge| ("charge", charge.terms));
        for (row, terms) in entries.chain(charge) {
            let difference = payment.terms.difference(&terms);
            let what = || format!("its {row} has {}", difference.as_deref().unwrap_or_default());
            tally.look(difference.is_none(), *id, what);
        }
    }
    tally
}
