//! Changes that the server cannot decode: its error ends every session at the same place. Pure.
//!
//! * After a few sessions that ended alike the source is refused, and tried again once a minute.
//! * An error that another attempt may not meet, such as a server that shuts down, is none of these.

use std::time::{Duration, Instant};

use crate::lsn::Lsn;
use crate::state::Refusal;
use crate::wire::WireError;

/// So many sessions have to end alike.
const SESSIONS: u32 = 4;
const TRY_INTERVAL: Duration = Duration::from_secs(60);
/// Connections, transactions in each other's way, resources, objects in use, operators, time-outs.
const PASSING: [&str; 7] = ["08", "40", "53", "55", "57", "25P03", "25P04"];

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
    pub fn ended(&mut self, error: &WireError, acknowledged: Lsn, now: Instant) -> Option<Refusal> {
        let WireError::Server { code, message } = error else { return None };
        if PASSING.iter().any(|class| code.starts_with(class)) {
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
        let waits = |last: &Last| now.saturating_duration_since(last.at) < TRY_INTERVAL;
        self.last.as_ref().is_some_and(waits).then(|| self.refusal()).flatten()
    }

    /// A session streams when it has come so far.
    pub fn doubt(&self) -> Lsn {
        self.last.as_ref().map_or(Lsn::ZERO, |last| last.position)
    }

    fn refusal(&self) -> Option<Refusal> {
        let last = self.last.as_ref().filter(|last| last.sessions >= SESSIONS)?;
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

    fn server(code: &str, message: &str) -> WireError {
        WireError::Server { code: code.to_owned(), message: message.to_owned() }
    }

    const HERE: &str = "no equivalent (slot \"s\", in the change callback, associated LSN 0/AB10)";

    #[test]
    fn a_few_sessions_that_ended_alike_are_enough() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        let error = server("22P05", HERE);
        for acknowledged in 1..u64::from(SESSIONS) {
            // What comes before it in the stream may be acknowledged meanwhile.
            assert_eq!(stuck.ended(&error, Lsn(acknowledged), now), None);
        }
        let (position, code) = (Lsn(0xAB10), "22P05".to_owned());
        let refusal = Refusal::Undecodable { position, code, problem: HERE.to_owned() };
        assert_eq!(stuck.ended(&error, Lsn(9), now), Some(refusal.clone()));
        assert_eq!(stuck.doubt(), Lsn(0xAB10));
        assert_eq!(stuck.holds(Lsn(9), now), Some(refusal.clone()));
        // It is tried again, and at the first failure refused again.
        let later = now + TRY_INTERVAL;
        assert_eq!(stuck.holds(Lsn(9), later), None);
        assert_eq!(stuck.ended(&error, Lsn(9), later), Some(refusal));
        // Another slot that begins behind it is none of that.
        assert_eq!(stuck.holds(Lsn(0xAB11), later), None);
        assert_eq!(stuck.doubt(), Lsn::ZERO);
    }

    #[test]
    fn another_error_or_place_is_not_the_same() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        for n in 0..3 * SESSIONS {
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
        for _ in 1..SESSIONS {
            stuck.ended(&server("XX000", "odd"), Lsn(10), now);
        }
        assert!(stuck.ended(&server("XX000", "odd"), Lsn(10), now).is_some());
    }

    #[test]
    fn what_passes_is_no_reason() {
        let (mut stuck, now) = (Stuck::default(), Instant::now());
        for _ in 0..10 {
            for code in ["57P01", "53100", "08006", "40001", "55006", "25P04"] {
                assert_eq!(stuck.ended(&server(code, HERE), Lsn(1), now), None);
            }
            assert_eq!(stuck.ended(&WireError::Protocol("odd".to_owned()), Lsn(1), now), None);
        }
        assert_eq!(stuck.holds(Lsn(1), now), None);
    }
}
