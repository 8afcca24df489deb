//! Decides which entries a restored ledger lacks, and the accounts that they lead to.
//!
//! * Every function is pure: the store reads and writes.
//! * Entries come in the order of BalanceTopic. Those of a user are on one partition in the order of their commits, so the
//!   ledger has the first of them, and the others continue it.
//! * A movement gets the next number of its account and the balances after it, as when it was first written.
//! * Money is taken from nowhere else. An entry that the ledger contradicts, or that it cannot follow, stops its user: no
//!   later entry of that user is written.

use std::collections::{HashMap, HashSet};
use std::fmt;

use saga::contract::LedgerEntry;
use saga::recovery::Emitted;
use strum::EnumString;
use uuid::Uuid;

use crate::account::Account;
use crate::store::BALANCE_MAX;

/// The primary key of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub phase: i16,
}

impl EntryKey {
    pub fn of(entry: &LedgerEntry) -> Self {
        Self { user_id: entry.user_id, payment_id: entry.payment_id, phase: entry.phase }
    }

    /// The first phase of the same payment.
    fn first(self) -> Self {
        Self { phase: 1, ..self }
    }
}

/// What the ledger has of the users and the payments of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    pub accounts: HashMap<Uuid, Account>,
    pub entries: HashMap<EntryKey, LedgerEntry>,
}

/// The kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "snake_case")]
enum Kind {
    Deposit,
    Hold,
    Rejection,
    Capture,
    Release,
}

/// Why an entry cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The ledger has this entry with other columns.
    Differs,
    /// The ledger knows no such kind.
    UnknownKind,
    /// The user has no account, and this is no deposit.
    NoAccount,
    /// A hold of more than is available.
    Overdrawn,
    /// The second phase of a payment that has no hold.
    NoHold,
    /// The second phase has another amount or service than the hold.
    OtherTerms,
    /// A deposit beyond the largest balance.
    TooMuch,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Contradiction::Differs => "the ledger has this entry with other columns",
            Contradiction::UnknownKind => "the ledger knows no such kind",
            Contradiction::NoAccount => "its user has no account: the deposit that made it is missing",
            Contradiction::Overdrawn => {
                "it holds more than is available: a deposit or a release before it is missing"
            }
            Contradiction::NoHold => "its payment has no hold",
            Contradiction::OtherTerms => "its amount or service is not that of its hold",
            Contradiction::TooMuch => "the balance would exceed its maximum",
        })
    }
}

/// An entry that the ledger lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking<'a> {
    pub entry: &'a LedgerEntry,
    /// The account after a movement; `None` for a rejection.
    pub after: Option<Account>,
}

/// An entry that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub place: String,
    pub why: Contradiction,
}

/// What to write of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    /// In the order of the batch.
    pub lacking: Vec<Lacking<'a>>,
    /// Users who get their first account.
    pub new_accounts: Vec<Uuid>,
    /// The first entry of each user that cannot be written.
    pub refused: Vec<Refused>,
    /// Whether the ledger has an entry already, for each of the batch.
    pub is_present: Vec<bool>,
}

/// Plans a batch. `stopped`: users with an entry that could not be written, of this batch and of those before.
pub fn plan<'a>(
    batch: &'a [Emitted<LedgerEntry>],
    mut present: Present,
    stopped: &mut HashSet<Uuid>,
) -> Plan<'a> {
    let mut plan = Plan { is_present: Vec::with_capacity(batch.len()), ..Plan::default() };
    for Emitted { body: entry, place, .. } in batch {
        let (key, user_id) = (EntryKey::of(entry), entry.user_id);
        let before = present.entries.get(&key);
        plan.is_present.push(before == Some(entry));
        if stopped.contains(&user_id) || before == Some(entry) {
            continue;
        }
        let account = present.accounts.get(&user_id).copied();
        let written = match before {
            Some(_) => Err(Contradiction::Differs),
            None => follow(entry, account, present.entries.get(&key.first())),
        };
        match written {
            Ok(after) => {
                if account.is_none() && after.is_some() {
                    plan.new_accounts.push(user_id);
                }
                present.accounts.extend(after.map(|after| (user_id, after)));
                present.entries.insert(key, entry.clone());
                plan.lacking.push(Lacking { entry, after });
            }
            Err(why) => {
                stopped.insert(user_id);
                let (payment_id, place) = (entry.payment_id, place.clone());
                plan.refused.push(Refused { user_id, payment_id, place, why });
            }
        }
    }
    plan
}

/// The account after an entry that the ledger lacks; `None` after a rejection, which moves nothing. `first` is the first
/// phase of its payment, if there is one.
fn follow(
    entry: &LedgerEntry,
    account: Option<Account>,
    first: Option<&LedgerEntry>,
) -> Result<Option<Account>, Contradiction> {
    let amount = entry.amount;
    let (available, held) = match entry.kind.parse().map_err(|_| Contradiction::UnknownKind)? {
        Kind::Rejection => return Ok(None),
        Kind::Deposit => (amount, 0),
        Kind::Hold => (-amount, amount),
        Kind::Capture => (0, -hold(entry, first)?),
        Kind::Release => (amount, -hold(entry, first)?),
    };
    let is_deposit = held == 0;
    let before = match account {
        Some(account) => account,
        None if is_deposit => Account::default(),
        None => return Err(Contradiction::NoAccount),
    };
    if is_deposit && amount > BALANCE_MAX - before.available - before.held {
        return Err(Contradiction::TooMuch);
    }
    let after = Account {
        available: before.available + available,
        held: before.held + held,
        last_entry_no: before.last_entry_no + 1,
    };
    if after.available < 0 {
        return Err(Contradiction::Overdrawn);
    }
    // The account is not the fold of its entries.
    if after.held < 0 {
        return Err(Contradiction::NoHold);
    }
    Ok(Some(after))
}

/// The amount of the hold that a second phase ends.
fn hold(entry: &LedgerEntry, first: Option<&LedgerEntry>) -> Result<i64, Contradiction> {
    let hold = first.filter(|first| first.kind == "hold").ok_or(Contradiction::NoHold)?;
    if hold.amount == entry.amount && hold.service_id == entry.service_id {
        Ok(hold.amount)
    } else {
        Err(Contradiction::OtherTerms)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
