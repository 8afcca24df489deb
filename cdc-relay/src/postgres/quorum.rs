//! Computes from the server's own account up to which position its synchronous standbys have flushed the WAL: pure.
//!
//! * `synchronous_standby_names` says how many standbys a commit waits for. With `FIRST n` the server chooses n of them, and
//!   all of these must have flushed. With `ANY n` any n of those that are named must have flushed.
//! * The position counts as soon as the server would release a commit at it. With fewer standbys than it waits for no commit
//!   is released, and no position counts.
//! * Only what the server marks `sync` or `quorum` counts. A standby that is catching up, or that nobody names, may be
//!   ahead; but nobody promises that it is the one that is promoted.

use crate::postgres::lsn::Lsn;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    First,
    Any,
}

/// How many standbys a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    pub method: Method,
    pub count: usize,
}

impl Quorum {
    /// Parses `synchronous_standby_names`, which the server has accepted. `None`: it is empty, so no commit waits.
    pub fn parse(names: &str) -> Option<Quorum> {
        let names = names.trim();
        if names.is_empty() {
            return None;
        }
        let (method, rest) = match names.split_once(|c: char| c.is_ascii_whitespace()) {
            Some((word, rest)) if word.eq_ignore_ascii_case("any") => (Method::Any, rest.trim_start()),
            Some((word, rest)) if word.eq_ignore_ascii_case("first") => (Method::First, rest.trim_start()),
            _ => (Method::First, names),
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, list) = rest.split_at(digits);
        // Without a list behind it the number is the name of a standby.
        let count = if list.trim_start().starts_with('(') { count.parse().unwrap_or(1) } else { 1 };
        Some(Quorum { method, count })
    }
}

/// A standby as the server describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standby {
    /// The server marks it `sync` or `quorum`.
    pub is_synchronous: bool,
    /// `None`: it has not reported a position yet.
    pub flushed: Option<Lsn>,
}

/// Whether the server's `sync_state` counts.
pub fn is_synchronous(state: &str) -> bool {
    matches!(state, "sync" | "quorum")
}

/// The answer of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Enough synchronous standbys have flushed the WAL up to here.
    Flushed(Lsn),
    /// `synchronous_standby_names` is empty.
    NotConfigured,
    /// Fewer synchronous standbys are connected than a commit waits for.
    TooFew { needed: usize, connected: usize },
}

/// The position up to which a commit at it would be released.
pub fn standing(quorum: Option<Quorum>, standbys: &[Standby]) -> Standing {
    let Some(Quorum { method, count: needed }) = quorum else { return Standing::NotConfigured };
    let synchronous = standbys.iter().filter(|standby| standby.is_synchronous);
    let mut flushed: Vec<Lsn> = synchronous.filter_map(|standby| standby.flushed).collect();
    flushed.sort_unstable_by(|one, other| other.cmp(one));
    let position = match method {
        Method::First if flushed.len() >= needed => flushed.last(),
        Method::First => None,
        Method::Any => needed.checked_sub(1).and_then(|index| flushed.get(index)),
    };
    position.map_or(Standing::TooFew { needed, connected: flushed.len() }, |position| {
        Standing::Flushed(*position)
    })
}

#[cfg(test)]
#[path = "quorum_tests.rs"]
mod tests;
