//! Names the reasons why a charge has no definite outcome yet.
//!
//! * The columns `reason` and `detail` hold the text. Code compares the values.
//! * Some causes mean that the gateway contradicts us. These raise an alarm.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The owner of the attempt did not report in time.
    LeaseLapsed,
    /// The rest of the lease was too short for a call.
    LeaseTooShort,
    BreakerOpen,
    /// Its user or its service has its maximum of calls under way.
    ShareTaken,
    /// No connection: certainly no request left.
    NotConnected,
    /// No whole answer came in time, or the connection broke.
    TimedOut,
    ConnectionLost,
    AnswerTooLarge,
    /// The answer is no document of the gateway.
    Unreadable,
    /// The document does not name the charge or its amount.
    Unnamed,
    /// The answer is about another charge, or about another amount.
    Mismatch,
    Pending,
    /// The gateway declined and will try again by itself.
    DeclineRetryable,
    /// More than one charge stands.
    Surplus,
    Voided,
    /// Our key was used with another body: a charge exists, and it is not this one.
    KeyReused,
    /// A status that says nothing about the charge.
    Http(u16),
    /// The answer to a void does not confirm it.
    NotConfirmed,
    /// A void was needed and failed for this cause.
    Void(Box<Cause>),
}

impl Cause {
    /// Whether the gateway contradicts us about this charge, so that an operator must look.
    pub fn is_alarming(&self) -> bool {
        match self {
            Cause::Mismatch | Cause::Surplus | Cause::KeyReused => true,
            Cause::Void(cause) => cause.is_alarming(),
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
            | Cause::Pending
            | Cause::DeclineRetryable
            | Cause::Voided
            | Cause::Http(_)
            | Cause::NotConfirmed => false,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Cause::LeaseLapsed => "lease_lapsed",
            Cause::LeaseTooShort => "lease_too_short",
            Cause::BreakerOpen => "breaker_open",
            Cause::ShareTaken => "share_taken",
            Cause::NotConnected => "not_connected",
            Cause::TimedOut => "timeout",
            Cause::ConnectionLost => "connection_lost",
            Cause::AnswerTooLarge => "answer_too_large",
            Cause::Unreadable => "unreadable_answer",
            Cause::Unnamed => "unnamed_answer",
            Cause::Mismatch => "answer_mismatch",
            Cause::Pending => "pending",
            Cause::DeclineRetryable => "decline_retryable",
            Cause::Surplus => "surplus",
            Cause::Voided => "voided",
            Cause::KeyReused => "key_reused",
            Cause::NotConfirmed => "not_confirmed",
            Cause::Http(status) => return write!(f, "http_{status}"),
            Cause::Void(cause) => return write!(f, "void_{cause}"),
        };
        f.write_str(text)
    }
}
