//! Judges the replies of the gateway: outcomes of calls, findings of inquiries, confirmations of voids.
//!
//! * Every function is pure.
//! * A definite result needs an answer that names our charge and our amount. Any other reply after a request may have left
//!   is unknown.
//! * A repair must be confirmed before the result that needs it counts.

use super::answer::{CallKind, Verdict, read};
use crate::breaker::Health;
use crate::cause::Cause;
use crate::charge::Charge;
use crate::saga::{Finding, Outcome};

/// The reply to a request, before it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayReply {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// No connection: certainly no request left.
    NotConnected,
    /// The request may have left, and no whole answer came.
    Lost(Cause),
}

impl GatewayReply {
    /// The verdict of the gateway about `charge`.
    ///
    /// # Errors
    /// When the reply has none; the cause says why.
    fn verdict(&self, charge: &Charge, call: CallKind) -> Result<Verdict, Cause> {
        match self {
            GatewayReply::NotConnected => Err(Cause::NotConnected),
            GatewayReply::Lost(cause) => Err(cause.clone()),
            GatewayReply::Answer { status: 422, .. } if call == CallKind::Charge => Err(Cause::KeyReused),
            GatewayReply::Answer { status, body } => read(charge, call, *status, body),
        }
    }
}

/// The outcome of a call with this reply.
pub fn judge_call(charge: &Charge, reply: &GatewayReply) -> Outcome {
    let cause = match reply.verdict(charge, CallKind::Charge) {
        Ok(Verdict::Succeeded { provider_reference, surplus: false }) => {
            return Outcome::Succeeded { provider_reference };
        }
        Ok(Verdict::Declined { code }) => return Outcome::Declined { code },
        Ok(Verdict::Rejected) => return Outcome::Declined { code: REJECTED.to_owned() },
        Err(Cause::NotConnected) => return Outcome::NotSent { why: Cause::NotConnected },
        // An inquiry finds out how many charges stand, and repairs that.
        Ok(Verdict::Succeeded { surplus: true, .. }) => Cause::Surplus,
        Ok(Verdict::DeclinedForNow) => Cause::DeclineRetryable,
        Ok(Verdict::Pending) => Cause::Pending,
        Ok(Verdict::Voided { .. }) => Cause::Voided,
        // "Not found" as the answer to a call means that the call was not served.
        Ok(Verdict::NotFound) => Cause::Http(404),
        Err(cause) => cause,
    };
    Outcome::Unknown { why: cause }
}

/// The health of the gateway that an outcome shows. An answer without an outcome that is not about health (a
/// retryable decline, another call in progress, a contradiction) does not count.
pub fn health(outcome: &Outcome) -> Health {
    match outcome {
        Outcome::Succeeded { .. } | Outcome::Declined { .. } => Health::Answered,
        Outcome::NotSent { .. } => Health::Unreachable,
        Outcome::Unknown { why } => match why {
            Cause::DeclineRetryable
            | Cause::Http(409)
            | Cause::KeyReused
            | Cause::Mismatch
            | Cause::Surplus
            | Cause::Pending
            | Cause::Voided => Health::Neither,
            Cause::LeaseLapsed
            | Cause::LeaseTooShort
            | Cause::BreakerOpen
            | Cause::ShareTaken
            | Cause::NotConnected
            | Cause::TimedOut
            | Cause::ConnectionLost
            | Cause::AnswerTooLarge
            | Cause::Unreadable
            | Cause::Unnamed
            | Cause::Http(_)
            | Cause::NotConfirmed
            | Cause::Void(_) => Health::Fault,
        },
    }
}

/// The result of an inquiry. Whether a miss is conclusive depends on when the call ended, which the caller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// `surplus`: further charges of the same payment stand.
    Succeeded {
        provider_reference: String,
        surplus: bool,
    },
    Declined {
        code: String,
    },
    /// Every charge was given back.
    Voided,
    NotFound,
    Unavailable {
        why: Cause,
    },
}

/// A repair that the gateway must confirm before the result of an inquiry counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Void every charge of this payment except one.
    VoidOthers { keep: String },
    /// Void every charge of this payment, and bar those that are still under way.
    Reverse,
}

/// The decline code of a charge whose input the gateway rejects.
const REJECTED: &str = "rejected_input";
/// The decline code of a charge that was voided.
pub const VOIDED: &str = "voided";

impl Lookup {
    /// The repair that this result needs. Exactly one charge may stand behind a success, and none behind a decline. When
    /// the gateway ignores keys nothing is sent again, so a charge that is not found is barred instead.
    pub fn repair(&self, conclusive: bool, idempotent: bool) -> Option<Repair> {
        match self {
            Lookup::Succeeded { provider_reference, surplus: true } => {
                Some(Repair::VoidOthers { keep: provider_reference.clone() })
            }
            Lookup::Voided => Some(Repair::Reverse),
            Lookup::NotFound if conclusive && !idempotent => Some(Repair::Reverse),
            Lookup::Succeeded { surplus: false, .. }
            | Lookup::Declined { .. }
            | Lookup::NotFound
            | Lookup::Unavailable { .. } => None,
        }
    }

    /// The cause of an inquiry without a result.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Lookup::Unavailable { why } => Some(why),
            Lookup::Succeeded { .. } | Lookup::Declined { .. } | Lookup::Voided | Lookup::NotFound => None,
        }
    }

    /// The finding, after the repair.
    pub fn finding(self, conclusive: bool, idempotent: bool) -> Finding {
        match self {
            Lookup::Succeeded { provider_reference, surplus: _ } => Finding::Succeeded { provider_reference },
            Lookup::Declined { code } => Finding::Declined { code },
            Lookup::Voided => Finding::Declined { code: VOIDED.to_owned() },
            Lookup::NotFound if conclusive && !idempotent => Finding::Declined { code: VOIDED.to_owned() },
            Lookup::NotFound => Finding::NotFound { conclusive },
            Lookup::Unavailable { why } => Finding::Unavailable { why },
        }
    }
}

/// Checks that a void is confirmed. `bars`: it must also bar later charges.
pub fn judge_void(charge: &Charge, reply: &GatewayReply, bars: bool) -> Result<(), Cause> {
    match reply.verdict(charge, CallKind::Void)? {
        Verdict::Voided { barred } if barred || !bars => Ok(()),
        Verdict::Voided { .. }
        | Verdict::Succeeded { .. }
        | Verdict::Declined { .. }
        | Verdict::DeclinedForNow
        | Verdict::Rejected
        | Verdict::NotFound
        | Verdict::Pending => Err(Cause::NotConfirmed),
    }
}

/// The result of an inquiry with this reply.
pub fn judge_inquiry(charge: &Charge, reply: &GatewayReply) -> Lookup {
    let why = match reply.verdict(charge, CallKind::Inquiry) {
        Ok(Verdict::Succeeded { provider_reference, surplus }) => {
            return Lookup::Succeeded { provider_reference, surplus };
        }
        Ok(Verdict::Declined { code }) => return Lookup::Declined { code },
        Ok(Verdict::Voided { .. }) => return Lookup::Voided,
        Ok(Verdict::NotFound) => return Lookup::NotFound,
        Ok(Verdict::DeclinedForNow) => Cause::DeclineRetryable,
        Ok(Verdict::Pending) => Cause::Pending,
        // An inquiry has no input that could be rejected.
        Ok(Verdict::Rejected) => Cause::Http(400),
        Err(cause) => cause,
    };
    Lookup::Unavailable { why }
}
