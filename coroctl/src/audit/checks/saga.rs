//! Each payment ends, by legal transitions, is there once per key, and does not get lost.

use saga::contract::PAYMENT_TOPIC;

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::rows::Entries;
use crate::audit::statuses::{EntryKind, PaymentStatus};

/// S1: every payment has ended.
pub fn has_ended(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        tally.check(payment.status.has_ended(), *id, || format!("still {}", payment.status.as_str()));
    }
    tally
}

/// S2: only legal transitions, versions without gaps: as emitted, and at least as many as the columns show. Only operators
/// replace a definite outcome, by a resolution each.
pub fn legal_transitions(observed: &Observed) -> Tally {
    let mut tally = observed.events.transitions.clone();
    for (id, (count, what)) in &observed.events.replaced {
        if *count > observed.charges.resolved.get(id).map_or(0, Vec::len) {
            tally.violate(*id, || what.clone());
        }
    }
    for (id, events) in &observed.events.payments {
        if let Some(version) = events.versions.gap(events.re_emitted) {
            let last = events.versions.last;
            tally.violate(*id, || format!("version {last} was emitted, version {version} never"));
        }
    }
    for (id, payment) in &observed.payments.rows {
        let (version, shown) = (payment.version, payment.shown);
        tally.check(version >= shown, *id, || {
            format!(
                "version {version}, though its columns show {shown} versions ({})",
                payment.status.as_str()
            )
        });
    }
    tally
}

/// S3: one payment per user and idempotency key.
pub fn unique_key(observed: &Observed) -> Tally {
    observed.payments.keys.clone()
}

/// S4: every accepted payment has a row: each one that was emitted, and each 201 that a caller noted.
pub fn has_row(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, events) in &observed.events.payments {
        let there = observed.payments.rows.contains_key(id);
        let explained = || observed.is_parked(PAYMENT_TOPIC, events.at);
        tally.check(there || explained(), *id, || "emitted on PaymentTopic, and has no row".to_owned());
    }
    for id in &observed.accepted {
        tally.check(observed.payments.rows.contains_key(id), *id, || "accepted, and has no row".to_owned());
    }
    tally
}

/// M4: money is held only for a payment that has not ended.
pub fn hold_has_payment(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    let is_hold = |entries: &Entries| entries.first.is_some_and(|entry| entry.kind == EntryKind::Hold);
    for (id, entries) in observed.ledger.rows.iter().filter(|(_, entries)| is_hold(entries)) {
        let status = observed.payments.rows.get(id).map(|payment| payment.status);
        let lives = match status {
            Some(PaymentStatus::Initiated | PaymentStatus::Authorized) => true,
            Some(
                PaymentStatus::Completed
                | PaymentStatus::Rejected
                | PaymentStatus::Failed
                | PaymentStatus::Cancelled,
            )
            | None => false,
        };
        tally.check(lives || entries.second.is_some(), *id, || {
            format!("money is held, and the payment is {}", status.map_or("missing", PaymentStatus::as_str))
        });
    }
    tally
}

/// M6: user, amount and service of each ledger entry, and of the charge with its client number, are the payment's.
pub fn same_terms(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        let entries =
            observed.ledger.rows.get(id).into_iter().flat_map(|entries| [entries.first, entries.second]);
        let entries = entries.flatten().map(|entry| (entry.kind.as_str(), entry.terms));
        let charge = observed.charges.rows.get(id).map(|charge| ("charge", charge.terms));
        for (row, terms) in entries.chain(charge) {
            let difference = payment.terms.difference(&terms);
            let what = || format!("its {row} has {}", difference.as_deref().unwrap_or_default());
            tally.check(difference.is_none(), *id, what);
        }
    }
    tally
}
