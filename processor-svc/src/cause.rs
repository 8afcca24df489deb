//! Why a charge is not settled yet. The columns `reason` and `detail` have it as text; code compares the values.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The owner of the attempt did not report in time.
    LeaseLapsed,
    /// Too little was left of the lease for a call.
    LeaseTooShort,
    BreakerOpen,
    /// Its user or its service has as many calls under way as it may.
    ShareTaken,
    /// No connection: certainly no request left.
    NotConnected,
    /// No whole answer came in time, or the connection broke.
    TimedOut,
    ConnectionLost,
    AnswerTooLarge,
    /// Not a document of the gateway.
    Unreadable,
    /// A document that does not say which charge it is about, or of which amount.
    Unnamed,
    /// The answer is about another charge, or about another amount.
    Mismatch,
    Pending,
    /// A decline that the gateway itself will try again.
    DeclineRetryable,
    /// More charges than one stand.
    Surplus,
    Voided,
    /// Our key was used with another body: there is a charge, and it is not this one.
    KeyReused,
    /// A status that says nothing about the charge.
    Http(u16),
    /// A void whose answer does not say that it was done.
    NotConfirmed,
    /// A void was needed, and this became of it.
    Void(Box<Cause>),
}

impl Cause {
    /// The gateway and we disagree about what this charge is: a person must look at it.
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
