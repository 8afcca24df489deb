//! Pure decisions: which promises the rows of a payment, a movement or an account break.
//!
//! * A rule of docs/AUDIT.md stands once: where `coroctl audit` applies it to all rows, it is applied here to those that
//!   changed ([`RULES`]).
//! * Rows of an effect are read before those of its cause (payments, ledger, charges), as there. So most rules hold while
//!   payments are under way, and those of the rest are read again ([`crate::suspicions`]).
//! * Movements and accounts are judged by induction. Each movement that changed continues the one before it: the next number,
//!   and the balances before it plus what it moves. Each account equals its last movement. If that holds for every
//!   movement and account, then accounts are the fold of the ledger (M3, M7), and the sums agree, since each movement
//!   keeps them: deposits = available + held + captured (M1). That no balance is below zero (M2) is asked of accounts: the
//!   numbers of movements from before migration V5 follow another order, in which it may seem so.

use coroctl::audit::checks::{gateway, reconcile, saga};
use coroctl::audit::finding::Tally;
use coroctl::audit::observed::Observed;
use coroctl::audit::read::rows::{Charge, Charges, Ledger, Payment, Payments};
use coroctl::audit::statuses::EntryKind;
use strum::{IntoStaticStr, VariantArray};
use uuid::Uuid;

/// User and payment, or user and deposit: the primary key of `payments`, and of `ledger` but for the phase.
pub type Key = (Uuid, Uuid);

/// A promise, by its name in docs/AUDIT.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
pub enum Check {
    M2,
    M3,
    M4,
    M6,
    M7,
    G4,
    R,
    S2,
    S4,
    T1,
    #[strum(serialize = "T1 chain")]
    T1Chain,
    T2,
    T3,
}

impl Check {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A broken promise, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub check: Check,
    /// Without what a person typed: it is logged.
    pub what: String,
}

impl Found {
    pub fn new(check: Check, what: impl Into<String>) -> Self {
        Self { check, what: what.into() }
    }
}

type Rule = (Check, fn(&Observed) -> Tally);

/// The rules over the rows of payments.
const RULES: [Rule; 5] = [
    (Check::M4, saga::hold_has_payment),
    (Check::M6, saga::same_terms),
    (Check::G4, gateway::definite),
    (Check::R, reconcile::rows_agree),
    (Check::S2, saga::legal_transitions),
];

/// The rows of some payments, each database in one snapshot.
#[derive(Debug, Default)]
pub struct Rows {
    pub payments: Payments,
    pub ledger: Ledger,
    pub charges: Charges,
}

impl Rows {
    /// The payment of this user; another user's row under the same id is none.
    pub fn payment(&self, (user_id, id): Key) -> Option<&Payment> {
        self.payments.rows.get(&id).filter(|payment| payment.terms.user_id == user_id)
    }

    pub fn charge(&self, (_, id): Key) -> Option<&Charge> {
        self.charges.rows.get(&id)
    }

    /// The promises that the rows of each payment break. Deposits break none: they have no payment and need none.
    pub fn violations(self) -> (Self, Vec<(Uuid, Found)>) {
        let Rows { payments, ledger, charges } = self;
        let observed = Observed { payments, ledger, charges, ..Observed::default() };
        let found = match RULES.iter().all(|(_, rule)| rule(&observed).violations == 0) {
            true => Vec::new(),
            // A tally names one offender, so each payment is asked about alone.
            false => ids(&observed).into_iter().flat_map(|id| violations_of(&observed, id)).collect(),
        };
        let Observed { payments, ledger, charges, .. } = observed;
        (Self { payments, ledger, charges }, found)
    }
}

fn ids(observed: &Observed) -> Vec<Uuid> {
    let (payments, ledger) = (observed.payments.rows.keys(), observed.ledger.rows.keys());
    let mut ids: Vec<Uuid> = payments.chain(ledger).chain(observed.charges.rows.keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn violations_of(all: &Observed, id: Uuid) -> Vec<(Uuid, Found)> {
    let mut one = Observed::default();
    one.payments.rows.extend(all.payments.rows.get(&id).map(|payment| (id, payment.clone())));
    one.ledger.rows.extend(all.ledger.rows.get(&id).map(|entries| (id, entries.clone())));
    one.charges.rows.extend(all.charges.rows.get(&id).map(|charge| (id, charge.clone())));
    one.charges.resolved.extend(all.charges.resolved.get(&id).map(|amounts| (id, amounts.clone())));
    let broken = RULES.iter().filter_map(|(check, rule)| Some((check, rule(&one).first?)));
    broken.map(|(check, offender)| (id, Found::new(*check, offender.what))).collect()
}

/// What a payment that has not ended waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum WaitsFor {
    /// A definite answer of the gateway.
    Gateway,
    /// A step of ours: an event that is not emitted, or not applied.
    Saga,
}

impl WaitsFor {
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// By the charge of a payment that has not ended.
    pub fn of(charge: Option<&Charge>) -> Self {
        if charge.is_some_and(|charge| !charge.status.is_definite()) { Self::Gateway } else { Self::Saga }
    }
}

/// Minor units of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balances {
    pub available: i64,
    pub held: i64,
}

impl Balances {
    const NOTHING: Self = Self { available: 0, held: 0 };

    /// After a movement; `None` beyond 64 bits.
    fn after(self, kind: EntryKind, amount: i64) -> Option<Self> {
        let (available, held) = match kind {
            EntryKind::Deposit => (amount, 0),
            EntryKind::Hold => (amount.checked_neg()?, amount),
            EntryKind::Capture => (0, amount.checked_neg()?),
            EntryKind::Release => (amount, amount.checked_neg()?),
            EntryKind::Rejection => (0, 0),
        };
        let (available, held) = (self.available.checked_add(available)?, self.held.checked_add(held)?);
        Some(Self { available, held })
    }
}

/// A movement, and the balances after the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    pub key: Key,
    pub kind: EntryKind,
    pub amount: i64,
    pub entry_no: i64,
    pub after: Balances,
    /// Of the movement with the number before; `None` if there is none.
    pub before: Option<Balances>,
}

/// Whether a movement continues the one before it.
pub fn continues(movement: &Movement) -> Option<Found> {
    let Movement { kind, amount, entry_no, after, before, .. } = movement;
    let broken =
        |why: String| Some(Found::new(Check::M7, format!("entry {entry_no}, a {}, {why}", kind.as_str())));
    let before = match (entry_no, before) {
        (1, None) => Balances::NOTHING,
        (1, Some(_)) => return broken("has an entry 0 before it".to_owned()),
        (_, None) => return broken("has no entry before it".to_owned()),
        (_, Some(before)) => *before,
    };
    let due = before.after(*kind, *amount);
    if due != Some(*after) {
        let due = due.map_or("more than there can be".to_owned(), |due| {
            format!("{} available, {} held", due.available, due.held)
        });
        return broken(format!("says {} available, {} held; it makes {due}", after.available, after.held));
    }
    None
}

/// An account, and its last movement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user_id: Uuid,
    /// Its balances and `last_entry_no`; `None`: no row.
    pub account: Option<(Balances, i64)>,
    /// The balances after the movement of that number; `None`: no such movement.
    pub last: Option<Balances>,
    /// The number of a movement after it, if there is one.
    pub beyond: Option<i64>,
}

/// Whether an account equals its last movement.
pub fn account(account: &Account) -> Vec<Found> {
    let mut found = Vec::new();
    if let Some(number) = account.beyond {
        let at = account
            .account
            .map_or("there is no account".to_owned(), |(_, no)| format!("the account is at entry {no}"));
        found.push(Found::new(Check::M7, format!("{at}, the ledger has entry {number}")));
    }
    let Some((balances, number)) = account.account else { return found };
    let due = match (number, account.last) {
        (0, None) => Balances::NOTHING,
        (_, Some(last)) => last,
        (_, None) => {
            found.push(Found::new(
                Check::M7,
                format!("the account is at entry {number}, which the ledger has not"),
            ));
            return found;
        }
    };
    let Balances { available, held } = balances;
    if balances != due {
        let what = format!(
            "{available} available, {held} held; entry {number} makes it {} and {}",
            due.available, due.held
        );
        found.push(Found::new(Check::M3, what));
    }
    if available < 0 || held < 0 {
        found.push(Found::new(Check::M2, format!("{available} available, {held} held")));
    }
    found
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
