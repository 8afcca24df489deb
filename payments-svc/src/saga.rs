//! The decisions of payments-svc: the transition that an event causes in the state of a payment.
//!
//! * Every function is pure: no clock, no I/O. The store reads the state and writes the transition.
//! * Every pair of status and event is decided by name. An impossible pair is the value [`Step::Illegal`].
//! * The last four statuses are terminal. No event leaves them.
//! * An event whose terms differ from the payment's row causes no transition.

use std::fmt;

use saga::contract::{Difference, Terms};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// The status of a payment, as in the column `status`. The last four are terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    /// The request set it. No money has moved.
    Initiated,
    /// `balance.held` set it: the money is reserved, and the processor charges it.
    Authorized,
    /// `balance.captured` set it: the gateway charged, and the hold is taken.
    Completed,
    /// `balance.rejected` set it: no money was ever reserved.
    Rejected,
    /// `balance.released` after a decline or an expiry set it: nothing is charged, the money is back.
    Failed,
    /// `balance.released` after a cancel set it: nothing is charged, the money is back.
    Cancelled,
}

impl Status {
    pub const ALL: &[Status] = Status::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn parse(text: &str) -> Option<Status> {
        text.parse().ok()
    }

    pub fn is_terminal(self) -> bool {
        match self {
            Status::Initiated | Status::Authorized => false,
            Status::Completed | Status::Rejected | Status::Failed | Status::Cancelled => true,
        }
    }
}

/// The state of a payment before an event is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub status: Status,
    /// The user asked to cancel.
    pub cancel_requested: bool,
    /// The processor does not know whether the gateway charged.
    pub outcome_unknown: bool,
}

/// A published event of balance-svc or processor-svc about this payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, VariantArray)]
pub enum Event {
    Held,
    HoldRejected,
    Captured,
    /// The hold was released because no charge was made: declined or expired.
    ReleasedUncharged,
    /// The hold was released because the payment was cancelled.
    ReleasedCancelled,
    /// The processor may have called the gateway, and inquires about the outcome.
    OutcomeUnknown,
}

impl Event {
    pub const ALL: &[Event] = Event::VARIANTS;
}

/// The event that a new version of the row publishes, as in the column `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum RowEvent {
    Authorized,
    /// The user asked to cancel before there was a hold.
    CancelRecorded,
    /// There is a hold, and the user asked to cancel. The processor decides.
    CancelRequested,
    Completed,
    Rejected,
    Failed,
    Cancelled,
    OutcomeUnknown,
}

impl RowEvent {
    pub const ALL: &[RowEvent] = RowEvent::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// One transition: the row's version grows by one.
    Move { to: Status, row_event: RowEvent },
    /// The event had its effect before.
    Already,
    /// The hold precedes this event on another topic and has not been received yet: wait.
    Missing,
    /// No sequence of our own events leads here. An operator must look.
    Illegal(Illegal),
}

/// An impossible pair of status and event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Illegal {
    pub status: Status,
    pub event: Event,
}

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "impossible: event {:?} on a payment that is {}", self.event, self.status.as_str())
    }
}

/// Decides the step. Every pair is written out, so a new status or event does not compile until it is decided.
pub fn decide(state: &State, event: &Event) -> Step {
    let illegal = Step::Illegal(Illegal { status: state.status, event: *event });
    let to = |to, row_event| Step::Move { to, row_event };
    match (state.status, event) {
        // A cancel recorded before the hold is published together with the hold.
        (Status::Initiated, Event::Held) if state.cancel_requested => {
            to(Status::Authorized, RowEvent::CancelRequested)
        }
        (Status::Initiated, Event::Held) => to(Status::Authorized, RowEvent::Authorized),
        (Status::Initiated, Event::HoldRejected) => to(Status::Rejected, RowEvent::Rejected),
        (Status::Initiated, Event::OutcomeUnknown) => Step::Missing,
        // The topic of the hold carries them too, always after the hold.
        (Status::Initiated, Event::Captured | Event::ReleasedUncharged | Event::ReleasedCancelled) => illegal,

        (Status::Authorized, Event::Held) => Step::Already,
        (Status::Authorized, Event::HoldRejected) => illegal,
        (Status::Authorized, Event::Captured) => to(Status::Completed, RowEvent::Completed),
        (Status::Authorized, Event::ReleasedUncharged) => to(Status::Failed, RowEvent::Failed),
        (Status::Authorized, Event::ReleasedCancelled) => to(Status::Cancelled, RowEvent::Cancelled),
        (Status::Authorized, Event::OutcomeUnknown) if state.outcome_unknown => Step::Already,
        (Status::Authorized, Event::OutcomeUnknown) => to(Status::Authorized, RowEvent::OutcomeUnknown),

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

/// Decides the step of an event that states its terms. `ours` are the terms of the payment's row.
///
/// # Errors
/// When the event's terms differ from the row's. The event is parked, and an operator must look.
pub fn judge(ours: &Terms, state: &State, said: &Terms, event: &Event) -> Result<Step, Difference> {
    match ours.difference(said) {
        None => Ok(decide(state, event)),
        Some(difference) => Err(difference),
    }
}

/// The effect of a request to cancel. It only records the request: the processor alone knows whether it called the
/// gateway, so it decides whether the payment is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// One transition; the status stays.
    Record { row_event: RowEvent },
    /// The request was recorded before, or the payment is cancelled.
    Already,
    /// The payment has another terminal status.
    TooLate(Status),
}

/// Decides `POST /payments/{id}/cancel`.
pub fn cancel(state: &State) -> Cancel {
    match state.status {
        Status::Initiated | Status::Authorized if state.cancel_requested => Cancel::Already,
        // `decide` publishes it as `cancel_requested` once the hold is there.
        Status::Initiated => Cancel::Record { row_event: RowEvent::CancelRecorded },
        Status::Authorized => Cancel::Record { row_event: RowEvent::CancelRequested },
        Status::Cancelled => Cancel::Already,
        Status::Completed | Status::Rejected | Status::Failed => Cancel::TooLate(state.status),
    }
}

/// The result of a request to cancel, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum CancelAnswer {
    /// The request is recorded, and the payment is not terminal.
    Requested,
    /// The payment was cancelled.
    Honoured,
    /// The payment has another terminal status: the gateway may have been called before.
    Refused,
}

impl CancelAnswer {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The result of the request to cancel; `None` without a request. The status alone determines it.
pub fn cancel_answer(status: Status, cancel_requested: bool) -> Option<CancelAnswer> {
    let answer = match status {
        Status::Initiated | Status::Authorized => CancelAnswer::Requested,
        Status::Cancelled => CancelAnswer::Honoured,
        Status::Completed | Status::Rejected | Status::Failed => CancelAnswer::Refused,
    };
    cancel_requested.then_some(answer)
}

/// The state after a step, on which the next event of the same batch is decided.
pub fn next(state: &State, step: &Step) -> State {
    match step {
        Step::Move { to, row_event } => State {
            status: *to,
            outcome_unknown: state.outcome_unknown || *row_event == RowEvent::OutcomeUnknown,
            cancel_requested: state.cancel_requested,
        },
        Step::Already | Step::Missing | Step::Illegal(_) => *state,
    }
}

#[cfg(test)]
#[path = "saga_tests.rs"]
mod tests;
