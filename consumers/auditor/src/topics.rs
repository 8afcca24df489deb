//! Pure: what the records of a chain say about each other.
//!
//! * T1 chain: each commit names the one before it. Records of a chain come from several partitions, so a position is judged
//!   only once every record up to its time has been read, and a gap is reported when it is still there at the next judgement.
//! * T2: within a chain the first emissions of a user come in the order of their commits, by topic. Across chains versions give
//!   the order.
//! * A repetition of a position is no finding: the relay emits at least once. [`WINDOW_MAX`] positions are kept; what is
//!   older than they are is taken for a repetition.
//! * A restored database, whose slot is made anew, has another chain; so has each of several sources with one `ce_source`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use coroctl::audit::checks::chain::{broken, follows};
use coroctl::audit::read::chain::{ChainPosition, format_lsn};
use jiff::Timestamp;
use uuid::Uuid;

use crate::checks::{Check, Found};

/// Positions that are kept of each source, beyond those that are not judged yet.
const WINDOW_MAX: usize = 20_000;
const UNJUDGED_MAX: usize = 1_000_000;

/// A record with a position.
#[derive(Clone, Copy, Debug)]
pub struct Emission<'a> {
    /// `pg_chain`.
    pub chain: &'a str,
    /// The last part of `ce_source`; a dead letter has none.
    pub source: Option<&'a str>,
    pub position: ChainPosition,
    /// When its transaction committed.
    pub at: Timestamp,
    /// Topic and user of an event of the saga.
    pub of_user: Option<(&'static str, Uuid)>,
}

#[derive(Debug, Default)]
struct Chain {
    /// The last part of `ce_source`, once an event has come.
    source: Option<String>,
    window: BTreeMap<ChainPosition, Timestamp>,
    /// The last position that was judged.
    judged: Option<ChainPosition>,
    newest_at: Option<Timestamp>,
    /// The last position of a user, by topic.
    latest: HashMap<(&'static str, Uuid), ChainPosition>,
    /// The position after a gap.
    after_gap: Option<ChainPosition>,
}

/// All chains.
#[derive(Debug)]
pub struct Chains {
    by_name: BTreeMap<String, Chain>,
    /// Commits up to this time are not followed in a chain whose last position is not known.
    since: Timestamp,
}

impl Chains {
    /// Goes on after these positions; another chain is followed from `since` on.
    pub fn after(positions: BTreeMap<String, ChainPosition>, since: Timestamp) -> Self {
        let chain = |position| Chain { judged: Some(position), ..Chain::default() };
        Self {
            by_name: positions.into_iter().map(|(name, position)| (name, chain(position))).collect(),
            since,
        }
    }

    /// Takes the next record of a partition.
    pub fn add(&mut self, emission: &Emission<'_>) -> Option<Found> {
        if !self.by_name.contains_key(emission.chain) {
            self.by_name.insert(emission.chain.to_owned(), Chain::default());
        }
        self.by_name.get_mut(emission.chain)?.add(emission, self.since)
    }

    /// When the newest record of each source was committed.
    pub fn newest(&self) -> BTreeMap<String, Timestamp> {
        let mut newest = BTreeMap::new();
        for chain in self.by_name.values() {
            if let (Some(source), Some(at)) = (&chain.source, chain.newest_at) {
                let known = newest.entry(source.clone()).or_insert(at);
                *known = at.max(*known);
            }
        }
        newest
    }

    /// Judges the positions of the commits of each source up to these times, since all of their records have been read.
    pub fn judge(&mut self, settled: &BTreeMap<String, Timestamp>) -> Vec<Found> {
        let mut found = Vec::new();
        for (name, chain) in &mut self.by_name {
            let settled = chain.source.as_ref().and_then(|source| settled.get(source));
            if let Some(settled) = settled {
                chain.judge(name, *settled, &mut found);
            }
            chain.forget();
        }
        found
    }

    /// The last position of each chain that was read.
    pub fn last(&self) -> BTreeMap<String, ChainPosition> {
        self.by_name.iter().filter_map(|(name, chain)| Some((name.clone(), chain.last()?))).collect()
    }

    /// Whether each chain was judged up to these positions.
    pub fn judged_up_to(&self, positions: &BTreeMap<String, ChainPosition>) -> bool {
        let judged = |name: &String| self.by_name.get(name).and_then(|chain| chain.judged);
        positions.iter().all(|(name, position)| judged(name) >= Some(*position))
    }
}

impl Chain {
    fn add(&mut self, emission: &Emission<'_>, since: Timestamp) -> Option<Found> {
        let Emission { position, at, .. } = *emission;
        if self.source.is_none() {
            self.source = emission.source.map(str::to_owned);
        }
        self.newest_at = self.newest_at.max(Some(at));
        let is_before = match self.judged {
            Some(judged) => position <= judged,
            None => at <= since,
        };
        if is_before || self.window.insert(position, at).is_some() {
            return None;
        }
        let of_user = emission.of_user?;
        let latest = self.latest.entry(of_user).or_insert(position);
        let last = std::mem::replace(latest, position.max(*latest));
        (last > position).then(|| {
            let (commit, last, (topic, _)) = (format_lsn(position.commit), format_lsn(last.commit), of_user);
            Found::new(Check::T2, format!("commit {commit} comes after {last} of the same user on {topic}"))
        })
    }

    fn last(&self) -> Option<ChainPosition> {
        self.window.keys().next_back().copied().max(self.judged)
    }

    /// Walks on to `settled`. At a gap it stops once; at the second time it reports the gap and goes on behind it.
    fn judge(&mut self, name: &str, settled: Timestamp, found: &mut Vec<Found>) {
        let after = self.judged.map_or(Bound::Unbounded, Bound::Excluded);
        for (position, at) in self.window.range((after, Bound::Unbounded)) {
            if *at > settled {
                break;
            }
            let fits = self.judged.is_none() || follows(self.judged, *position);
            if !fits && self.after_gap != Some(*position) {
                self.after_gap = Some(*position);
                break;
            }
            if !fits {
                found.push(Found::new(Check::T1Chain, broken(name, self.judged, *position)));
            }
            self.judged = Some(*position);
        }
    }

    /// Keeps memory bounded. A chain that could not be judged for [`UNJUDGED_MAX`] positions is followed from its end on.
    fn forget(&mut self) {
        if self.window.len() > UNJUDGED_MAX {
            self.judged = self.last();
            self.window.clear();
        }
        while self.window.len() > WINDOW_MAX
            && self.window.first_key_value().is_some_and(|(first, _)| Some(*first) < self.judged)
        {
            self.window.pop_first();
        }
        if let Some((first, _)) = self.window.first_key_value() {
            self.latest.retain(|_, last| last.commit >= first.commit);
        }
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
