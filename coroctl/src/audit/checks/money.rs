//! Money adds up: the balance database against itself. The database counts, in the snapshot of `read::money`.

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;

/// M1: deposits = available + held + captured.
pub fn total(observed: &Observed) -> Tally {
    observed.money.total.clone()
}

/// M2: no balance below zero.
pub fn positive(observed: &Observed) -> Tally {
    observed.money.positive.clone()
}

/// M3: each account is the fold of its ledger entries.
pub fn fold(observed: &Observed) -> Tally {
    observed.money.fold.clone()
}

/// M5: a hold is captured or released once, by its amount.
pub fn once(observed: &Observed) -> Tally {
    observed.money.once.clone()
}

/// M7: movements are numbered without gaps, each with the balances after it.
pub fn statement(observed: &Observed) -> Tally {
    observed.money.statement.clone()
}
