//! Recognises a change that the server cannot decode: its error ends every session at the same position. Pure.
//!
//! * After a few sessions that ended alike the source is refused, and tried again once a minute.
//! * Only errors of the stream count. START_REPLICATION and every other query decode nothing.
//! * Errors that the next attempt may not meet do not count, nor do missing permissions, nor missing WAL, which the slot
//!   reports.

use std::time::{Duration, Instant};

use crate::checkpoint::refusal::Refusal;
use crate::postgres::error::PostgresError;
use crate::postgres::lsn::Lsn;

/// The number of sessions that must end alike.
const ALIKE_SESSIONS_MIN: u32 = 4;
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The kind of a server error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The next session may not meet it.
    Passing,
    /// The role lacks a permission, and every session meets it until it is granted.
    Permission,
    /// The next session meets it at the same change.
    Change,
}

/// The cause by SQLSTATE or class of SQLSTATEs. Every other error comes from the change: its data (22), its catalog (42),
/// limits that it exceeds (54), faults of the server (XX).
const CAUSES: [(&str, Cause); 13] = [
    ("42501", Cause::Permission),
    ("08", Cause::Passing),
    // Session state and time-outs.
    ("25", Cause::Passing),
    ("26", Cause::Passing),
    ("28", Cause::Passing),
    // A database or schema that is being dropped or renamed.
    ("3D", Cause::Passing),
    ("40", Cause::Passing),
    ("53", Cause::Passing),
    // A slot that is in use, or that the server invalidated.
    ("55", Cause::Passing),
    ("57", Cause::Passing),
    // Files: a missing WAL segment, a failing disk.
    ("58", Cause::Passing),
    ("72", Cause::Passing),
    ("F0", Cause::Passing),
];

/// Returns the cause of an error that ended the stream.
pub fn cause(code: &str) -> Cause {
    CAUSES.iter().find(|(class, _)| code.starts_with(class)).map_or(Cause::Change, |(_, cause)| *cause)
}

#[derive(Debug, Default)]
pub struct Stuck {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    code: String,
    message: String,
    /// The position of the change, if the error names it; else the acknowledged position.
    position: Lsn,
    named: bool,
    sessions: u32,
    at: Instant,
}

impl Stuck {
    /// Records that a session ended with this error, after everything up to `acknowledged` was acknowledged. Returns the
    /// refusal if enough sessions ended alike.
    pub fn ended(&mut self, error: &PostgresError, acknowledged: Lsn, now: Instant) -> Option<Refusal> {
        let PostgresError::Stream { code, message } = error else { return None };
        if cause(code) != Cause::Change {
            return None;
        }
        let named = position(message);
        let position = named.unwrap_or(acknowledged);
        let alike = |last: &Last| (&last.code, &last.message, last.position) == (code, message, position);
        let before = self.last.take().filter(alike).map_or(0, |last| last.sessions);
        let (code, message, sessions) = (code.clone(), message.clone(), before + 1);
        self.last = Some(Last { code, message, position, named: named.is_some(), sessions, at: now });
        self.refusal()
    }

    /// Returns the refusal of a session that would begin after `acknowledged`, until the next retry is due.
    pub fn holds(&mut self, acknowledged: Lsn, now: Instant) -> Option<Refusal> {
        let passed = |last: &Last| match last.named {
            true => acknowledged > last.position,
            false => acknowledged != last.position,
        };
        if self.last.as_ref().is_some_and(passed) {
            self.last = None;
        }
        let waits = |last: &Last| now.saturating_duration_since(last.at) < RETRY_INTERVAL;
        self.last.as_ref().is_some_and(waits).then(|| self.refusal()).flatten()
    }

    /// The position that a session must pass before it counts as streaming.
    pub fn doubt(&self) -> Lsn {
        self.last.as_ref().map_or(Lsn::ZERO, |last| last.position)
    }

    fn refusal(&self) -> Option<Refusal> {
        let last = self.last.as_ref().filter(|last| last.sessions >= ALIKE_SESSIONS_MIN)?;
        let (position, code, problem) = (last.position, last.code.clone(), last.message.clone());
        Some(Refusal::Undecodable { position, code, problem })
    }
}

/// Returns the last WAL position in the text.
fn position(text: &str) -> Option<Lsn> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '/');
    words.filter(|word| word.contains('/')).filter_map(|word| word.parse().ok()).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, message: &str) -> PostgresError {
        PostgresError::Stream { code: code.to_owned(), message: message.to_owned() }
    }

    /// SQLSTATEs that end the stream, and their cause.
    const TABLE: &[(&str, Cause)] = &[
        ("22P05", Cause::Change),
        ("22021", Cause::Change),
        ("2201X", Cause::Change),
        ("42704", Cause::Change),
        ("42P01", Cause::Change),
        ("42883", Cause::Change),
        ("0A000", Cause::Change),
        ("38000", Cause::Change),
        ("P0001", Cause::Change),
        ("54000", Cause::Change),
        ("XX000", Cause::Change),
        ("XX001", Cause::Change),
        ("42501", Cause::Permission),
        ("08006", Cause::Passing),
        ("08P01", Cause::Passing),
        ("25006", Cause::Passing),
        ("25P03", Cause::Passing),
        ("25P04", Cause::Passing),
        ("28P01", Cause::Passing),
        ("28000", Cause::Passing),
        ("3D000", Cause::Passing),
        ("40001", Cause::Passing),
        ("53100", Cause::Passing),
        ("53200", Cause::Passing),
        ("53300", Cause::Passing),
        ("55000", Cause::Passing),
        ("55006", Cause::Passing),
        ("55P03", Cause::Passing),
        ("57014", Cause::Passing),
        ("57P01", Cause::Passing),
        ("58030", Cause::Passing),
        ("58P01", Cause::Passing),
        ("72000", Cause::Passing),
        ("F0000", Cause::Passing),
    ];

    #[test]
    fn only_what_the_change_is_at_fault_for_counts() {
        for (code, expected) in TABLE {
            assert_eq!(cause(code), *expected, "{code}");
            let (mut stuck, now) = (Stuck::default(), Instant::now());
            for _ in 0..ALIKE_SESSIONS_MIN {
                stuck.ended(&server(code, HERE), Lsn(1), now);
            }
            assert_eq!(stuck.holds(Lsn(1), now).is_some(), *expected == Cause::Change, "{code}");
        }
    }

    /// START_REPLICATION, and whatever else is asked while it streams.
    #[test]
    fn an_error_before_the_stream_or_beside_it_is_no_change() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        for (code, _) in TABLE {
            let error = PostgresError::Server { code: (*code).to_owned(), message: HERE.to_owned() };
            for _ in 0..ALIKE_SESSIONS_MIN {
                assert_eq!(stuck.ended(&error, Lsn(1), now), None, "{code}");
            }
        }
        assert_eq!(stuck.holds(Lsn(1), now), None);
    }

    const HERE: &str = "no equivalent (slot \"s\", in the change callback, associated LSN 0/AB10)";

    #[test]
    fn a_few_sessions_that_ended_alike_are_enough() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        let error = server("22P05", HERE);
        for acknowledged in 1..u64::from(ALIKE_SESSIONS_MIN) {
            // Earlier changes of the stream may be acknowledged meanwhile.
            assert_eq!(stuck.ended(&error, Lsn(acknowledged), now), None);
        }
        let (position, code) = (Lsn(0xAB10), "22P05".to_owned());
        let refusal = Refusal::Undecodable { position, code, problem: HERE.to_owned() };
        assert_eq!(stuck.ended(&error, Lsn(9), now), Some(refusal.clone()));
        assert_eq!(stuck.doubt(), Lsn(0xAB10));
        assert_eq!(stuck.holds(Lsn(9), now), Some(refusal.clone()));
        // It is tried again, and at the first failure refused again.
        let later = now + RETRY_INTERVAL;
        assert_eq!(stuck.holds(Lsn(9), later), None);
        assert_eq!(stuck.ended(&error, Lsn(9), later), Some(refusal));
        // Another slot that begins behind it is none of that.
        assert_eq!(stuck.holds(Lsn(0xAB11), later), None);
        assert_eq!(stuck.doubt(), Lsn::ZERO);
    }

    #[test]
    fn another_error_or_place_is_not_the_same() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        for n in 0..3 * ALIKE_SESSIONS_MIN {
            let error = match n % 3 {
                0 => server("22P05", HERE),
                1 => server("22P05", "no equivalent (associated LSN 0/AB20)"),
                _ => server("XX000", HERE),
            };
            assert_eq!(stuck.ended(&error, Lsn(1), now), None);
        }
        // Without a position in the error, the acknowledged position counts.
        for acknowledged in 1..10 {
            assert_eq!(stuck.ended(&server("XX000", "odd"), Lsn(acknowledged), now), None);
        }
        for _ in 1..ALIKE_SESSIONS_MIN {
            stuck.ended(&server("XX000", "odd"), Lsn(10), now);
        }
        assert!(stuck.ended(&server("XX000", "odd"), Lsn(10), now).is_some());
    }

    #[test]
    fn a_connection_that_breaks_is_no_change() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        for _ in 0..ALIKE_SESSIONS_MIN {
            assert_eq!(stuck.ended(&PostgresError::Protocol("odd".to_owned()), Lsn(1), now), None);
        }
        assert_eq!(stuck.holds(Lsn(1), now), None);
    }
}
