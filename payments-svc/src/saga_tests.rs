//! Tests the full grid of states and events, and the rules that hold in every state.

use super::*;

/// The full grid of states (rows) and events (columns); `=` already, `?` missing, `x` illegal.
const GRID: &[(&str, &str)] = &[
    // held hold_rejected captured released_uncharged released_cancelled outcome_unknown
    ("initiated", "authorized rejected x x x ?"),
    ("initiated+cancel", "cancel_requested rejected x x x ?"),
    ("authorized", "= x completed failed cancelled outcome_unknown"),
    ("authorized+cancel", "= x completed failed cancelled outcome_unknown"),
    ("authorized+unknown", "= x completed failed cancelled ="),
    ("completed", "= x = x x ="),
    ("rejected", "x = x x x x"),
    ("failed", "= x x = x ="),
    ("cancelled", "= x x x = ="),
];

fn state(name: &str) -> State {
    let (status, flag) = name.split_once('+').unwrap_or((name, ""));
    State {
        status: Status::parse(status).unwrap(),
        cancel_requested: flag == "cancel",
        outcome_unknown: flag == "unknown",
    }
}

fn symbol(step: &Step) -> &'static str {
    match step {
        Step::Move { row_event, .. } => row_event.as_str(),
        Step::Already => "=",
        Step::Missing => "?",
        Step::Illegal(_) => "x",
    }
}

#[test]
fn the_full_grid_of_states_and_events() {
    for (name, row) in GRID {
        let found: Vec<_> = Event::ALL.iter().map(|e| symbol(&decide(&state(name), e))).collect();
        assert_eq!(found.join(" "), *row, "{name}");
    }
}

#[test]
fn an_event_with_other_terms_is_refused_in_every_state() {
    let terms = |amount, service: &str, number: Option<&str>| Terms {
        amount,
        service_id: service.into(),
        client_number: number.map(Into::into),
    };
    let ours = terms(100, "electricity", Some("0812"));
    let others =
        [terms(1, "electricity", None), terms(100, "gas", None), terms(100, "electricity", Some("0813"))];
    for (name, _) in GRID {
        for &event in Event::ALL {
            let state = state(name);
            for said in [ours.clone(), terms(100, "electricity", None)] {
                assert_eq!(judge(&ours, &state, &said, &event), Ok(decide(&state, &event)), "{name}");
            }
            for other in &others {
                assert!(judge(&ours, &state, other, &event).is_err(), "{name} {event:?} {other:?}");
            }
        }
    }
}

#[test]
fn a_request_to_cancel_is_recorded_once_and_only_while_it_can_matter() {
    use Cancel::{Already, Record, TooLate};
    let grid = [
        ("initiated", Record { row_event: RowEvent::CancelRecorded }),
        ("initiated+cancel", Already),
        ("authorized", Record { row_event: RowEvent::CancelRequested }),
        ("authorized+cancel", Already),
        ("authorized+unknown", Record { row_event: RowEvent::CancelRequested }),
        ("completed", TooLate(Status::Completed)),
        ("rejected", TooLate(Status::Rejected)),
        ("failed", TooLate(Status::Failed)),
        ("cancelled", Already),
    ];
    assert_eq!(grid.map(|(name, _)| name).as_slice(), GRID.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, expected) in grid {
        assert_eq!(cancel(&state(name)), expected, "{name}");
    }
}

#[test]
fn terminal_states_are_absorbing_and_no_step_goes_back() {
    let rank = |status: Status| match status {
        Status::Initiated => 0,
        Status::Authorized => 1,
        Status::Completed | Status::Rejected | Status::Failed | Status::Cancelled => 2,
    };
    for (name, _) in GRID {
        for &event in Event::ALL {
            if let Step::Move { to, .. } = decide(&state(name), &event) {
                assert!(rank(state(name).status) < 2, "{name} is terminal and moved on {event:?}");
                assert!(rank(to) >= rank(state(name).status), "{name} went back on {event:?}");
            }
        }
    }
}

#[test]
fn every_step_repeated_is_already_done() {
    for (name, _) in GRID {
        for &event in Event::ALL {
            let before = state(name);
            let step = decide(&before, &event);
            if !matches!(step, Step::Illegal(_) | Step::Missing) {
                assert_eq!(decide(&next(&before, &step), &event), Step::Already, "{name} {event:?}");
            }
        }
    }
}
