//! Keeps the halted keys of a source: their rows go to the dead-letter topic.
//!
//! * A row that cannot be emitted halts its key towards that destination. Later rows of the key go to the dead-letter topic
//!   too, in order, until a release of the key is written there.
//! * The halted keys are the result of reading the topic from its start; nothing else saves them.
//! * A row whose key cannot be read (a column of it is null) has no position among the rows of any key. Its dead letter
//!   halts no key, and has the name of the row.
//! * A change that belongs to no row (a truncated table, a table without routes) halts its destination as a whole. Such
//!   changes have destinations of their own.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::postgres::utf8;

/// A destination with more halted keys than this is halted as a whole, so that memory stays bounded.
const KEYS_MAX: usize = 100_000;

/// The destination of rows whose table has no routes. All of its later rows follow them.
pub fn table_destination(table: &str) -> String {
    format!("table:{table}")
}

/// The destination of changes that no route can express. Rows of the table go on without them.
pub fn change_destination(table: &str) -> String {
    format!("change:{table}")
}

/// The name of all further rows without a key, after `KEYS_MAX` of a destination.
pub const FURTHER: &str = "";

/// The rows that a dead letter halts towards its destination: those of its key; without a key its row alone; with neither,
/// all rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Halts {
    #[serde(default)]
    pub key: Option<String>,
    /// The name of a row without a key: its table with its primary key, or with its position in the WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyless: Option<String>,
}

impl Halts {
    pub fn key(key: &str) -> Halts {
        Halts { key: Some(key.to_owned()), keyless: None }
    }

    pub fn row(name: &str) -> Halts {
        Halts { key: None, keyless: Some(name.to_owned()) }
    }

    pub fn is_all(&self) -> bool {
        self.key.is_none() && self.keyless.is_none()
    }
}

/// As the terminal shows it.
impl fmt::Display for Halts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, self.keyless.as_deref()) {
            (Some(key), _) => write!(out, "key {key}"),
            (None, Some(FURTHER)) => out.write_str("further rows without a key"),
            (None, Some(row)) => write!(out, "row {row}, which has no key"),
            (None, None) => out.write_str("every key"),
        }
    }
}

/// The head of any record in the dead-letter topic.
#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    source: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    destination: std::borrow::Cow<'a, str>,
    key: Option<String>,
    keyless: Option<String>,
    #[serde(default)]
    release: bool,
    /// A release that did not come to its end: the dead letters from this offset on are still pending.
    from: Option<i64>,
}

/// Halted keys and rows without a key, each with an offset in the topic before which no dead letter of it is pending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    keys: BTreeMap<String, i64>,
    rows: BTreeMap<String, i64>,
}

impl Keys {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.rows.is_empty()
    }

    fn len(&self) -> usize {
        self.keys.len() + self.rows.len()
    }

    /// The offset before which no dead letter is pending.
    pub fn first(&self) -> Option<i64> {
        self.keys.values().chain(self.rows.values()).copied().min()
    }

    pub fn get(&self, halts: &Halts) -> Option<i64> {
        match halts {
            Halts { key: Some(key), .. } => self.keys.get(key).copied(),
            Halts { keyless: Some(row), .. } => self.rows.get(row).copied(),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Halts, i64)> {
        let keys = self.keys.iter().map(|(key, from)| (Halts::key(key), *from));
        keys.chain(self.rows.iter().map(|(row, from)| (Halts::row(row), *from)))
    }

    fn map(&mut self, halts: &Halts) -> Option<(&mut BTreeMap<String, i64>, String)> {
        match halts.clone() {
            Halts { key: Some(key), .. } => Some((&mut self.keys, key)),
            Halts { keyless: Some(row), .. } => Some((&mut self.rows, row)),
            _ => None,
        }
    }

    fn remove(&mut self, halts: &Halts) {
        if let Some((map, name)) = self.map(halts) {
            map.remove(&name);
        }
    }

    fn set(&mut self, halts: &Halts, from: i64) {
        if let Some((map, name)) = self.map(halts) {
            map.insert(name, from);
        }
    }
}

#[cfg(test)]
impl FromIterator<(Halts, i64)> for Keys {
    fn from_iter<I: IntoIterator<Item = (Halts, i64)>>(named: I) -> Keys {
        let mut keys = Keys::default();
        named.into_iter().for_each(|(halts, from)| keys.set(&halts, from));
        keys
    }
}

/// The halted part of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    Keys(Keys),
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
        // Dead letters of earlier releases may have bytes that are no UTF-8.
        let value = utf8::json(value);
        let Head { source, destination, key, keyless, release, from } = serde_json::from_str(&value)?;
        let halts = Halts { key, keyless };
        match (release, from) {
            _ if source != self.source => {}
            (true, _) => self.release(&destination, &halts),
            (false, Some(from)) => self.keep(&destination, &halts, from),
            (false, None) => self.halt(&destination, &halts, offset),
        }
        Ok(())
    }

    /// A dead letter is written at `from` or later. A key that is halted already keeps its earlier offset.
    pub fn halt(&mut self, destination: &str, halts: &Halts, from: i64) {
        let extent = self.extents.entry(destination.to_owned()).or_insert_with(|| {
            if halts.is_all() { Extent::All(from) } else { Extent::Keys(Keys::default()) }
        });
        let Extent::Keys(keys) = extent else { return };
        match halts {
            _ if keys.get(halts).is_some() => {}
            Halts { key: Some(_), .. } if keys.keys.len() < KEYS_MAX => keys.set(halts, from),
            Halts { key: None, keyless: Some(_) } if keys.rows.len() < KEYS_MAX => keys.set(halts, from),
            // No row follows a row without a key, so further ones need no name.
            Halts { key: None, keyless: Some(_) } => {
                keys.rows.entry(FURTHER.to_owned()).or_insert(from);
            }
            _ => *extent = Extent::All(keys.first().unwrap_or(from).min(from)),
        }
    }

    fn release(&mut self, destination: &str, halts: &Halts) {
        match self.extents.get_mut(destination) {
            Some(Extent::Keys(keys)) if !halts.is_all() => {
                keys.remove(halts);
                if keys.is_empty() {
                    self.extents.remove(destination);
                }
            }
            // One key cannot go on while an earlier dead letter may be of any key.
            Some(Extent::All(_)) if !halts.is_all() => {}
            _ => drop(self.extents.remove(destination)),
        }
    }

    fn keep(&mut self, destination: &str, halts: &Halts, from: i64) {
        match self.extents.get_mut(destination) {
            _ if halts.is_all() => drop(self.extents.insert(destination.to_owned(), Extent::All(from))),
            Some(Extent::Keys(keys)) => keys.set(halts, from),
            Some(Extent::All(_)) => {}
            None => self.halt(destination, halts, from),
        }
    }

    /// The keys or rows that are released together with a dead letter, and the offset before which none is pending.
    pub fn unit(&self, destination: &str, halts: &Halts) -> Option<(Halts, i64)> {
        match self.extents.get(destination)? {
            Extent::All(from) => Some((Halts::default(), *from)),
            Extent::Keys(keys) => {
                let further = || halts.keyless.is_some().then(|| Halts::row(FURTHER));
                let exact = keys.get(halts).map(|from| (halts.clone(), from));
                exact.or_else(|| {
                    further()
                        .and_then(|further| Some((keys.get(&further)?, further)))
                        .map(|(from, halts)| (halts, from))
                })
            }
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

    /// Whether the destination has a dead letter without a key already.
    pub fn has_keyless(&self, destination: &str) -> bool {
        match self.extents.get(destination) {
            None => false,
            Some(Extent::All(_)) => true,
            Some(Extent::Keys(keys)) => !keys.rows.is_empty(),
        }
    }

    /// Whether a row of this key goes to the dead-letter topic; `None`: a row of any key.
    pub fn contains(&self, destination: &str, key: Option<&str>) -> bool {
        match self.extents.get(destination) {
            None => false,
            Some(Extent::All(_)) => true,
            Some(Extent::Keys(keys)) => key.is_some_and(|key| keys.keys.contains_key(key)),
        }
    }

    pub fn extents(&self) -> impl Iterator<Item = (&str, &Extent)> {
        self.extents.iter().map(|(destination, extent)| (destination.as_str(), extent))
    }
}

#[cfg(test)]
#[path = "halts_tests.rs"]
mod tests;
