//! The decisions of balance-svc: the ledger entry that an event causes.
//!
//! * Every function is pure: no clock, no I/O. The store locks, reads and writes.
//! * Every pair of entry and event is decided by name. An impossible pair is the value [`Step::Illegal`].
//! * An event whose terms differ from the entry's moves no money.

use std::fmt;

pub use saga::contract::ReleaseCause;
use saga::contract::{Difference, Terms};
use strum::{IntoStaticStr, VariantNames};

/// The last ledger entry of a payment. All entries of a payment have the same terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// No entry: `payment.initiated` has not been applied.
    None,
    /// The hold was refused; terminal.
    Rejected { terms: Terms },
    /// The money is held until the result of the charge arrives.
    Held { terms: Terms },
    /// The hold was taken; terminal.
    Captured { terms: Terms },
    /// The hold went back to the user; terminal.
    Released { terms: Terms, cause: ReleaseCause },
}

impl Entry {
    /// The terms that an event must agree with.
    fn terms(&self) -> Option<&Terms> {
        match self {
            Entry::None => None,
            Entry::Rejected { terms }
            | Entry::Held { terms }
            | Entry::Captured { terms }
            | Entry::Released { terms, .. } => Some(terms),
        }
    }
}

/// A payment's entry and the user's account before an event is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub entry: Entry,
    /// Minor units free to spend; `None` when the user has no account.
    pub available: Option<i64>,
}

/// A published event of payments-svc or processor-svc about this payment's money.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The user asked to pay.
    Initiated { terms: Terms },
    /// The gateway charged.
    Succeeded { terms: Terms },
    /// No charge was made, and none will be made.
    NotCharged { terms: Terms, cause: ReleaseCause },
}

impl Event {
    /// The terms that the event states.
    pub fn terms(&self) -> &Terms {
        match self {
            Event::Initiated { terms } | Event::Succeeded { terms } | Event::NotCharged { terms, .. } => {
                terms
            }
        }
    }
}

/// The reason why a hold is refused. `VARIANTS` are the names of all, as clients see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Rejection {
    UnknownAccount,
    InsufficientFunds,
}

impl Rejection {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The step that an event causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Hold {
        terms: Terms,
    },
    Reject {
        terms: Terms,
        why: Rejection,
    },
    Capture {
        amount: i64,
    },
    Release {
        amount: i64,
        cause: ReleaseCause,
    },
    /// The event had its effect before.
    Already,
    /// The hold is not there yet: wait. It is never a duplicate.
    Missing,
    /// The event's terms differ from the ledger's: no money moves, and an operator must look.
    Differs(Difference),
    /// No sequence of our own events leads here. An operator must look.
    Illegal(Illegal),
}

/// An impossible pair of entry and event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal {
    pub entry: Entry,
    pub event: Event,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "impossible: event {:?} on ledger entry {:?}", self.event, self.entry)
    }
}

/// Decides the step. Every pair is written out, so a new entry or event does not compile until it is decided.
pub fn decide(state: &State, event: &Event) -> Step {
    if let Some(difference) = state.entry.terms().and_then(|terms| terms.difference(event.terms())) {
        return Step::Differs(difference);
    }
    let illegal = || Step::Illegal(Illegal { entry: state.entry.clone(), event: event.clone() });
    match (&state.entry, event) {
        (Entry::None, Event::Initiated { terms }) => ask(state.available, terms),
        (Entry::None, Event::Succeeded { .. } | Event::NotCharged { .. }) => Step::Missing,

        (Entry::Rejected { .. }, Event::Initiated { .. }) => Step::Already,
        (Entry::Rejected { .. }, Event::Succeeded { .. } | Event::NotCharged { .. }) => illegal(),

        (Entry::Held { .. }, Event::Initiated { .. }) => Step::Already,
        (Entry::Held { terms }, Event::Succeeded { .. }) => Step::Capture { amount: terms.amount },
        (Entry::Held { terms }, Event::NotCharged { cause, .. }) => {
            Step::Release { amount: terms.amount, cause: *cause }
        }

        (Entry::Captured { .. }, Event::Initiated { .. } | Event::Succeeded { .. }) => Step::Already,
        (Entry::Captured { .. }, Event::NotCharged { .. }) => illegal(),

        (Entry::Released { .. }, Event::Initiated { .. }) => Step::Already,
        (Entry::Released { .. }, Event::Succeeded { .. }) => illegal(),
        (Entry::Released { cause: was, .. }, Event::NotCharged { cause, .. }) => {
            if was == cause {
                Step::Already
            } else {
                illegal()
            }
        }
    }
}

fn ask(available: Option<i64>, terms: &Terms) -> Step {
    let terms = terms.clone();
    match available {
        None => Step::Reject { terms, why: Rejection::UnknownAccount },
        Some(available) if available < terms.amount => {
            Step::Reject { terms, why: Rejection::InsufficientFunds }
        }
        Some(_) => Step::Hold { terms },
    }
}

/// The state after a step, on which the next event of the same batch is decided.
pub fn next(state: &State, step: &Step) -> State {
    let available = state.available;
    match (step, &state.entry) {
        (Step::Hold { terms }, _) => {
            let amount = terms.amount;
            State { entry: Entry::Held { terms: terms.clone() }, available: available.map(|a| a - amount) }
        }
        (Step::Reject { terms, .. }, _) => {
            State { entry: Entry::Rejected { terms: terms.clone() }, available }
        }
        (Step::Capture { .. }, Entry::Held { terms }) => {
            State { entry: Entry::Captured { terms: terms.clone() }, available }
        }
        (Step::Release { amount, cause }, Entry::Held { terms }) => State {
            entry: Entry::Released { terms: terms.clone(), cause: *cause },
            available: available.map(|a| a + amount),
        },
        // Only a hold is captured or released.
        (
            Step::Capture { .. } | Step::Release { .. },
            Entry::None | Entry::Rejected { .. } | Entry::Captured { .. } | Entry::Released { .. },
        )
        | (Step::Already | Step::Missing | Step::Differs(_) | Step::Illegal(_), _) => state.clone(),
    }
}

#[cfg(test)]
#[path = "saga_tests.rs"]
mod tests;
