//! The decisions of payments-svc, pure: where a payment stands and what an event makes of it.

use std::fmt;

use saga::contract::{Difference, Terms};

/// Where a payment stands. The same words are the `status` column; the last four are absorbing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Set by the request; no money has moved.
    Initiated,
    /// Set on `balance.held`: the money is reserved, the processor owns the rest.
    Authorized,
    /// Set on `balance.captured`: charged, and paid from the hold.
    Completed,
    /// Set on `balance.rejected`: no money was ever reserved.
    Rejected,
    /// Set on `balance.released` after a decline or an expiry: no charge, the money is back.
    Failed,
    /// Set on `balance.released` after a cancel: no charge, the money is back.
    Cancelled,
}

impl Status {
    pub const ALL: [Status; 6] = [
        Status::Initiated,
        Status::Authorized,
        Status::Completed,
        Status::Rejected,
        Status::Failed,
        Status::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Initiated => "initiated",
            Status::Authorized => "authorized",
            Status::Completed => "completed",
            Status::Rejected => "rejected",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// A payment as its next event finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub status: Status,
    /// The user asked to cancel.
    pub cancel_requested: bool,
    /// The processor does not know yet whether it charged.
    pub outcome_unknown: bool,
}

/// What happened elsewhere and concerns this payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Held,
    HoldRejected,
    Captured,
    /// The hold went back because no charge was made: declined or expired.
    ReleasedUncharged,
    /// The hold went back because the payment was cancelled.
    ReleasedCancelled,
    /// A call may have been made and its outcome is being inquired.
    OutcomeUnknown,
}

/// What the new version of the row tells. The same words are the `event` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Authorized,
    /// The user asked to cancel before there was anything to cancel.
    CancelRecorded,
    /// There is a hold, and the user asked to cancel: the processor decides.
    CancelRequested,
    Completed,
    Rejected,
    Failed,
    Cancelled,
    OutcomeUnknown,
}

impl Told {
    pub fn as_str(self) -> &'static str {
        match self {
            Told::Authorized => "authorized",
            Told::CancelRecorded => "cancel_recorded",
            Told::CancelRequested => "cancel_requested",
            Told::Completed => "completed",
            Told::Rejected => "rejected",
            Told::Failed => "failed",
            Told::Cancelled => "cancelled",
            Told::OutcomeUnknown => "outcome_unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// One transition: the row's version grows by one.
    Move { to: Status, told: Told },
    /// It had its effect before.
    Already,
    /// The hold that came before it is told on another topic and not heard yet: wait.
    Missing,
    /// No history of ours leads here: a person must look.
    Illegal(Illegal),
}

/// A pair of state and event that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Illegal {
    pub status: Status,
    pub event: Event,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "impossible: {:?} on a payment that is {}", self.event, self.status.as_str())
    }
}

/// The whole rule. Every pair is written out: a new status or event does not compile until it is decided.
pub fn decide(state: &State, event: &Event) -> Step {
    let illegal = Step::Illegal(Illegal { status: state.status, event: *event });
    let to = |to, told| Step::Move { to, told };
    match (state.status, event) {
        // A cancel that came first is told now that there is something to cancel.
        (Status::Initiated, Event::Held) if state.cancel_requested => {
            to(Status::Authorized, Told::CancelRequested)
        }
        (Status::Initiated, Event::Held) => to(Status::Authorized, Told::Authorized),
        (Status::Initiated, Event::HoldRejected) => to(Status::Rejected, Told::Rejected),
        (Status::Initiated, Event::OutcomeUnknown) => Step::Missing,
        // Told on the topic of the hold, after it.
        (Status::Initiated, Event::Captured | Event::ReleasedUncharged | Event::ReleasedCancelled) => illegal,

        (Status::Authorized, Event::Held) => Step::Already,
        (Status::Authorized, Event::HoldRejected) => illegal,
        (Status::Authorized, Event::Captured) => to(Status::Completed, Told::Completed),
        (Status::Authorized, Event::ReleasedUncharged) => to(Status::Failed, Told::Failed),
        (Status::Authorized, Event::ReleasedCancelled) => to(Status::Cancelled, Told::Cancelled),
        (Status::Authorized, Event::OutcomeUnknown) if state.outcome_unknown => Step::Already,
        (Status::Authorized, Event::OutcomeUnknown) => to(Status::Authorized, Told::OutcomeUnknown),

        (Status::Completed, Event::Held | Event::Captured | Event::OutcomeUnknown) => Step::Already,
        (Status::Completed, Event::HoldRejected | Event::ReleasedUncharged | Event::ReleasedCancelled) => {
            illegal
        }

        (Status::Rejected, Event::HoldRejected) => Step::Already,
        (
            Status::Rejected,
            Event::Held
            | Event::Captured
            | Event::ReleasedUncharged
            | Event::ReleasedCancelled
            | Event::OutcomeUnknown,
        ) => illegal,

        (Status::Failed, Event::Held | Event::ReleasedUncharged | Event::OutcomeUnknown) => Step::Already,
        (Status::Failed, Event::HoldRejected | Event::Captured | Event::ReleasedCancelled) => illegal,

        (Status::Cancelled, Event::Held | Event::ReleasedCancelled | Event::OutcomeUnknown) => Step::Already,
        (Status::Cancelled, Event::HoldRejected | Event::Captured | Event::ReleasedUncharged) => illegal,
    }
}

/// What an event makes of a payment whose row has the terms `ours`: nothing, unless the event says the same of it.
///
/// # Errors
/// When the event's terms differ from the row's: it is about something else, and a person must look.
pub fn judge(ours: &Terms, state: &State, said: &Terms, event: &Event) -> Result<Step, Difference> {
    match ours.difference(said) {
        None => Ok(decide(state, event)),
        Some(difference) => Err(difference),
    }
}

/// What a request to cancel does. It only records; whether the payment is cancelled is for the processor to say,
/// which alone knows whether a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// One transition of a row whose status stays.
    Record { told: Told },
    /// It was asked for before, or the payment is cancelled.
    Already,
    /// The payment ended otherwise.
    TooLate(Status),
}

/// The whole rule of `POST /payments/{id}/cancel`.
pub fn cancel(state: &State) -> Cancel {
    match state.status {
        Status::Initiated | Status::Authorized if state.cancel_requested => Cancel::Already,
        // Told as `cancel_requested` when the hold is there: see `decide`.
        Status::Initiated => Cancel::Record { told: Told::CancelRecorded },
        Status::Authorized => Cancel::Record { told: Told::CancelRequested },
        Status::Cancelled => Cancel::Already,
        Status::Completed | Status::Rejected | Status::Failed => Cancel::TooLate(state.status),
    }
}

/// The state after a step: what the next event of the same batch is decided on.
pub fn next(state: &State, step: &Step) -> State {
    match step {
        Step::Move { to, told } => State {
            status: *to,
            outcome_unknown: state.outcome_unknown || *told == Told::OutcomeUnknown,
            cancel_requested: state.cancel_requested,
        },
        Step::Already | Step::Missing | Step::Illegal(_) => *state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 6] = [
        Event::Held,
        Event::HoldRejected,
        Event::Captured,
        Event::ReleasedUncharged,
        Event::ReleasedCancelled,
        Event::OutcomeUnknown,
    ];

    /// The full grid: what each event (column) makes of each state (row); `=` already, `?` missing, `x` illegal.
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

    fn word(step: &Step) -> &'static str {
        match step {
            Step::Move { told, .. } => told.as_str(),
            Step::Already => "=",
            Step::Missing => "?",
            Step::Illegal(_) => "x",
        }
    }

    #[test]
    fn the_full_grid_of_states_and_events() {
        for (name, row) in GRID {
            let found: Vec<_> = EVENTS.iter().map(|e| word(&decide(&state(name), e))).collect();
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
            for event in EVENTS {
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
            ("initiated", Record { told: Told::CancelRecorded }),
            ("initiated+cancel", Already),
            ("authorized", Record { told: Told::CancelRequested }),
            ("authorized+cancel", Already),
            ("authorized+unknown", Record { told: Told::CancelRequested }),
            ("completed", TooLate(Status::Completed)),
            ("rejected", TooLate(Status::Rejected)),
            ("failed", TooLate(Status::Failed)),
            ("cancelled", Already),
        ];
        assert_eq!(
            grid.map(|(name, _)| name).as_slice(),
            GRID.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        );
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
            for event in EVENTS {
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
            for event in EVENTS {
                let before = state(name);
                let step = decide(&before, &event);
                if !matches!(step, Step::Illegal(_) | Step::Missing) {
                    assert_eq!(decide(&next(&before, &step), &event), Step::Already, "{name} {event:?}");
                }
            }
        }
    }
}
