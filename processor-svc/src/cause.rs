//! Names the reasons why a charge has no definite outcome yet.
//!
//! * The columns `reason` and `detail` hold the text. Code compares the values.
//! * Some causes mean that the gateway contradicts us. These raise an alarm.

use std::fmt;

use strum::{IntoStaticStr, VariantNames};

/// `VARIANTS` are the names of all causes. `http` and `void` are followed by more: `http_500`, `void_timeout`.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
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
    #[strum(serialize = "timeout")]
    TimedOut,
    ConnectionLost,
    AnswerTooLarge,
    /// The answer is no document of the gateway.
    #[strum(serialize = "unreadable_answer")]
    Unreadable,
    /// The document does not name the charge or its amount.
    #[strum(serialize = "unnamed_answer")]
    Unnamed,
    /// The answer is about another charge, or about another amount.
    #[strum(serialize = "answer_mismatch")]
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
        let name: &str = self.into();
        match self {
            Cause::Http(status) => write!(f, "{name}_{status}"),
            Cause::Void(cause) => write!(f, "{name}_{cause}"),
            _ => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns keep these texts, and clients see them.
    #[test]
    fn a_cause_has_one_name_for_ever() {
        let names = [
            "lease_lapsed",
            "lease_too_short",
            "breaker_open",
            "share_taken",
            "not_connected",
            "timeout",
            "connection_lost",
            "answer_too_large",
            "unreadable_answer",
            "unnamed_answer",
            "answer_mismatch",
            "pending",
            "decline_retryable",
            "surplus",
            "voided",
            "key_reused",
            "http",
            "not_confirmed",
            "void",
        ];
        assert_eq!(Cause::VARIANTS, names);
        assert_eq!(Cause::TimedOut.to_string(), "timeout");
        assert_eq!(Cause::Void(Box::new(Cause::Http(502))).to_string(), "void_http_502");
    }
}
