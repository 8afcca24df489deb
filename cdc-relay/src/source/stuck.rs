//! Changes that the server cannot decode: its error ends every session at the same place. Pure.
//!
//! * After a few sessions that ended alike the source is refused, and tried again once a minute.
//! * Only an error of the stream itself counts: START_REPLICATION, and every other question, decodes nothing.
//! * An error that another attempt may not meet, such as a server that shuts down, is none of these; nor is a permission,
//!   which somebody grants, or WAL that is gone, of which the slot says so.

use std::time::{Duration, Instant};

use crate::checkpoint::refusal::Refusal;
use crate::postgres::error::PostgresError;
use crate::postgres::lsn::Lsn;

/// So many sessions have to end alike.
const ALIKE_SESSIONS_MIN: u32 = 4;
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// What an error of the server's means for the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The next one may not meet it.
    Passing,
    /// The role lacks a permission, and meets it until somebody grants it.
    Permission,
    /// The next one meets it at the same change.
    Change,
}

/// Of classes of SQLSTATEs, and of single ones. All others are of the change: data (22), its catalog (42), limits that it
/// outgrows (54), the server's own faults (XX).
const CAUSES: [(&str, Cause); 13] = [
    ("42501", Cause::Permission),
    ("08", Cause::Passing),
    // A session's own state and time-outs.
    ("25", Cause::Passing),
    ("26", Cause::Passing),
    ("28", Cause::Passing),
    // The database, or its schema, while it is dropped or renamed.
    ("3D", Cause::Passing),
    ("40", Cause::Passing),
    ("53", Cause::Passing),
    // A slot that is in use, or that the server gave up.
    ("55", Cause::Passing),
    ("57", Cause::Passing),
    // Files: a segment of the WAL that is gone, a disk that fails.
    ("58", Cause::Passing),
    ("72", Cause::Passing),
    ("F0", Cause::Passing),
];

/// What an error with this SQLSTATE means, if it ended the stream.
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
    /// Where the change lies, if the server said so; else what was acknowledged.
    position: Lsn,
    named: bool,
    sessions: u32,
    at: Instant,
}

impl Stuck {
    /// A session ended with this error, before which everything up to `acknowledged` was. `Some`: as others did.
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

    /// Why there is no use in a session now that begins after `acknowledged`.
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

    /// A session streams when it has come so far.
    pub fn doubt(&self) -> Lsn {
        self.last.as_ref().map_or(Lsn::ZERO, |last| last.position)
    }

    fn refusal(&self) -> Option<Refusal> {
        let last = self.last.as_ref().filter(|last| last.sessions >= ALIKE_SESSIONS_MIN)?;
        let (position, code, problem) = (last.position, last.code.clone(), last.message.clone());
        Some(Refusal::Undecodable { position, code, problem })
    }
}

/// The last position that the text names.
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

    /// What ends the stream, and what it means.
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
            // What comes before it in the stream may be acknowledged meanwhile.
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
        // Where the server names no place, what is acknowledged is one.
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
