//! The three-way reconciliation: each payment's status against the ledger's entries and against what the
//! gateway has charged, with the charge row as witness; and nothing anywhere without a payment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use uuid::Uuid;

use super::finding::Tally;
use super::gateway::Net;
use super::rows::{Charge, Entries, Payment};
use super::seen::Seen;
use super::words::{Charged, Kind, Status};

/// How the three may disagree about a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    NoPayment,
    Entries,
    Amount,
    Charge,
    NotCharged,
    ChargedTwice,
    OtherAmountCharged,
    ChargedAnyway,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPayment => "no such payment",
            Self::Entries => "the ledger says otherwise",
            Self::Amount => "another amount in the ledger or the charge row",
            Self::Charge => "the charge row says otherwise",
            Self::NotCharged => "not charged",
            Self::ChargedTwice => "charged more than once",
            Self::OtherAmountCharged => "charged another amount",
            Self::ChargedAnyway => "charged without being completed",
        })
    }
}

/// What is known of one payment on all sides.
struct Sides<'a> {
    entries: Option<&'a Entries>,
    charge: Option<&'a Charge>,
    net: Net,
}

impl Sides<'_> {
    fn kinds(&self) -> (Option<Kind>, Option<Kind>) {
        let entries = self.entries.map(|entries| (entries.first, entries.second)).unwrap_or_default();
        (entries.0.map(|entry| entry.kind), entries.1.map(|entry| entry.kind))
    }

    fn charged(&self) -> Option<Charged> {
        self.charge.map(|charge| charge.status)
    }

    /// One line for people.
    fn told(&self) -> String {
        let entries = match self.kinds() {
            (None, None) => "nothing".to_owned(),
            (first, second) => {
                let words = [first, second].into_iter().flatten().map(Kind::as_str);
                words.collect::<Vec<_>>().join(" and ")
            }
        };
        let charge = self.charged().map_or("no charge row", Charged::as_str);
        format!("ledger: {entries}; charge: {charge}; gateway: {}", self.net.told())
    }
}

/// All payments are looked at, also what belongs to none.
pub fn agree(seen: &Seen) -> Tally {
    let (mut tally, mut classes) = (Tally::default(), BTreeMap::<Mismatch, u64>::new());
    let mut found = |mismatch: Mismatch, tally: &mut Tally, id: Uuid, status: &str, sides: &Sides<'_>| {
        *classes.entry(mismatch).or_default() += 1;
        tally.offends(id, || format!("{status}, {mismatch} ({})", sides.told()));
    };
    for (id, payment) in &seen.payments.rows {
        tally.saw();
        let sides = sides(seen, *id);
        if let Some(mismatch) = judge(payment, &sides) {
            found(mismatch, &mut tally, *id, payment.status.as_str(), &sides);
        }
    }
    for id in ownerless(seen) {
        tally.saw();
        found(Mismatch::NoPayment, &mut tally, id, "not in payments", &sides(seen, id));
    }
    if tally.violations > 1
        && let Some(first) = &mut tally.first
    {
        let counts: Vec<String> = classes.iter().map(|(class, count)| format!("{count} × {class}")).collect();
        first.what = format!("{} [{}]", first.what, counts.join(", "));
    }
    tally
}

fn sides(seen: &Seen, id: Uuid) -> Sides<'_> {
    Sides { entries: seen.ledger.rows.get(&id), charge: seen.charges.rows.get(&id), net: seen.gateway.of(id) }
}

/// Whatever names a payment that is not there. A deposit names none.
fn ownerless(seen: &Seen) -> BTreeSet<Uuid> {
    let is_deposit = |entries: &Entries| entries.first.is_some_and(|entry| entry.kind == Kind::Deposit);
    let entries = seen.ledger.rows.iter().filter(|(_, entries)| !is_deposit(entries)).map(|(id, _)| id);
    let charges = seen.charges.rows.keys();
    let net = seen.gateway.net.keys();
    entries.chain(charges).chain(net).filter(|id| !seen.payments.rows.contains_key(*id)).copied().collect()
}

/// What should stand on each side of a payment.
struct Due {
    entries: (Option<Kind>, Option<Kind>),
    charge: &'static [Option<Charged>],
    charged: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Once,
    Nothing,
    /// A call may be under way.
    AtMostOnce,
}

fn due(status: Status) -> Due {
    const UNDECIDED: &[Option<Charged>] =
        &[None, Some(Charged::Waiting), Some(Charged::Calling), Some(Charged::Unknown)];
    let (entries, charge, charged): (_, &[Option<Charged>], _) = match status {
        Status::Initiated => ((None, None), &[None], Wanted::Nothing),
        Status::Authorized => ((Some(Kind::Hold), None), UNDECIDED, Wanted::AtMostOnce),
        Status::Completed => {
            ((Some(Kind::Hold), Some(Kind::Capture)), &[Some(Charged::Succeeded)], Wanted::Once)
        }
        Status::Failed => (
            (Some(Kind::Hold), Some(Kind::Release)),
            &[Some(Charged::Declined), Some(Charged::Expired)],
            Wanted::Nothing,
        ),
        Status::Cancelled => {
            ((Some(Kind::Hold), Some(Kind::Release)), &[Some(Charged::Cancelled)], Wanted::Nothing)
        }
        Status::Rejected => ((Some(Kind::Rejection), None), &[None], Wanted::Nothing),
    };
    Due { entries, charge, charged }
}

fn judge(payment: &Payment, sides: &Sides<'_>) -> Option<Mismatch> {
    let Due { entries, charge, charged } = due(payment.status);
    let amounts = sides.entries.into_iter().flat_map(|entries| [entries.first, entries.second]);
    let amounts = amounts.flatten().map(|entry| entry.amount);
    let mut amounts = amounts.chain(sides.charge.map(|charge| charge.amount));
    if sides.kinds() != entries {
        return Some(Mismatch::Entries);
    }
    if !charge.contains(&sides.charged()) {
        return Some(Mismatch::Charge);
    }
    if amounts.any(|amount| amount != payment.amount) {
        return Some(Mismatch::Amount);
    }
    let Net { amount, .. } = sides.net;
    match (charged, sides.net.standing()) {
        (Wanted::Once | Wanted::AtMostOnce, 1) if amount == i128::from(payment.amount) => None,
        (Wanted::Once | Wanted::AtMostOnce, 1) => Some(Mismatch::OtherAmountCharged),
        (Wanted::Once, ..=0) => Some(Mismatch::NotCharged),
        (Wanted::Nothing | Wanted::AtMostOnce, 0) if amount == 0 => None,
        (Wanted::Once | Wanted::AtMostOnce, _) => Some(Mismatch::ChargedTwice),
        (Wanted::Nothing, _) => Some(Mismatch::ChargedAnyway),
    }
}
