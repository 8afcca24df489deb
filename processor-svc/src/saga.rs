//! The decisions of processor-svc: the step that an event causes in the state of a charge.
//!
//! * Every function is pure: no clock, no I/O. The store applies the steps by compare-and-set.
//! * An outcome is definite only if the gateway stated it, in reply to the call or to an inquiry.
//! * `waiting`, `expired` and `cancelled` mean that no call was made. A charge that was `unknown` once may have been made,
//!   so it never reaches one of these, not even when a later attempt was not sent.
//! * What the gateway says by other ways than its interface is a claim of two operators, see [`resolution`].
//! * "Not found" permits sending again under the same key, and nothing else.

pub mod resolution;

use crate::cause::Cause;

/// The state of a charge. `attempt` counts the leases taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No row yet.
    Absent,
    /// Not callable now. No call was ever made.
    Waiting {
        attempt: i32,
    },
    /// A call may be under way. `exposed`: an earlier one may have reached the gateway.
    Calling {
        attempt: i32,
        exposed: bool,
    },
    /// A call may have been made, and inquiries find out.
    Unknown {
        attempt: i32,
    },
    Succeeded,
    Declined,
    Expired,
    Cancelled,
}

impl State {
    /// Whether the state is terminal.
    pub fn has_ended(&self) -> bool {
        match self {
            State::Succeeded | State::Declined | State::Expired | State::Cancelled => true,
            State::Absent | State::Waiting { .. } | State::Calling { .. } | State::Unknown { .. } => false,
        }
    }
}

/// An event of a charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The work message arrived. `past_deadline` by the clock of the database.
    Work { past_deadline: bool },
    /// The user asked to cancel an authorized payment.
    CancelRequested,
    /// The owner of an attempt reports the outcome of its call.
    Called { attempt: i32, outcome: Outcome },
    /// The lease of a call or the pause of a waiting charge is over, or the inquiry about an unknown one is due.
    LeaseLapsed,
    /// An inquiry about an attempt that ended unknown has a finding.
    Inquired { attempt: i32, finding: Finding },
    /// `expires_at` has passed.
    DeadlinePassed,
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded {
        provider_reference: String,
    },
    Declined {
        code: String,
    },
    /// Certainly no request reached the gateway.
    NotSent {
        why: Cause,
    },
    /// Everything else.
    Unknown {
        why: Cause,
    },
}

impl Outcome {
    /// The cause of an outcome that is not definite.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Outcome::NotSent { why } | Outcome::Unknown { why } => Some(why),
            Outcome::Succeeded { .. } | Outcome::Declined { .. } => None,
        }
    }
}

/// The finding of an inquiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Succeeded {
        provider_reference: String,
    },
    Declined {
        code: String,
    },
    /// `conclusive`: the visibility delay of the gateway had passed since the attempt ended.
    NotFound {
        conclusive: bool,
    },
    Unavailable {
        why: Cause,
    },
}

impl Finding {
    /// The cause of an inquiry without a finding.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Finding::Unavailable { why } => Some(why),
            Finding::Succeeded { .. } | Finding::Declined { .. } | Finding::NotFound { .. } => None,
        }
    }
}

/// The step that an event causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first row of this charge.
    Insert(To),
    /// A transition, which is published if its status is.
    Move(To),
    /// The charge is still unknown, and an inquiry is due.
    Inquire,
    /// The charge is still unknown after an inquiry; the next one follows later.
    InquireLater,
    /// Nothing changes: the event is a duplicate, or no longer matters.
    Already,
    /// Nothing changes: the request comes too late.
    TooLate,
    /// Nothing changes: the event is about an earlier attempt.
    Stale,
    /// Nothing changes, and an alarm is raised: the gateway contradicts an earlier answer, or a proof.
    Contradiction,
    /// Nothing changes, and an alarm is raised: the event is impossible in this state.
    Illegal,
}

/// The new state of a charge, with the columns that it sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Waiting { attempt: i32, why: Cause },
    Calling { attempt: i32 },
    Unknown { attempt: i32, why: Cause },
    Succeeded { provider_reference: String },
    Declined { code: String },
    Expired,
    Cancelled,
}

/// The step for `event` in `state`.
pub fn decide(state: &State, event: &Event) -> Step {
    match *state {
        State::Absent => absent(event),
        State::Waiting { attempt } => waiting(attempt, event),
        State::Calling { attempt, exposed } => calling(attempt, exposed, event),
        State::Unknown { attempt } => unknown(attempt, event),
        State::Succeeded => ended(event, Some(true)),
        State::Declined => ended(event, Some(false)),
        State::Expired => never_called(event, Step::TooLate),
        State::Cancelled => never_called(event, Step::Already),
    }
}

fn absent(event: &Event) -> Step {
    match event {
        Event::Work { past_deadline: false } => Step::Insert(To::Calling { attempt: 1 }),
        Event::Work { past_deadline: true } => Step::Insert(To::Expired),
        Event::CancelRequested => Step::Insert(To::Cancelled),
        Event::Called { .. } | Event::LeaseLapsed | Event::Inquired { .. } | Event::DeadlinePassed => {
            Step::Illegal
        }
    }
}

fn waiting(current: i32, event: &Event) -> Step {
    match event {
        Event::Work { .. } => Step::Already,
        Event::CancelRequested => Step::Move(To::Cancelled),
        Event::LeaseLapsed => Step::Move(To::Calling { attempt: current + 1 }),
        Event::DeadlinePassed => Step::Move(To::Expired),
        Event::Called { attempt, .. } if *attempt < current => Step::Stale,
        // The owner repeats itself when it does not know whether its commit went through.
        Event::Called { attempt, outcome: Outcome::NotSent { .. } } if *attempt == current => Step::Already,
        Event::Called { .. } | Event::Inquired { .. } => Step::Illegal,
    }
}

fn calling(current: i32, exposed: bool, event: &Event) -> Step {
    match event {
        Event::Work { .. } => Step::Already,
        Event::CancelRequested => Step::TooLate,
        // The deadline binds the first call only.
        Event::DeadlinePassed => Step::TooLate,
        Event::LeaseLapsed => Step::Move(To::Unknown { attempt: current, why: Cause::LeaseLapsed }),
        Event::Called { attempt, .. } | Event::Inquired { attempt, .. } if *attempt < current => Step::Stale,
        Event::Called { attempt, outcome } if *attempt == current => Step::Move(match outcome {
            Outcome::Succeeded { provider_reference } => {
                To::Succeeded { provider_reference: provider_reference.clone() }
            }
            Outcome::Declined { code } => To::Declined { code: code.clone() },
            // This call was not sent, but an earlier one may have been.
            Outcome::NotSent { why } if exposed => To::Unknown { attempt: current, why: why.clone() },
            Outcome::NotSent { why } => To::Waiting { attempt: current, why: why.clone() },
            Outcome::Unknown { why } => To::Unknown { attempt: current, why: why.clone() },
        }),
        Event::Called { .. } | Event::Inquired { .. } => Step::Illegal,
    }
}

fn unknown(current: i32, event: &Event) -> Step {
    match event {
        Event::Work { .. } => Step::Already,
        Event::CancelRequested | Event::DeadlinePassed => Step::TooLate,
        Event::LeaseLapsed => Step::Inquire,
        Event::Called { attempt, .. } | Event::Inquired { attempt, .. } if *attempt < current => Step::Stale,
        Event::Called { attempt, .. } | Event::Inquired { attempt, .. } if *attempt > current => {
            Step::Illegal
        }
        // The owner came back after its lease had lapsed, with an answer.
        Event::Called { outcome: Outcome::Succeeded { provider_reference }, .. }
        | Event::Inquired { finding: Finding::Succeeded { provider_reference }, .. } => {
            Step::Move(To::Succeeded { provider_reference: provider_reference.clone() })
        }
        Event::Called { outcome: Outcome::Declined { code }, .. }
        | Event::Inquired { finding: Finding::Declined { code }, .. } => {
            Step::Move(To::Declined { code: code.clone() })
        }
        Event::Called { outcome: Outcome::NotSent { .. } | Outcome::Unknown { .. }, .. } => Step::Already,
        Event::Inquired { finding: Finding::NotFound { conclusive: true }, .. } => {
            Step::Move(To::Calling { attempt: current + 1 })
        }
        Event::Inquired {
            finding: Finding::NotFound { conclusive: false } | Finding::Unavailable { .. },
            ..
        } => Step::InquireLater,
    }
}

/// Succeeded or declined. A late answer changes nothing; the opposite answer is a contradiction.
fn ended(event: &Event, charged: Option<bool>) -> Step {
    let said = match event {
        Event::Work { .. } | Event::LeaseLapsed | Event::DeadlinePassed => return Step::Already,
        Event::CancelRequested => return Step::TooLate,
        Event::Called { outcome, .. } => match outcome {
            Outcome::Succeeded { .. } => Some(true),
            Outcome::Declined { .. } => Some(false),
            Outcome::NotSent { .. } | Outcome::Unknown { .. } => None,
        },
        Event::Inquired { finding, .. } => match finding {
            Finding::Succeeded { .. } => Some(true),
            Finding::Declined { .. } => Some(false),
            Finding::NotFound { .. } | Finding::Unavailable { .. } => None,
        },
    };
    if said.is_some() && said != charged { Step::Contradiction } else { Step::Already }
}

/// Expired or cancelled: it was proved that no call was made.
fn never_called(event: &Event, cancel: Step) -> Step {
    match event {
        Event::Work { .. } | Event::LeaseLapsed | Event::DeadlinePassed => Step::Already,
        Event::CancelRequested => cancel,
        Event::Called { outcome: Outcome::NotSent { .. }, .. } => Step::Already,
        Event::Called {
            outcome: Outcome::Succeeded { .. } | Outcome::Declined { .. } | Outcome::Unknown { .. },
            ..
        } => Step::Contradiction,
        Event::Inquired { finding: Finding::Succeeded { .. } | Finding::Declined { .. }, .. } => {
            Step::Contradiction
        }
        Event::Inquired { finding: Finding::NotFound { .. } | Finding::Unavailable { .. }, .. } => {
            Step::Illegal
        }
    }
}

#[cfg(test)]
#[path = "saga_tests.rs"]
mod tests;
