//! Rows that are emitted once more, and what became of them.

use std::collections::BTreeMap;

/// What is emitted once more.
#[derive(Debug)]
pub enum Again<'a> {
    /// A row that was set aside, to the destination that it was set aside from.
    Destination(&'a str),
    /// A row that was set aside for want of routes, by all that it has now.
    All,
    /// A row that was emitted before, by all routes; what is halted is not emitted.
    Emitted(&'a mut Tally),
}

/// What was emitted once more, by destination, and what was not, since its key is halted.
#[derive(Debug, Default)]
pub struct Tally {
    /// Only events with this key.
    pub key: Option<String>,
    /// Events that were looked at.
    pub seen: u64,
    pub emitted: BTreeMap<String, u64>,
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
