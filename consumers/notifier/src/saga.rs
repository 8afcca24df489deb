//! Pure decisions: what becomes of a notification after an attempt.
//!
//! * Only a definite acceptance ends it well. A receiver that cannot be asked, or says anything else, is asked again.
//! * The pauses are those that Standard Webhooks recommends: 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 hours, each
//!   with a jitter of a tenth. After them the notification is given up; `replay` begins anew.
//! * A receiver may ask for a longer pause, up to a day (`Retry-After`).
//! * 410 disables the endpoint: the notification waits until an operator enables it.

use std::time::Duration;

use strum::IntoStaticStr;

/// A receiver that asks for a longer pause is asked again after this one.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);
const JITTER: f64 = 0.1;

/// The result of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// The endpoint says that it is gone for good (410).
    Gone,
    /// No attempt can succeed: the mailbox does not exist, or there is no address any more.
    NoRecipient,
    /// The receiver answered, and did not accept; it may have named a pause.
    NotAccepted {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// There was no answer, for this reason. It is a category: the receiver's own words may name a person.
    NoAnswer(&'static str),
}

impl From<Result<webhook::Answer, webhook::NoAnswer>> for Answer {
    fn from(answer: Result<webhook::Answer, webhook::NoAnswer>) -> Self {
        match answer {
            Ok(webhook::Answer { status: 200..=299, .. }) => Self::Accepted,
            Ok(webhook::Answer { status: 410, .. }) => Self::Gone,
            Ok(webhook::Answer { status, retry_after }) => Self::NotAccepted { status, retry_after },
            Err(reason) => Self::NoAnswer(reason),
        }
    }
}

impl From<Result<mailer::Answer, mailer::NoAnswer>> for Answer {
    fn from(answer: Result<mailer::Answer, mailer::NoAnswer>) -> Self {
        match answer {
            Ok(mailer::Answer::Accepted) => Self::Accepted,
            Ok(mailer::Answer::NoMailbox) => Self::NoRecipient,
            Ok(mailer::Answer::NotAccepted(status)) => Self::NotAccepted { status, retry_after: None },
            Err(reason) => Self::NoAnswer(reason),
        }
    }
}

impl Answer {
    /// As it is stored and logged; `None` for an acceptance.
    pub fn error(self) -> Option<String> {
        match self {
            Self::Accepted => None,
            Self::Gone => Some("gone: 410".to_owned()),
            Self::NoRecipient => Some("no recipient".to_owned()),
            Self::NotAccepted { status, .. } => Some(format!("not accepted: {status}")),
            Self::NoAnswer(reason) => Some(reason.to_owned()),
        }
    }
}

/// The next step of the notification. Its name is the outcome in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    Delivered,
    #[strum(serialize = "retried")]
    Retry(Duration),
    #[strum(serialize = "given_up")]
    GiveUp,
    /// The endpoint is disabled, and the notification stays due.
    #[strum(serialize = "disabled")]
    Disable,
}

/// Decides after attempt number `attempt`, from 1. `pauses` are those after the first, second, … attempt; after the
/// last one there is one more attempt. `chance` is a random number from 0 to 1.
pub fn decide(answer: Answer, attempt: i32, pauses: &[Duration], chance: f64) -> Step {
    let asked = match answer {
        Answer::Accepted => return Step::Delivered,
        Answer::Gone => return Step::Disable,
        Answer::NoRecipient => return Step::GiveUp,
        Answer::NotAccepted { retry_after, .. } => retry_after.unwrap_or_default().min(RETRY_AFTER_MAX),
        Answer::NoAnswer(_) => Duration::ZERO,
    };
    let done = usize::try_from(attempt.saturating_sub(1)).unwrap_or(0);
    match pauses.get(done) {
        Some(pause) => Step::Retry(pause.mul_f64(1.0 + JITTER * (2.0 * chance - 1.0)).max(asked)),
        None => Step::GiveUp,
    }
}

#[cfg(test)]
#[path = "saga_tests.rs"]
mod tests;
