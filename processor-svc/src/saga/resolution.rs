//! Decides what two operators may say about a charge.
//!
//! * Evidence is what the gateway says by other ways than its interface. It comes with the terms of the payment, or the hold.
//! * Evidence that something is not charged is about the charge as it was when it was proposed. A charge that has changed since
//!   may have been called.
//! * A charge that is being called is left alone, and so is one that ended on the terms of the payment: balance-svc acts on it.
//! * A charge whose user, amount or service are not the payment's is one that nobody has acted on, since balance-svc compares
//!   these three. It gets the payment's terms, and the outcome of the evidence.
//! * A charge that was never called has no answer, whatever is said: the sweeper calls it, under the key that it always has.

use std::fmt;

use super::{State, To};
use crate::charge::Charge;

/// What operators know of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It charged once, this amount, and the charge stands.
    Succeeded { provider_reference: String, amount: i64 },
    /// It declined, or gave back whatever it charged.
    Declined { code: String },
    /// It has no charge, and will make none.
    NeverMade,
}

/// The code of a decline that stands for "never made", where a call may have left.
pub const NEVER_MADE: &str = "never_made";

/// A charge as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub state: State,
    pub charge: Charge,
    pub provider_reference: Option<String>,
    pub version: i32,
    /// The lease of the last attempt is over, so no call of it is under way.
    pub is_lease_over: bool,
}

/// The step that evidence causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The first row of this charge, with the terms of the evidence.
    Insert(To),
    /// A transition, with the terms of the evidence.
    Move(To),
    /// The charge says so already.
    Already,
    Refused(Refusal),
}

/// Why evidence causes no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A call may be under way.
    Calling,
    /// The charge is another one than when this was proposed.
    Changed,
    /// The charge ended, and others act on that.
    Ended,
    /// No call was ever made, so there is no answer.
    NeverCalled,
    /// What stands at the gateway is not the amount of the payment.
    OtherAmount,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Calling => {
                "The charge is being called. Wait until its lease is over; then it has an outcome, or is unknown."
            }
            Refusal::Changed => {
                "The charge has changed since this was proposed, and may have been called. Look at the gateway again, and \
                 propose anew."
            }
            Refusal::Ended => {
                "The charge has ended on the terms of the payment, and that moves the money. Nothing is to be resolved: \
                 if the payment stands still, its last event is to be emitted again."
            }
            Refusal::NeverCalled => {
                "No call was ever made for this charge, so the gateway has no answer to it. A waiting charge is called; \
                 if it must not be, resolve it as never made."
            }
            Refusal::OtherAmount => {
                "The gateway charged another amount than the payment's. Have it put right there first: capturing the \
                 hold would take another amount than was charged."
            }
        })
    }
}

/// The step for evidence about the payment with these terms. `found` is the charge of that payment, if there is one.
/// `has_changed`: it is not as it was when the evidence was proposed.
pub fn resolve(found: Option<&Found>, terms: &Charge, evidence: &Evidence, has_changed: bool) -> Resolution {
    match decide(found, terms, evidence) {
        Resolution::Insert(_) | Resolution::Move(_) if has_changed && !is_success(evidence) => {
            Resolution::Refused(Refusal::Changed)
        }
        resolution => resolution,
    }
}

fn decide(found: Option<&Found>, terms: &Charge, evidence: &Evidence) -> Resolution {
    if let Evidence::Succeeded { amount, .. } = evidence
        && *amount != terms.amount
    {
        return Resolution::Refused(Refusal::OtherAmount);
    }
    let Some(found) = found else { return Resolution::Insert(without_call(evidence)) };
    match found.state {
        State::Absent => Resolution::Insert(without_call(evidence)),
        State::Waiting { .. } => never_called(evidence),
        State::Calling { .. } => Resolution::Refused(Refusal::Calling),
        // Somebody may call still; only what stands already does not depend on it.
        State::Unknown { .. } if !found.is_lease_over && !is_success(evidence) => {
            Resolution::Refused(Refusal::Calling)
        }
        State::Unknown { .. } => Resolution::Move(called(evidence)),
        State::Succeeded | State::Declined => match has_effect(found, terms) {
            false => Resolution::Move(called(evidence)),
            true if says(found, evidence) => Resolution::Already,
            true => Resolution::Refused(Refusal::Ended),
        },
        State::Expired | State::Cancelled => match has_effect(found, terms) {
            false => never_called(evidence),
            true if *evidence == Evidence::NeverMade => Resolution::Already,
            true => Resolution::Refused(Refusal::Ended),
        },
    }
}

fn is_success(evidence: &Evidence) -> bool {
    match evidence {
        Evidence::Succeeded { .. } => true,
        Evidence::Declined { .. } | Evidence::NeverMade => false,
    }
}

/// Whether balance-svc acts on this charge: it compares the user, the amount and the service with its hold.
fn has_effect(found: &Found, terms: &Charge) -> bool {
    let Charge { payment_id, user_id, client_number: _, service_id, amount, traceparent: _ } = &found.charge;
    *payment_id == terms.payment_id
        && *user_id == terms.user_id
        && *service_id == terms.service_id
        && *amount == terms.amount
}

/// Whether an ended charge says the same as the evidence.
fn says(found: &Found, evidence: &Evidence) -> bool {
    match (found.state, evidence) {
        (State::Succeeded, Evidence::Succeeded { provider_reference, .. }) => {
            found.provider_reference.as_ref() == Some(provider_reference)
        }
        (State::Declined, Evidence::Declined { .. } | Evidence::NeverMade) => true,
        (_, _) => false,
    }
}

/// The outcome of a charge that may have been called.
fn called(evidence: &Evidence) -> To {
    match evidence {
        Evidence::Succeeded { provider_reference, .. } => {
            To::Succeeded { provider_reference: provider_reference.clone() }
        }
        Evidence::Declined { code } => To::Declined { code: code.clone() },
        Evidence::NeverMade => To::Declined { code: NEVER_MADE.to_owned() },
    }
}

/// The outcome of a charge without a row, which is lost, or was never there.
fn without_call(evidence: &Evidence) -> To {
    match evidence {
        Evidence::Succeeded { .. } | Evidence::Declined { .. } => called(evidence),
        Evidence::NeverMade => To::Expired,
    }
}

fn never_called(evidence: &Evidence) -> Resolution {
    match evidence {
        Evidence::NeverMade => Resolution::Move(To::Expired),
        Evidence::Succeeded { .. } | Evidence::Declined { .. } => Resolution::Refused(Refusal::NeverCalled),
    }
}

/// A proposal as its confirmation finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub operator: String,
    /// Older than a confirmation may be late, by the clock of the database.
    pub has_lapsed: bool,
    /// Who confirmed it, if anybody did.
    pub confirmed_by: Option<String>,
}

/// Whether an operator may confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MayConfirm {
    Yes,
    /// The same operator confirmed it before.
    Repeated,
    /// The reason why not.
    No(String),
}

/// Decides who may confirm a proposal.
pub fn may_confirm(proposal: &Proposal, operator: &str) -> MayConfirm {
    match &proposal.confirmed_by {
        Some(by) if by == operator => MayConfirm::Repeated,
        Some(by) => MayConfirm::No(format!("{by} has confirmed it already.")),
        None if proposal.operator == operator => {
            MayConfirm::No("You proposed it yourself: another operator has to confirm.".to_owned())
        }
        None if proposal.has_lapsed => {
            MayConfirm::No("The proposal is older than 24 hours. Look again, and propose anew.".to_owned())
        }
        None => MayConfirm::Yes,
    }
}

#[cfg(test)]
#[path = "resolution_tests.rs"]
mod tests;
