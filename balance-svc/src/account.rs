//! The account of a user, and what a step makes of it.
//!
//! * Pure: the store reads an account under its lock, and writes what [`Account::after`] says.
//! * A movement is a step that moves money. It gets the next number of its account, and the balances after it.

use crate::saga::Step;

/// The columns of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Minor units free to spend.
    pub available: i64,
    /// Minor units reserved by payments that have not ended.
    pub held: i64,
    /// The number of the last movement; 0 before the first.
    pub last_entry_no: i64,
}

impl Account {
    /// The account after `step`; `None` when the step moves nothing.
    pub fn after(self, step: &Step) -> Option<Self> {
        let (available, held) = match step {
            Step::Hold { terms } => (-terms.amount, terms.amount),
            Step::Capture { amount } => (0, -amount),
            Step::Release { amount, .. } => (*amount, -amount),
            Step::Reject { .. } | Step::Already | Step::Missing | Step::Differs(_) | Step::Illegal(_) => {
                return None;
            }
        };
        Some(Self {
            available: self.available + available,
            held: self.held + held,
            last_entry_no: self.last_entry_no + 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use saga::contract::Terms;

    use super::*;
    use crate::saga::{Entry, Event, Illegal, Rejection, ReleaseCause, State, next};

    fn terms() -> Terms {
        Terms { amount: 30, service_id: "electricity".into(), client_number: None }
    }

    fn illegal() -> Step {
        Step::Illegal(Illegal { entry: Entry::None, event: Event::Initiated { terms: terms() } })
    }

    /// Each step with the entry it is taken on, and the account after it, where money moves.
    fn steps() -> [(Entry, Step, Option<Account>); 7] {
        let held = Entry::Held { terms: terms() };
        let account = |available, held| Some(Account { available, held, last_entry_no: 8 });
        [
            (Entry::None, Step::Hold { terms: terms() }, account(70, 80)),
            (held.clone(), Step::Capture { amount: 30 }, account(100, 20)),
            (held.clone(), Step::Release { amount: 30, cause: ReleaseCause::Expired }, account(130, 20)),
            (Entry::None, Step::Reject { terms: terms(), why: Rejection::InsufficientFunds }, None),
            (held, Step::Already, None),
            (Entry::None, Step::Missing, None),
            (Entry::None, illegal(), None),
        ]
    }

    #[test]
    fn a_movement_has_the_next_number_and_the_balances_after_it() {
        let before = Account { available: 100, held: 50, last_entry_no: 7 };
        for (_, step, expected) in steps() {
            assert_eq!(before.after(&step), expected, "{step:?}");
        }
    }

    /// The next event of a batch is decided on what the statement says.
    #[test]
    fn the_account_and_the_state_agree_about_what_is_available() {
        let before = Account { available: 100, held: 50, last_entry_no: 7 };
        for (entry, step, _) in steps() {
            let state = next(&State { entry, available: Some(before.available) }, &step);
            let after = before.after(&step).unwrap_or(before);
            assert_eq!(state.available, Some(after.available), "{step:?}");
        }
    }
}
