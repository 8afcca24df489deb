//! Tests the full grid of states and events, and the conservation of money.

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
        /// For every sequence of events, in any order and with repeats: no money is made, lost or overdrawn, and what is
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
