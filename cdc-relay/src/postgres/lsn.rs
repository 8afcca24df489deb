//! Positions in the WAL, and Postgres' clock.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

/// A byte position in the WAL. `0/0` means none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const ZERO: Lsn = Lsn(0);
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LsnParseError(pub String);

impl fmt::Display for LsnParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a WAL position such as 0/16B3748", self.0)
    }
}

impl std::error::Error for LsnParseError {}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Lsn, LsnParseError> {
        let bad = || LsnParseError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let part = |digits: &str| {
            let plain = digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u32::from_str_radix(digits, 16).ok() } else { None }
        };
        match (part(high), part(low)) {
            (Some(high), Some(low)) => Ok(Lsn(u64::from(high) << 32 | u64::from(low))),
            _ => Err(bad()),
        }
    }
}

/// Serializes a position as Postgres prints it, for `serde(with)`.
pub(crate) mod as_text {
    use super::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(lsn: &Lsn, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(lsn)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Microseconds between the Unix epoch and Postgres' (2000-01-01).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// An instant as Postgres sends it: microseconds since 2000-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(pub i64);

impl PgTime {
    pub fn now() -> PgTime {
        PgTime::from(Timestamp::now())
    }

    /// Milliseconds since the Unix epoch, as Kafka counts.
    pub fn unix_millis(self) -> i64 {
        self.unix_micros().div_euclid(1000)
    }

    /// Seconds since the Unix epoch, as Prometheus counts.
    pub fn unix_seconds(self) -> f64 {
        self.unix_micros() as f64 / 1e6
    }

    pub fn from_unix_millis(millis: i64) -> PgTime {
        PgTime(millis.saturating_mul(1000).saturating_sub(POSTGRES_EPOCH_MICROS))
    }

    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(POSTGRES_EPOCH_MICROS)
    }

    /// Appends RFC 3339 in UTC with six digits of fraction.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
        let time = Timestamp::from_microsecond(self.unix_micros()).unwrap_or(Timestamp::MAX);
        // Printing into a Vec cannot fail.
        let _ = PRINTER.print_timestamp(&time, &mut *out);
    }
}

impl From<Timestamp> for PgTime {
    fn from(time: Timestamp) -> PgTime {
        PgTime(time.as_microsecond() - POSTGRES_EPOCH_MICROS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_read_as_postgres_prints_them() {
        assert_eq!("0/16B3748".parse(), Ok(Lsn(0x16B_3748)));
        assert_eq!("1A/0".parse::<Lsn>().map(|lsn| lsn.to_string()), Ok("1A/0".to_owned()));
        for bad in ["", "0", "0/", "/0", "0/G", "0/+1", "0/123456789", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn commit_times_have_six_digits_and_a_z() {
        let mut out = Vec::new();
        PgTime(0).write_rfc3339(&mut out);
        assert_eq!(String::from_utf8(out), Ok("2000-01-01T00:00:00.000000Z".to_owned()));
    }

    proptest! {
        #[test]
        fn positions_survive_text(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }
    }
}
