//! Decides which of several relays should read a source: pure.
//!
//! * For each source all relays agree on an order of themselves (rendezvous hashing). So the sources spread evenly, and a relay
//!   that comes or goes moves only its own share.
//! * The slot alone decides who reads. The order says who takes a free slot first, and who asks the reader to hand it over.
//! * A relay is known where it waits: by the name of its session in the source's database. No relay knows another's address.
//! * Without sharing, a reader keeps its slot until it ends, and nobody asks for it.
//! * A reader that is asked by a relay before it in the order drains as at its end, and stands aside for a moment. A request
//!   is a logical message in the WAL, so it needs no connection between relays. An old one is ignored, by the server's clock alone.
//! * A relay asks rarely, and ever more rarely: one that cannot read after all must not make the others restless. Once it has read for
//!   a while, it asks as at first.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::postgres::lsn::PgTime;

/// The prefix of logical messages that carry a [`Request`].
pub const PREFIX: &str = "cdc-relay.handover";
/// The beginning of the name of a session that waits.
const WAITING: &str = "cdc-relay standby";

/// How long a relay waits before it first asks: others may be starting too.
const SETTLE_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two requests: it doubles up to the maximum.
const REQUEST_INTERVAL_MIN: Duration = Duration::from_secs(60);
const REQUEST_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// How much later than the one before it in the order a relay takes a free slot.
const TURN_INTERVAL: Duration = Duration::from_millis(700);
/// As many turns are waited for at most, whoever seems to wait.
const TURNS_MAX: u32 = 2;
/// A request that was committed longer ago is ignored.
const REQUEST_AGE_MAX: Duration = Duration::from_secs(30);

/// A relay process, by a name that it keeps over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// `host` and `address` distinguish it from all others.
    pub fn new(host: &str, address: impl fmt::Display) -> Instance {
        Instance(hash(&format!("{host}/{address}")))
    }
}

/// This process, towards other relays.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    pub instance: Instance,
    /// It asks for slots for which it comes first, and hands over those for which another one does.
    pub shares: bool,
}

/// Sixteen hexadecimal digits.
fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A request to hand the slot over.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    slot: String,
    instance: Instance,
}

/// One relay in the order for one slot.
#[derive(Debug, Clone)]
pub struct Candidate {
    instance: Instance,
    shares: bool,
    slot: String,
}

impl Candidate {
    pub fn new(Membership { instance, shares }: Membership, slot: &str) -> Candidate {
        Candidate { instance, shares, slot: slot.to_owned() }
    }

    /// Whether it asks and hands over.
    pub fn shares(&self) -> bool {
        self.shares
    }

    fn weight(&self, instance: &Instance) -> String {
        hash(&format!("{}/{}", instance.0, self.slot))
    }

    /// The place in the order behind `others`, from 0.
    pub fn place(&self, others: &[Instance]) -> u32 {
        let own = self.weight(&self.instance);
        others.iter().filter(|other| self.weight(other) > own).count() as u32
    }

    /// The name of the session in which this relay waits.
    pub fn session_name(&self) -> String {
        format!("{} {}", self.sessions(), self.instance.0)
    }

    /// The beginning of the names of all sessions that wait for the slot.
    pub fn sessions(&self) -> String {
        let slot: String = hash(&self.slot).chars().take(8).collect();
        format!("{WAITING} {slot}")
    }

    /// The relay that waits in a session of this name.
    pub fn waiting(&self, session_name: &str) -> Option<Instance> {
        let instance = session_name.strip_prefix(&self.sessions())?.strip_prefix(' ')?;
        Some(Instance(instance.to_owned()))
    }

    pub fn request(&self) -> Request {
        Request { slot: self.slot.clone(), instance: self.instance.clone() }
    }

    /// Whether the reader should hand the slot over. Both times are the server's: a relay's clock may differ.
    pub fn yields_to(&self, request: &Request, committed_at: PgTime, sent_at: PgTime) -> bool {
        let age = sent_at.0.saturating_sub(committed_at.0);
        self.shares
            && request.slot == self.slot
            && age < REQUEST_AGE_MAX.as_micros() as i64
            && self.place(std::slice::from_ref(&request.instance)) > 0
    }
}

/// What a relay that waits does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    Wait,
    /// Takes the slot, which is free.
    Take,
    /// Asks the reader for the slot.
    Ask,
}

/// How long a relay has waited, and when it asked.
#[derive(Debug)]
pub struct StandbyWait {
    since: Option<Instant>,
    free_since: Option<Instant>,
    asked_at: Option<Instant>,
    interval: Duration,
}

impl Default for StandbyWait {
    fn default() -> StandbyWait {
        StandbyWait { since: None, free_since: None, asked_at: None, interval: REQUEST_INTERVAL_MIN }
    }
}

impl StandbyWait {
    /// The relay reads the slot itself, or cannot.
    pub fn ends(&mut self) {
        (self.since, self.free_since) = (None, None);
    }

    /// The relay has read the slot for so long. If that was more than a moment, it can read, and asks as at first.
    pub fn has_read(&mut self, time: Duration) {
        if time >= REQUEST_INTERVAL_MIN {
            (self.asked_at, self.interval) = (None, REQUEST_INTERVAL_MIN);
        }
    }

    /// Whether the others that wait matter now.
    pub fn is_due(&mut self, is_free: bool, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if !is_free {
            self.free_since = None;
        }
        let asked = self.asked_at.is_none_or(|at| now.duration_since(at) >= self.interval);
        is_free || (asked && now.duration_since(since) >= SETTLE_INTERVAL)
    }

    /// Decides, once it is due. `place`: how many of those that wait come before this relay.
    pub fn next(&mut self, is_free: bool, place: u32, now: Instant) -> Move {
        if is_free {
            let since = *self.free_since.get_or_insert(now);
            let turn = TURN_INTERVAL * place.min(TURNS_MAX);
            return if now.duration_since(since) >= turn { Move::Take } else { Move::Wait };
        }
        if place > 0 {
            return Move::Wait;
        }
        if self.asked_at.is_some() {
            self.interval = (self.interval * 2).min(REQUEST_INTERVAL_MAX);
        }
        self.asked_at = Some(now);
        Move::Ask
    }
}

#[cfg(test)]
#[path = "succession_tests.rs"]
mod tests;
