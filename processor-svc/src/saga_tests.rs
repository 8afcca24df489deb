//! Tests the full table of states and events, and the rules that hold on every path through it.

use proptest::prelude::*;

use super::*;

fn ok() -> String {
    "ch_1".to_owned()
}
fn no() -> String {
    "no_funds".to_owned()
}
fn why() -> Cause {
    Cause::TimedOut
}

/// All states; those with an attempt are at attempt 2.
fn states() -> [State; 9] {
    [
        State::Absent,
        State::Waiting { attempt: 2 },
        State::Calling { attempt: 2, exposed: false },
        State::Calling { attempt: 2, exposed: true },
        State::Unknown { attempt: 2 },
        State::Succeeded,
        State::Declined,
        State::Expired,
        State::Cancelled,
    ]
}

fn outcomes() -> [Outcome; 4] {
    [
        Outcome::Succeeded { provider_reference: ok() },
        Outcome::Declined { code: no() },
        Outcome::NotSent { why: why() },
        Outcome::Unknown { why: why() },
    ]
}

fn findings() -> [Finding; 5] {
    [
        Finding::Succeeded { provider_reference: ok() },
        Finding::Declined { code: no() },
        Finding::NotFound { conclusive: true },
        Finding::NotFound { conclusive: false },
        Finding::Unavailable { why: why() },
    ]
}

/// All events; those of an attempt for the attempt before, the current and the next one.
fn events() -> Vec<Event> {
    let mut all = vec![
        Event::Work { past_deadline: false },
        Event::Work { past_deadline: true },
        Event::CancelRequested,
        Event::LeaseLapsed,
        Event::DeadlinePassed,
    ];
    for attempt in [1, 2, 3] {
        all.extend(outcomes().map(|outcome| Event::Called { attempt, outcome }));
        all.extend(findings().map(|finding| Event::Inquired { attempt, finding }));
    }
    all
}

/// A step as a short symbol, for the table below.
fn symbol(step: &Step) -> &'static str {
    match step {
        Step::Insert(To::Calling { attempt: 1 }) => "+call",
        Step::Insert(To::Expired) => "+expire",
        Step::Insert(To::Cancelled) => "+cancel",
        Step::Insert(_) => "+?",
        Step::Move(To::Waiting { attempt: 2, why: Cause::TimedOut }) => "wait",
        Step::Move(To::Calling { attempt: 3 }) => "call",
        Step::Move(To::Unknown { attempt: 2, why: Cause::TimedOut }) => "unknown",
        Step::Move(To::Unknown { attempt: 2, why: Cause::LeaseLapsed }) => "lapse",
        Step::Move(To::Succeeded { provider_reference }) if provider_reference == "ch_1" => "succeed",
        Step::Move(To::Declined { code }) if code == "no_funds" => "decline",
        Step::Move(To::Expired) => "expire",
        Step::Move(To::Cancelled) => "cancel",
        Step::Move(_) => "?",
        Step::Inquire => "inquire",
        Step::InquireLater => "later",
        Step::Already => ".",
        Step::TooLate => "toolate",
        Step::Stale => "stale",
        Step::Contradiction => "CONTRA",
        Step::Illegal => "-",
    }
}

/// Rows: events in the order of [`events`]. Columns: states in the order of [`states`].
const TABLE: &str = "
event                | absent   waiting  calling  calling! unknown  succeed. declined expired  cancelled
work                 | +call    .        .        .        .        .        .        .        .
work past deadline   | +expire  .        .        .        .        .        .        .        .
cancel               | +cancel  cancel   toolate  toolate  toolate  toolate  toolate  toolate  .
lease lapsed         | -        call     lapse    lapse    inquire  .        .        .        .
deadline             | -        expire   toolate  toolate  toolate  .        .        .        .
called 1 succeeded   | -        stale    stale    stale    stale    .        CONTRA   CONTRA   CONTRA
called 1 declined    | -        stale    stale    stale    stale    CONTRA   .        CONTRA   CONTRA
called 1 not sent    | -        stale    stale    stale    stale    .        .        .        .
called 1 unknown     | -        stale    stale    stale    stale    .        .        CONTRA   CONTRA
inquired 1 succeeded | -        -        stale    stale    stale    .        CONTRA   CONTRA   CONTRA
inquired 1 declined  | -        -        stale    stale    stale    CONTRA   .        CONTRA   CONTRA
inquired 1 not found | -        -        stale    stale    stale    .        .        -        -
inquired 1 not yet   | -        -        stale    stale    stale    .        .        -        -
inquired 1 unavail.  | -        -        stale    stale    stale    .        .        -        -
called 2 succeeded   | -        -        succeed  succeed  succeed  .        CONTRA   CONTRA   CONTRA
called 2 declined    | -        -        decline  decline  decline  CONTRA   .        CONTRA   CONTRA
called 2 not sent    | -        .        wait     unknown  .        .        .        .        .
called 2 unknown     | -        -        unknown  unknown  .        .        .        CONTRA   CONTRA
inquired 2 succeeded | -        -        -        -        succeed  .        CONTRA   CONTRA   CONTRA
inquired 2 declined  | -        -        -        -        decline  CONTRA   .        CONTRA   CONTRA
inquired 2 not found | -        -        -        -        call     .        .        -        -
inquired 2 not yet   | -        -        -        -        later    .        .        -        -
inquired 2 unavail.  | -        -        -        -        later    .        .        -        -
called 3 succeeded   | -        -        -        -        -        .        CONTRA   CONTRA   CONTRA
called 3 declined    | -        -        -        -        -        CONTRA   .        CONTRA   CONTRA
called 3 not sent    | -        -        -        -        -        .        .        .        .
called 3 unknown     | -        -        -        -        -        .        .        CONTRA   CONTRA
inquired 3 succeeded | -        -        -        -        -        .        CONTRA   CONTRA   CONTRA
inquired 3 declined  | -        -        -        -        -        CONTRA   .        CONTRA   CONTRA
inquired 3 not found | -        -        -        -        -        .        .        -        -
inquired 3 not yet   | -        -        -        -        -        .        .        -        -
inquired 3 unavail.  | -        -        -        -        -        .        .        -        -
";

#[test]
fn every_pair_of_state_and_event() {
    let rows: Vec<&str> = TABLE.trim().lines().skip(1).collect();
    assert_eq!(rows.len(), events().len());
    for (row, event) in rows.iter().zip(events()) {
        let (name, cells) = row.split_once('|').expect("a name and its cells");
        let expected: Vec<&str> = cells.split_whitespace().collect();
        let decided: Vec<&str> = states().iter().map(|state| symbol(&decide(state, &event))).collect();
        assert_eq!(decided, expected, "{name}: {event:?}");
    }
}

/// The state a step leads to, as the store would read it back.
fn after(state: State, step: &Step) -> State {
    let exposed = matches!(state, State::Unknown { .. } | State::Calling { exposed: true, .. });
    let (Step::Insert(to) | Step::Move(to)) = step else { return state };
    match *to {
        To::Waiting { attempt, .. } => State::Waiting { attempt },
        To::Calling { attempt } => State::Calling { attempt, exposed },
        To::Unknown { attempt, .. } => State::Unknown { attempt },
        To::Succeeded { .. } => State::Succeeded,
        To::Declined { .. } => State::Declined,
        To::Expired => State::Expired,
        To::Cancelled => State::Cancelled,
    }
}

fn attempt(state: State) -> i32 {
    match state {
        State::Waiting { attempt } | State::Calling { attempt, .. } | State::Unknown { attempt } => attempt,
        State::Absent | State::Succeeded | State::Declined | State::Expired | State::Cancelled => 0,
    }
}

proptest! {
    /// On every path: a terminal charge stays so, a charge that may have been called is never released
    /// but on a decline, and a charge succeeds only when the gateway says so.
    #[test]
    fn no_path_releases_what_may_have_been_charged(picks in proptest::collection::vec((0usize..32, 1..6i32), 0..60)) {
        let mut state = State::Absent;
        let mut was_unknown = false;
        for (pick, around) in picks {
            let event = match events().swap_remove(pick) {
                Event::Called { outcome, .. } => Event::Called { attempt: around, outcome },
                Event::Inquired { finding, .. } => Event::Inquired { attempt: around, finding },
                other => other,
            };
            let step = decide(&state, &event);
            let next = after(state, &step);
            let ended = matches!(state, State::Succeeded | State::Declined | State::Expired | State::Cancelled);
            prop_assert!(!ended || next == state, "{state:?} left by {event:?}");
            was_unknown |= matches!(next, State::Unknown { .. });
            let released = matches!(next, State::Waiting { .. } | State::Expired | State::Cancelled);
            prop_assert!(!(was_unknown && released), "{state:?} -> {next:?} by {event:?}");
            let new_attempt = matches!(next, State::Calling { .. }) && next != state;
            prop_assert!(!new_attempt || attempt(next) == attempt(state) + 1);
            if next == State::Succeeded && state != next {
                let said = matches!(event,
                    Event::Called { outcome: Outcome::Succeeded { .. }, .. }
                    | Event::Inquired { finding: Finding::Succeeded { .. }, .. });
                prop_assert!(said, "succeeded by {event:?}");
            }
            state = next;
        }
    }
}
