//! Decides how halted keys are released. Pure.
//!
//! * The dead letters of a key are emitted in their order, before any later row of the key. None is lost and none is
//!   overtaken, whatever crashes when.
//! * A dead letter that still cannot be emitted stays, and all later ones of its key with it. The topic then says from which
//!   offset on.
//! * A dead letter that is in the topic more than once, after a repeated session, is emitted once.
//!
//! An order to release is a logical message in the source's WAL, so it has one definite position among the commits. At that
//! position the relay (`stream::release`)
//!
//! 1. waits until everything it emitted before is acknowledged, so that the topic has every earlier dead letter;
//! 2. emits the dead letters again, in the topic's order;
//! 3. waits until every sink has acknowledged them;
//! 4. and only then writes to the topic that the key is released.
//!
//! All of that belongs to the message's transaction: the slot moves past it when it is complete, and a crash before that
//! begins it again, with the same ids. After a crash later than step 4 nothing is left to emit. Rows of the key between the
//! slot and the message that are emitted a second time after a crash find the key released, and are emitted directly: the
//! dead letter was their first emission.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dead_letter::halts::{Extent, FURTHER, Halted, Halts};
use crate::dead_letter::record::{DeadLetter, WalPosition, shortened};

/// The prefix of logical messages that carry a [`ReleaseOrder`].
pub const PREFIX: &str = "cdc-relay.release";

/// More keys than this that stop in the middle of a destination stop it as a whole.
const STOPS_MAX: usize = 10_000;

/// An order to release keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseOrder {
    /// Distinguishes this order from others.
    pub id: String,
    pub source: String,
    /// As dead letters name it: `topic:PaymentTopic`. `None`: every destination.
    pub destination: Option<String>,
    /// With neither key nor row: every one.
    #[serde(flatten)]
    pub halts: Halts,
    /// Dead letters that cannot be emitted are skipped instead of halting their key again.
    #[serde(rename = "pass_over", default)]
    pub skip: bool,
}

impl ReleaseOrder {
    pub fn read(content: &[u8]) -> Result<ReleaseOrder, serde_json::Error> {
        serde_json::from_slice(content)
    }

    fn names(&self, destination: &str) -> bool {
        self.destination.as_deref().is_none_or(|named| named == destination)
    }
}

/// The outcome for a key, or for the order if `done`, as a record of the dead-letter topic. `release` without `from` releases
/// the key; with it, the dead letters before that offset were emitted and the key stays halted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    pub source: String,
    pub destination: String,
    #[serde(flatten)]
    pub halts: Halts,
    pub release: bool,
    pub order: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Dead letters that were emitted, and those that were skipped.
    #[serde(rename = "told", default)]
    pub emitted: u64,
    #[serde(rename = "passed_over", default)]
    pub skipped: u64,
    #[serde(default)]
    pub done: bool,
}

/// A destination, and the keys of it that are released together.
type Name = (String, Halts);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stop {
    from: i64,
    reason: String,
}

/// A key, a row without one, or a destination whose dead letters may be of any key: they are released together.
#[derive(Debug, Default)]
struct Unit {
    from: i64,
    emitted: u64,
    skipped: u64,
    /// The last dead letter so far.
    last: Option<WalPosition>,
    stop: Option<Stop>,
    /// Keys that stay halted in a destination that was halted as a whole.
    stops: BTreeMap<Halts, Stop>,
}

/// One reading of the topic for one order.
#[derive(Debug)]
pub struct ReleasePass<'o> {
    order: &'o ReleaseOrder,
    units: BTreeMap<Name, Unit>,
    /// Destinations whose one key cannot go on alone.
    whole: BTreeSet<String>,
}

impl<'o> ReleasePass<'o> {
    pub fn new(order: &'o ReleaseOrder, halted: &Halted) -> ReleasePass<'o> {
        let mut pass = ReleasePass { order, units: BTreeMap::new(), whole: BTreeSet::new() };
        for (destination, extent) in halted.extents().filter(|(destination, _)| order.names(destination)) {
            match (extent, order.halts.is_all()) {
                (Extent::All(from), true) => pass.unit(destination, Halts::default(), *from),
                (Extent::All(_), false) => drop(pass.whole.insert(destination.to_owned())),
                (Extent::Keys(keys), true) => {
                    keys.iter().for_each(|(halts, from)| pass.unit(destination, halts, from));
                }
                (Extent::Keys(keys), false) => {
                    if let Some(from) = keys.get(&order.halts) {
                        pass.unit(destination, order.halts.clone(), from);
                    }
                }
            }
        }
        pass
    }

    fn unit(&mut self, destination: &str, halts: Halts, from: i64) {
        self.units.insert((destination.to_owned(), halts), Unit { from, ..Unit::default() });
    }

    /// Where in the topic to begin; `None`: nothing is to be emitted.
    pub fn from(&self) -> Option<i64> {
        self.units.values().map(|unit| unit.from).min()
    }

    fn find(&mut self, dead_letter: &DeadLetter) -> Option<&mut Unit> {
        let mut name = (dead_letter.destination.clone(), dead_letter.halts());
        if !self.units.contains_key(&name) && dead_letter.halts().keyless.is_some() {
            name.1 = Halts::row(FURTHER);
        }
        if !self.units.contains_key(&name) {
            name.1 = Halts::default();
        }
        self.units.get_mut(&name)
    }

    /// Whether the dead letter at this offset is to be emitted now.
    pub fn wants(&mut self, offset: i64, dead_letter: &DeadLetter) -> bool {
        if dead_letter.source != self.order.source {
            return false;
        }
        let Some(unit) = self.find(dead_letter) else { return false };
        let stopped = unit.stop.is_some() || unit.stops.contains_key(&dead_letter.halts());
        if offset < unit.from || stopped {
            return false;
        }
        let position = dead_letter.wal_position();
        if let (Some(last), Some(position)) = (&unit.last, &position)
            && last.covers(position)
        {
            return false;
        }
        unit.last = position.or_else(|| unit.last.take());
        true
    }

    /// It was emitted.
    pub fn emitted(&mut self, dead_letter: &DeadLetter) {
        if let Some(unit) = self.find(dead_letter) {
            unit.emitted += 1;
        }
    }

    /// It cannot be emitted: its key stays halted from here on, unless such dead letters are to be skipped.
    pub fn failed(&mut self, offset: i64, dead_letter: &DeadLetter, reason: &str) {
        let skip = self.order.skip;
        let halts = dead_letter.halts();
        let is_whole = !self.units.contains_key(&(dead_letter.destination.clone(), halts.clone()));
        let Some(unit) = self.find(dead_letter) else { return };
        let stop = Stop { from: offset, reason: shortened(reason).to_owned() };
        match halts.is_all() {
            _ if skip => unit.skipped += 1,
            false if is_whole && unit.stops.len() < STOPS_MAX => drop(unit.stops.insert(halts, stop)),
            _ => {
                // Earlier dead letters of keys that stopped are pending too.
                let from = unit.stops.values().map(|stop| stop.from).fold(stop.from, i64::min);
                unit.stops.clear();
                unit.stop = Some(Stop { from, ..stop });
            }
        }
    }

    /// The records to write, in this order; the last one ends the order.
    pub fn records(&self) -> Vec<ReleaseRecord> {
        let mut notes = Vec::new();
        for ((destination, halts), unit) in &self.units {
            let note = |halts: &Halts, stop: Option<&Stop>| ReleaseRecord {
                destination: destination.clone(),
                halts: halts.clone(),
                release: stop.is_none(),
                from: stop.map(|stop| stop.from),
                reason: stop.map(|stop| stop.reason.clone()),
                ..self.note()
            };
            let (emitted, skipped) = (unit.emitted, unit.skipped);
            notes.push(ReleaseRecord { emitted, skipped, ..note(halts, unit.stop.as_ref()) });
            notes.extend(unit.stops.iter().map(|(halts, stop)| note(halts, Some(stop))));
        }
        let sum = |count: fn(&Unit) -> u64| self.units.values().map(count).sum();
        let reason = (!self.whole.is_empty()).then(|| {
            let whole: Vec<&str> = self.whole.iter().map(String::as_str).collect();
            format!("every key is halted towards {}: release them all at once", whole.join(", "))
        });
        let (emitted, skipped) = (sum(|unit| unit.emitted), sum(|unit| unit.skipped));
        notes.push(ReleaseRecord { reason, emitted, skipped, done: true, ..self.note() });
        notes
    }

    /// A record of no destination: to earlier releases a release of nothing.
    fn note(&self) -> ReleaseRecord {
        ReleaseRecord {
            source: self.order.source.clone(),
            destination: String::new(),
            halts: Halts::default(),
            release: true,
            order: self.order.id.clone(),
            from: None,
            reason: None,
            emitted: 0,
            skipped: 0,
            done: false,
        }
    }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
