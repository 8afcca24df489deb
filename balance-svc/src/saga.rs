//! The decisions of balance-svc, pure: what an event means for a payment's entries and its account.

use std::fmt;

/// What the ledger says of one payment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// No entry: its `payment.initiated` was not applied.
    None,
    /// Money was refused; absorbing.
    Rejected,
    /// Money is reserved and waits for the gateway's outcome.
    Held { amount: i64 },
    /// The hold went to the service; absorbing.
    Captured,
    /// The hold went back to the user; absorbing.
    Released { cause: ReleaseCause },
}

/// A payment's entry and its account, as they are when its event is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub entry: Entry,
    /// Minor units free to spend; `None` when the user has no account.
    pub available: Option<i64>,
}

/// Why a hold is released. Only the processor, which owns the call, can say so.
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

/// What happened elsewhere and concerns this payment's money.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The user asked to pay `amount`.
    Initiated { amount: i64 },
    /// The gateway charged it.
    Succeeded,
    /// No charge was made, and none will be.
    NotCharged { cause: ReleaseCause },
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

/// What to do about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Hold {
        amount: i64,
    },
    Reject {
        amount: i64,
        why: Rejection,
    },
    Capture {
        amount: i64,
    },
    Release {
        amount: i64,
        cause: ReleaseCause,
    },
    /// It had its effect before.
    Already,
    /// The hold it is about is not there (yet): wait, never take it for a duplicate.
    Missing,
    /// No history of ours leads here: a person must look.
    Illegal(Illegal),
}

/// A pair of state and event that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal {
    pub entry: Entry,
    pub event: Event,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "impossible: {:?} on {:?}", self.event, self.entry)
    }
}

/// The whole rule. Every pair is written out: a new state or event does not compile until it is decided.
pub fn decide(state: &State, event: &Event) -> Step {
    let illegal = || Step::Illegal(Illegal { entry: state.entry.clone(), event: event.clone() });
    match (&state.entry, event) {
        (Entry::None, Event::Initiated { amount }) => ask(state.available, *amount),
        (Entry::None, Event::Succeeded | Event::NotCharged { .. }) => Step::Missing,

        (Entry::Rejected, Event::Initiated { .. }) => Step::Already,
        (Entry::Rejected, Event::Succeeded | Event::NotCharged { .. }) => illegal(),

        (Entry::Held { .. }, Event::Initiated { .. }) => Step::Already,
        (Entry::Held { amount }, Event::Succeeded) => Step::Capture { amount: *amount },
        (Entry::Held { amount }, Event::NotCharged { cause }) => {
            Step::Release { amount: *amount, cause: *cause }
        }

        (Entry::Captured, Event::Initiated { .. } | Event::Succeeded) => Step::Already,
        (Entry::Captured, Event::NotCharged { .. }) => illegal(),

        (Entry::Released { .. }, Event::Initiated { .. }) => Step::Already,
        (Entry::Released { .. }, Event::Succeeded) => illegal(),
        (Entry::Released { cause: was }, Event::NotCharged { cause }) => {
            if was == cause {
                Step::Already
            } else {
                illegal()
            }
        }
    }
}

fn ask(available: Option<i64>, amount: i64) -> Step {
    match available {
        None => Step::Reject { amount, why: Rejection::UnknownAccount },
        Some(available) if available < amount => Step::Reject { amount, why: Rejection::InsufficientFunds },
        Some(_) => Step::Hold { amount },
    }
}

/// The state after a step: what the next event of the same batch is decided on.
pub fn next(state: &State, step: &Step) -> State {
    let available = state.available;
    match step {
        Step::Hold { amount } => {
            State { entry: Entry::Held { amount: *amount }, available: available.map(|a| a - amount) }
        }
        Step::Reject { .. } => State { entry: Entry::Rejected, available },
        Step::Capture { .. } => State { entry: Entry::Captured, available },
        Step::Release { amount, cause } => {
            State { entry: Entry::Released { cause: *cause }, available: available.map(|a| a + amount) }
        }
        Step::Already | Step::Missing | Step::Illegal(_) => state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The full grid, a row per state, a column per event; letters below.
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

    fn state(name: &str) -> State {
        let released = |cause| Entry::Released { cause };
        let (entry, available) = match name {
            "none/no account" => (Entry::None, None),
            "none/99" => (Entry::None, Some(99)),
            "none/100" => (Entry::None, Some(100)),
            "rejected" => (Entry::Rejected, Some(0)),
            "held" => (Entry::Held { amount: 100 }, Some(0)),
            "captured" => (Entry::Captured, Some(0)),
            "released declined" => (released(ReleaseCause::Declined), Some(100)),
            "released expired" => (released(ReleaseCause::Expired), Some(100)),
            "released cancelled" => (released(ReleaseCause::Cancelled), Some(100)),
            other => panic!("{other}"),
        };
        State { entry, available }
    }

    fn letter(step: &Step) -> &'static str {
        match step {
            Step::Hold { amount: 100 } => "H",
            Step::Reject { why: Rejection::UnknownAccount, .. } => "U",
            Step::Reject { why: Rejection::InsufficientFunds, .. } => "I",
            Step::Capture { amount: 100 } => "C",
            Step::Release { amount: 100, .. } => "R",
            Step::Already => "=",
            Step::Missing => "?",
            Step::Illegal(_) => "x",
            Step::Hold { .. } | Step::Capture { .. } | Step::Release { .. } => "wrong amount",
        }
    }

    #[test]
    fn the_full_grid_of_states_and_events() {
        let not_charged = |cause| Event::NotCharged { cause };
        let events = [
            Event::Initiated { amount: 100 },
            Event::Succeeded,
            not_charged(ReleaseCause::Declined),
            not_charged(ReleaseCause::Expired),
            not_charged(ReleaseCause::Cancelled),
        ];
        for (name, row) in GRID {
            let found: Vec<_> = events.iter().map(|e| letter(&decide(&state(name), e))).collect();
            assert_eq!(found.join(" "), *row, "{name}");
        }
    }

    #[test]
    fn every_step_repeated_is_already_done() {
        for (name, _) in GRID {
            for event in [Event::Initiated { amount: 100 }, Event::Succeeded] {
                let before = state(name);
                let step = decide(&before, &event);
                if matches!(step, Step::Missing | Step::Illegal(_)) {
                    continue;
                }
                assert_eq!(decide(&next(&before, &step), &event), Step::Already, "{name} {event:?}");
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
            prop_oneof![
                (1..50_i64).prop_map(|amount| Event::Initiated { amount }),
                Just(Event::Succeeded),
                cause.prop_map(|cause| Event::NotCharged { cause }),
            ]
        }

        proptest! {
            /// Whatever comes, in whatever order and however often: no money is made, lost or overdrawn.
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
                    }
                    let after = next(&state, &step);
                    available = after.available.unwrap();
                    entries.insert(payment, after.entry);
                    let held: i64 = entries.values().map(|e| if let Entry::Held { amount } = e { *amount } else { 0 }).sum();
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
