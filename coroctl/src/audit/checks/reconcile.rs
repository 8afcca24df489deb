//! R: reconciles three ledgers: each payment's status, the ledger's entries, and the gateway's charges.
//!
//! * The charge row must agree with all three.
//! * No entry, charge row or charge is without a payment; a deposit names none. A hold without a payment that operators have
//!   ended is known: it was released, and nothing was charged.
//! * The rows of payments that have ended agree in every moment, since an effect is read before its cause ([`rows_agree`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use uuid::Uuid;

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::read::gateway::NetCharge;
use crate::audit::read::rows::{Charge, Entries, Payment};
use crate::audit::statuses::{ChargeStatus, EntryKind, PaymentStatus};

/// A disagreement about a payment.
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

/// One payment on all sides.
struct Sides<'a> {
    entries: Option<&'a Entries>,
    charge: Option<&'a Charge>,
    net: NetCharge,
}

impl Sides<'_> {
    fn kinds(&self) -> (Option<EntryKind>, Option<EntryKind>) {
        let entries = self.entries.map(|entries| (entries.first, entries.second)).unwrap_or_default();
        (entries.0.map(|entry| entry.kind), entries.1.map(|entry| entry.kind))
    }

    fn charge_status(&self) -> Option<ChargeStatus> {
        self.charge.map(|charge| charge.status)
    }

    /// One line for people.
    fn describe(&self) -> String {
        let entries = match self.kinds() {
            (None, None) => "nothing".to_owned(),
            (first, second) => {
                let kinds = [first, second].into_iter().flatten().map(EntryKind::as_str);
                kinds.collect::<Vec<_>>().join(" and ")
            }
        };
        let charge = self.charge_status().map_or("no charge row", ChargeStatus::as_str);
        format!("ledger: {entries}; charge: {charge}; gateway: {}", self.net.describe())
    }
}

/// R: examines all payments, and also rows and charges that belong to none.
pub fn agree(observed: &Observed) -> Tally {
    let (mut tally, mut classes) = (Tally::default(), BTreeMap::<Mismatch, u64>::new());
    let mut found = |mismatch: Mismatch, tally: &mut Tally, id: Uuid, status: &str, sides: &Sides<'_>| {
        *classes.entry(mismatch).or_default() += 1;
        tally.violate(id, || format!("{status}, {mismatch} ({})", sides.describe()));
    };
    for (id, payment) in &observed.payments.rows {
        tally.count();
        let sides = sides(observed, *id);
        if let Some(mismatch) = judge(payment, &sides) {
            found(mismatch, &mut tally, *id, payment.status.as_str(), &sides);
        }
    }
    for id in without_payment(observed) {
        tally.count();
        found(Mismatch::NoPayment, &mut tally, id, "not in payments", &sides(observed, id));
    }
    if tally.violations > 1
        && let Some(first) = &mut tally.first
    {
        let counts: Vec<String> = classes.iter().map(|(class, count)| format!("{count} × {class}")).collect();
        first.what = format!("{} [{}]", first.what, counts.join(", "));
    }
    tally
}

/// R as far as rows show it without the gateway: the payments that have ended, and whatever rows name no payment. The
/// latter need not be a violation while payments are made, since the payment is read first: ask again.
pub fn rows_agree(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in observed.payments.rows.iter().filter(|(_, payment)| payment.status.has_ended()) {
        let sides = sides(observed, *id);
        let mismatch = judge_rows(payment, &sides);
        tally.check(mismatch.is_none(), *id, || {
            let mismatch = mismatch.map(|mismatch| mismatch.to_string()).unwrap_or_default();
            format!("{}, {mismatch} ({})", payment.status.as_str(), sides.describe())
        });
    }
    for id in without_payment(observed) {
        tally.check(false, id, || format!("not in payments ({})", sides(observed, id).describe()));
    }
    tally
}

fn sides(observed: &Observed, id: Uuid) -> Sides<'_> {
    Sides {
        entries: observed.ledger.rows.get(&id),
        charge: observed.charges.rows.get(&id),
        net: observed.gateway.net_of(id),
    }
}

/// Payment ids that have entries, a charge row or a charge, and no payment.
fn without_payment(observed: &Observed) -> BTreeSet<Uuid> {
    let is_deposit = |entries: &Entries| entries.first.is_some_and(|entry| entry.kind == EntryKind::Deposit);
    let entries = observed.ledger.rows.iter().filter(|(_, entries)| !is_deposit(entries)).map(|(id, _)| id);
    let charges = observed.charges.rows.keys();
    let net = observed.gateway.net.keys();
    entries
        .chain(charges)
        .chain(net)
        .filter(|id| !observed.payments.rows.contains_key(*id) && !is_resolved(observed, **id))
        .copied()
        .collect()
}

/// Two operators have ended this hold, and nothing is left of it.
fn is_resolved(observed: &Observed, id: Uuid) -> bool {
    let sides = sides(observed, id);
    observed.charges.resolved.contains_key(&id)
        && sides.kinds() == (Some(EntryKind::Hold), Some(EntryKind::Release))
        && matches!(sides.charge_status(), Some(ChargeStatus::Expired | ChargeStatus::Declined))
        && sides.net.is_nothing()
}

/// The sides of a payment as they should be.
struct Expected {
    entries: (Option<EntryKind>, Option<EntryKind>),
    charge: &'static [Option<ChargeStatus>],
    charged: ExpectedCharge,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpectedCharge {
    Once,
    Nothing,
    /// A call may be under way.
    AtMostOnce,
}

fn expected(status: PaymentStatus) -> Expected {
    const UNDECIDED: &[Option<ChargeStatus>] =
        &[None, Some(ChargeStatus::Waiting), Some(ChargeStatus::Calling), Some(ChargeStatus::Unknown)];
    let (entries, charge, charged): (_, &[Option<ChargeStatus>], _) = match status {
        PaymentStatus::Initiated => ((None, None), &[None], ExpectedCharge::Nothing),
        PaymentStatus::Authorized => ((Some(EntryKind::Hold), None), UNDECIDED, ExpectedCharge::AtMostOnce),
        PaymentStatus::Completed => (
            (Some(EntryKind::Hold), Some(EntryKind::Capture)),
            &[Some(ChargeStatus::Succeeded)],
            ExpectedCharge::Once,
        ),
        PaymentStatus::Failed => (
            (Some(EntryKind::Hold), Some(EntryKind::Release)),
            &[Some(ChargeStatus::Declined), Some(ChargeStatus::Expired)],
            ExpectedCharge::Nothing,
        ),
        PaymentStatus::Cancelled => (
            (Some(EntryKind::Hold), Some(EntryKind::Release)),
            &[Some(ChargeStatus::Cancelled)],
            ExpectedCharge::Nothing,
        ),
        PaymentStatus::Rejected => ((Some(EntryKind::Rejection), None), &[None], ExpectedCharge::Nothing),
    };
    Expected { entries, charge, charged }
}

/// The first disagreement of the payment with its entries and its charge row.
fn judge_rows(payment: &Payment, sides: &Sides<'_>) -> Option<Mismatch> {
    let Expected { entries, charge, charged: _ } = expected(payment.status);
    let amounts = sides.entries.into_iter().flat_map(|entries| [entries.first, entries.second]);
    let amounts = amounts.flatten().map(|entry| entry.amount);
    let mut amounts = amounts.chain(sides.charge.map(|charge| charge.amount));
    if sides.kinds() != entries {
        return Some(Mismatch::Entries);
    }
    if !charge.contains(&sides.charge_status()) {
        return Some(Mismatch::Charge);
    }
    amounts.any(|amount| amount != payment.amount).then_some(Mismatch::Amount)
}

fn judge(payment: &Payment, sides: &Sides<'_>) -> Option<Mismatch> {
    if let Some(mismatch) = judge_rows(payment, sides) {
        return Some(mismatch);
    }
    let charged = expected(payment.status).charged;
    let NetCharge { amount, .. } = sides.net;
    match (charged, sides.net.standing()) {
        (ExpectedCharge::Once | ExpectedCharge::AtMostOnce, 1) if amount == i128::from(payment.amount) => {
            None
        }
        (ExpectedCharge::Once | ExpectedCharge::AtMostOnce, 1) => Some(Mismatch::OtherAmountCharged),
        (ExpectedCharge::Once, ..=0) => Some(Mismatch::NotCharged),
        (ExpectedCharge::Nothing | ExpectedCharge::AtMostOnce, 0) if amount == 0 => None,
        (ExpectedCharge::Once | ExpectedCharge::AtMostOnce, _) => Some(Mismatch::ChargedTwice),
        (ExpectedCharge::Nothing, _) => Some(Mismatch::ChargedAnyway),
    }
}
