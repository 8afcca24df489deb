//! The decisions of balance-svc: the ledger entry that an event causes.
//!
//! * Every function is pure: no clock, no I/O. The store locks, reads and writes.
//! * Every pair of entry and event is decided by name. An impossible pair is the value [`Step::Illegal`].
//! * An event whose terms differ from the entry's moves no money.

use std::fmt;

use saga::contract::{Difference, Terms};

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

/// The cause of a release. Only the processor decides it, since it alone calls the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseCause {
    Declined,
    Expired,
    Cancelled,
}

impl ReleaseCause {
    pub fn as_str(self) -> &'static str {
        match self {
            ReleaseCause::Declined => "declined",
            ReleaseCause::Expired => "expired",
            ReleaseCause::Cancelled => "cancelled",
        }
    }

    /// The cause named by a release's reason, `cause` or `cause:detail`.
    pub fn of_reason(reason: &str) -> Option<Self> {
        match reason.split(':').next() {
            Some("declined") => Some(ReleaseCause::Declined),
            Some("expired") => Some(ReleaseCause::Expired),
            Some("cancelled") => Some(ReleaseCause::Cancelled),
            Some(_) | None => None,
        }
    }
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    UnknownAccount,
    InsufficientFunds,
}

impl Rejection {
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::UnknownAccount => "unknown_account",
            Rejection::InsufficientFunds => "insufficient_funds",
        }
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
mod tests {
    use super::*;

    /// The full grid, a row per state, a column per event:
    /// H hold, U reject unknown account, I reject insufficient, C capture, R release, = already, ? missing, x illegal.
    const GRID: &[(&str, &str)] = &[
        //                 initiated succeeded declined expired cancelled
        ("none/no account", "U ? ? ? ?"),
        ("none/99", "I ? ? ? ?"),
        ("none/100", "H ? ? ? ?"),
        ("rejected", "= x x x x"),
        ("held", "= C R R R"),
        ("captured", "= = x x x"),
        ("released declined", "= x = x x"),
        ("released expired", "= x x = x"),
        ("released cancelled", "= x x x ="),
    ];

    fn terms(amount: i64, service: &str) -> Terms {
        Terms { amount, service_id: service.into(), client_number: None }
    }

    fn state(name: &str) -> State {
        let terms = terms(100, "electricity");
        let released = |cause| Entry::Released { terms: terms.clone(), cause };
        let (entry, available) = match name {
            "none/no account" => (Entry::None, None),
            "none/99" => (Entry::None, Some(99)),
            "none/100" => (Entry::None, Some(100)),
            "rejected" => (Entry::Rejected { terms }, Some(0)),
            "held" => (Entry::Held { terms }, Some(0)),
            "captured" => (Entry::Captured { terms }, Some(0)),
            "released declined" => (released(ReleaseCause::Declined), Some(100)),
            "released expired" => (released(ReleaseCause::Expired), Some(100)),
            "released cancelled" => (released(ReleaseCause::Cancelled), Some(100)),
            other => panic!("{other}"),
        };
        State { entry, available }
    }

    fn events(terms: &Terms) -> [Event; 5] {
        let not_charged = |cause| Event::NotCharged { terms: terms.clone(), cause };
        [
            Event::Initiated { terms: terms.clone() },
            Event::Succeeded { terms: terms.clone() },
            not_charged(ReleaseCause::Declined),
            not_charged(ReleaseCause::Expired),
            not_charged(ReleaseCause::Cancelled),
        ]
    }

    fn symbol(step: &Step) -> &'static str {
        match step {
            Step::Hold { terms } if terms.amount == 100 => "H",
            Step::Reject { why: Rejection::UnknownAccount, .. } => "U",
            Step::Reject { why: Rejection::InsufficientFunds, .. } => "I",
            Step::Capture { amount: 100 } => "C",
            Step::Release { amount: 100, .. } => "R",
            Step::Already => "=",
            Step::Missing => "?",
            Step::Differs(_) => "d",
            Step::Illegal(_) => "x",
            Step::Hold { .. } | Step::Capture { .. } | Step::Release { .. } => "wrong amount",
        }
    }

    #[test]
    fn the_full_grid_of_states_and_events() {
        for (name, row) in GRID {
            let found: Vec<_> =
                events(&terms(100, "electricity")).iter().map(|e| symbol(&decide(&state(name), e))).collect();
            assert_eq!(found.join(" "), *row, "{name}");
        }
    }

    #[test]
    fn an_event_with_other_terms_differs_in_every_state_that_has_any_and_changes_nothing() {
        for other in [terms(1, "electricity"), terms(101, "electricity"), terms(100, "gas")] {
            for (name, row) in GRID {
                for (event, same) in events(&other).iter().zip(row.split(' ')) {
                    let before = state(name);
                    let step = decide(&before, event);
                    if name.starts_with("none") {
                        assert!(symbol(&step) == same || matches!(event, Event::Initiated { .. }), "{name}");
                        continue;
                    }
                    assert_eq!(symbol(&step), "d", "{name} {event:?}");
                    assert_eq!(next(&before, &step), before, "{name} {event:?}");
                }
            }
        }
    }

    #[test]
    fn every_step_repeated_is_already_done() {
        for (name, _) in GRID {
            for event in &events(&terms(100, "electricity"))[..2] {
                let before = state(name);
                let step = decide(&before, event);
                if matches!(step, Step::Missing | Step::Illegal(_)) {
                    continue;
                }
                assert_eq!(decide(&next(&before, &step), event), Step::Already, "{name} {event:?}");
            }
        }
    }

    mod money {
        use super::*;
        use proptest::prelude::*;
        use std::collections::HashMap;

        fn event() -> impl Strategy<Value = Event> {
            let cause = prop_oneof![
                Just(ReleaseCause::Declined),
                Just(ReleaseCause::Expired),
                Just(ReleaseCause::Cancelled)
            ];
            // Few amounts and services, so that results often agree with their hold, and often do not.
            let terms = || {
                (1..4_i64, prop_oneof![9 => Just("electricity"), 1 => Just("gas")])
                    .prop_map(|(amount, service)| terms(amount * 10, service))
            };
            prop_oneof![
                terms().prop_map(|terms| Event::Initiated { terms }),
                terms().prop_map(|terms| Event::Succeeded { terms }),
                (terms(), cause).prop_map(|(terms, cause)| Event::NotCharged { terms, cause }),
            ]
        }

        proptest! {
            /// Whatever comes, in whatever order and however often: no money is made, lost or overdrawn, and what is
            /// captured is what was held, for whom it was held.
            #[test]
            fn is_conserved(deposit in 0..200_i64, events in prop::collection::vec((0..6_u8, event()), 0..60)) {
                let mut entries: HashMap<u8, Entry> = HashMap::new();
                let (mut available, mut captured) = (deposit, 0);
                for (payment, event) in events {
                    let entry = entries.get(&payment).cloned().unwrap_or(Entry::None);
                    let state = State { entry, available: Some(available) };
                    let step = decide(&state, &event);
                    if let Step::Capture { amount } = step {
                        captured += amount;
                        prop_assert_eq!(state.entry.terms(), Some(event.terms()));
                    }
                    let after = next(&state, &step);
                    available = after.available.unwrap();
                    entries.insert(payment, after.entry);
                    let held: i64 =
                        entries.values().map(|e| if let Entry::Held { terms } = e { terms.amount } else { 0 }).sum();
                    prop_assert!(available >= 0);
                    prop_assert_eq!(available + held + captured, deposit);
                }
            }
        }
    }

    #[test]
    fn a_release_reason_names_its_cause() {
        assert_eq!(ReleaseCause::of_reason("declined:do_not_honor"), Some(ReleaseCause::Declined));
        assert_eq!(ReleaseCause::of_reason("expired"), Some(ReleaseCause::Expired));
        assert_eq!(ReleaseCause::of_reason("other"), None);
    }
}
