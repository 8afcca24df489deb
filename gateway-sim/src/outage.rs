//! Outages: the times at which the gateway serves nobody.
//!
//! * Whether an outage is on is a pure function of the time since it was set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// As `PUT /outage` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// Milliseconds that the outage lasts.
    pub for_ms: u64,
    /// Milliseconds from one outage to the next; without it there is only one.
    #[serde(default)]
    pub every_ms: Option<u64>,
    #[serde(default)]
    pub how: How,
}

/// The form of an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// 503 with `Retry-After`.
    #[default]
    Unavailable,
    /// The connection is reset before anything is read.
    Reset,
    /// No answer.
    Hang,
}

impl Outage {
    /// Whether the outage is on, this long after it was set.
    pub fn is_on(&self, since: Duration) -> bool {
        let since = since.as_millis();
        let within = self.every_ms.map_or(since, |every| since % u128::from(every.max(1)));
        within < u128::from(self.for_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ends_and_others_come_again() {
        let ms = Duration::from_millis;
        let once = Outage { for_ms: 100, every_ms: None, how: How::Reset };
        assert_eq!([0, 99, 100, 5_000].map(|at| once.is_on(ms(at))), [true, true, false, false]);
        let again = Outage { every_ms: Some(1_000), ..once };
        assert_eq!(
            [0, 99, 100, 999, 1_000, 1_099, 1_100].map(|at| again.is_on(ms(at))),
            [true, true, false, false, true, true, false]
        );
        assert!(Outage { every_ms: Some(0), ..once }.is_on(ms(7)), "for ever");
    }
}
