//! Which keys are halted: their rows go to the dead-letter topic.
//!
//! A row that cannot be told halts its key towards that destination: later rows of the key go to the dead-letter
//! topic as well, in order, until a release for the key is written there. The halted keys are what reading the
//! topic from its start yields; nothing else remembers them. What stands there of a row is in `letter`, how a key
//! is let go on in `release`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A destination with more halted keys than this is halted as a whole, so that memory stays bounded.
const MOST_KEYS: usize = 100_000;

/// The destination of rows whose table has no routes. All of its later rows follow them.
pub fn unrouted(table: &str) -> String {
    format!("table:{table}")
}

/// The destination of changes that no route can express. Rows of the table go on without them.
pub fn untellable(table: &str) -> String {
    format!("change:{table}")
}

/// The head of any record in the dead-letter topic.
#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    source: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    destination: std::borrow::Cow<'a, str>,
    /// None: the key itself could not be told, so that every key of the destination is halted.
    key: Option<String>,
    #[serde(default)]
    release: bool,
    /// A release that did not come to its end: the letters from this offset on are still pending.
    from: Option<i64>,
}

/// Which keys of a destination are halted, each with an offset in the topic before which no letter of it is pending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    Keys(BTreeMap<String, i64>),
    All(i64),
}

/// The halted keys of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Halted {
    source: String,
    extents: BTreeMap<String, Extent>,
}

impl Halted {
    pub fn new(source: &str) -> Halted {
        Halted { source: source.to_owned(), extents: BTreeMap::new() }
    }

    /// Applies a record read from the topic; those of other sources change nothing. One that is not ours at all is
    /// an error: the set would be incomplete.
    pub fn apply(&mut self, offset: i64, value: &[u8]) -> Result<(), serde_json::Error> {
        let Head { source, destination, key, release, from } = serde_json::from_slice(value)?;
        let key = key.as_deref();
        match (release, from) {
            _ if source != self.source => {}
            (true, _) => self.release(&destination, key),
            (false, Some(from)) => self.keep(&destination, key, from),
            (false, None) => self.halt(&destination, key, offset),
        }
        Ok(())
    }

    /// A letter of the key is written at `from` or later. What is halted already stays so from where it is.
    pub fn halt(&mut self, destination: &str, key: Option<&str>, from: i64) {
        let Some(extent) = self.extents.get_mut(destination) else {
            let extent =
                key.map_or(Extent::All(from), |key| Extent::Keys(BTreeMap::from([(key.to_owned(), from)])));
            self.extents.insert(destination.to_owned(), extent);
            return;
        };
        let Extent::Keys(keys) = extent else { return };
        match key {
            Some(key) if keys.contains_key(key) => {}
            Some(key) if keys.len() < MOST_KEYS => drop(keys.insert(key.to_owned(), from)),
            _ => *extent = Extent::All(keys.values().copied().fold(from, i64::min)),
        }
    }

    fn release(&mut self, destination: &str, key: Option<&str>) {
        match (self.extents.get_mut(destination), key) {
            (Some(Extent::Keys(keys)), Some(key)) => {
                keys.remove(key);
                if keys.is_empty() {
                    self.extents.remove(destination);
                }
            }
            // One key cannot go on while an earlier letter may be of any key.
            (Some(Extent::All(_)), Some(_)) => {}
            (_, None) => drop(self.extents.remove(destination)),
            (None, Some(_)) => {}
        }
    }

    fn keep(&mut self, destination: &str, key: Option<&str>, from: i64) {
        match (self.extents.get_mut(destination), key) {
            (Some(Extent::Keys(keys)), Some(key)) => drop(keys.insert(key.to_owned(), from)),
            (Some(Extent::All(_)), Some(_)) => {}
            (_, None) => drop(self.extents.insert(destination.to_owned(), Extent::All(from))),
            (None, Some(_)) => self.halt(destination, key, from),
        }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn len(&self) -> usize {
        let count = |extent: &Extent| if let Extent::Keys(keys) = extent { keys.len() } else { 1 };
        self.extents.values().map(count).sum()
    }

    /// Whether a row of this key goes to the dead-letter topic.
    pub fn contains(&self, destination: &str, key: Option<&str>) -> bool {
        match self.extents.get(destination) {
            None => false,
            Some(Extent::All(_)) => true,
            Some(Extent::Keys(keys)) => key.is_some_and(|key| keys.contains_key(key)),
        }
    }

    pub fn extents(&self) -> impl Iterator<Item = (&str, &Extent)> {
        self.extents.iter().map(|(destination, extent)| (destination.as_str(), extent))
    }
}

#[cfg(test)]
#[path = "dead_tests.rs"]
mod tests;
