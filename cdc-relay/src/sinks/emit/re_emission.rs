//! Rows that are emitted once more, and the outcome.

use std::collections::BTreeMap;

use crate::routes::problem::Problem;

/// Which routes emit a row once more.
#[derive(Debug)]
pub enum ReEmission<'a> {
    /// A dead letter of this destination: only the routes that lead there.
    Destination(&'a str),
    /// A dead letter of a table that had no routes: all that it has now.
    All,
    /// A row that was emitted before: all routes, without halted keys.
    Emitted(&'a mut Tally),
}

/// Whether the routes could emit a row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum EmitOutcome {
    Emitted,
    /// A route cannot emit the row.
    Failed(Problem),
}

/// Counts the events that were emitted once more, and those that were left out.
#[derive(Debug, Default)]
pub struct Tally {
    /// Only events with this key.
    pub key: Option<String>,
    /// Events of that key, emitted or not.
    pub seen: u64,
    /// By destination.
    pub emitted: BTreeMap<String, u64>,
    /// Events whose key is halted.
    pub halted: u64,
}

impl Tally {
    pub fn count(&mut self, destination: &str) {
        match self.emitted.get_mut(destination) {
            Some(count) => *count += 1,
            None => drop(self.emitted.insert(destination.to_owned(), 1)),
        }
    }
}
