//! A length of time as people write it: `90s`, `15m`, `2h`, `7d`.

use std::str::FromStr;

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// A length of time; a day has 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(SignedDuration);

impl Age {
    pub const fn hours(hours: i64) -> Self {
        Self(SignedDuration::from_hours(hours))
    }

    /// The time that was this long before `now`; the earliest time there is, if it is longer.
    pub fn before(self, now: Timestamp) -> Timestamp {
        now.checked_sub(self.0).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH)
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span: Option<Span> = text.parse().ok();
        let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        duration
            .filter(|duration| !duration.is_negative())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no length of time; give one such as 90s, 15m, 2h or 7d"))
    }
}

/// The age as one word of the largest units: `3d4h`, `12m`, `40s`.
pub fn describe(age: SignedDuration) -> String {
    let seconds = age.as_secs().max(0);
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_read_as_people_write_it() {
        let seconds = |text: &str| text.parse::<Age>().map(|age| age.0.as_secs());
        for (text, expected) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800), ("1h 30m", 5_400)]
        {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for bad in ["", "7", "-1h", "1mo", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_age_is_written_by_its_largest_units() {
        for (seconds, expected) in [(40, "40s"), (720, "12m"), (7_500, "2h5m"), (273_600, "3d4h"), (-5, "0s")]
        {
            assert_eq!(describe(SignedDuration::from_secs(seconds)), expected);
        }
    }
}
