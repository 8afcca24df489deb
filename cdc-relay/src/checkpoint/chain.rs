//! Verifies the positions of the records of one chain (`pg_chain`): pure.
//!
//! * Each record names its commit, its number in it, and the commit before it that emitted anything. A reader of all
//!   records proves by that chain that no transaction is missing.
//! * A record takes 16 bytes, until every partition has been read past its commit. Then its part of the chain is judged and
//!   dropped.
//! * A record below the judged commits is a repetition, because nothing is missing there.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::postgres::lsn::Lsn;

/// `pg_position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainPosition {
    pub commit: Lsn,
    /// Counts the transaction's records on Kafka from 0.
    pub ordinal: u32,
    /// The previous commit of the chain that emitted anything; 0/0 where the chain begins.
    pub previous: Lsn,
}

impl ChainPosition {
    /// Parses `0/20;1;0/10`.
    pub fn parse(text: &[u8]) -> Option<ChainPosition> {
        let mut parts = std::str::from_utf8(text).ok()?.split(';');
        let (commit, ordinal, previous) = (parts.next()?, parts.next()?, parts.next()?);
        let position = ChainPosition {
            commit: commit.parse().ok()?,
            ordinal: ordinal.parse().ok()?,
            previous: previous.parse().ok()?,
        };
        parts.next().is_none().then_some(position)
    }
}

/// A position in 16 bytes. `back` is the distance to the previous commit: 0 at a beginning, `FAR` if it is in `far`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Link {
    commit: u64,
    ordinal: u32,
    back: u32,
}

const FAR: u32 = u32::MAX;
/// With more open records than this the chain is judged as far as possible.
const OPEN_RECORDS_MAX: usize = 1 << 20;
/// The newest records are judged at the end only: a running relay may have emitted one of them to a partition that is not
/// read as far.
const NEWEST_RECORDS: usize = OPEN_RECORDS_MAX / 8;

/// The records of one partition.
#[derive(Debug, Default)]
struct Lane {
    open: Vec<Link>,
    /// The last record that was emitted for the first time.
    top: Option<(u64, u32)>,
    /// Its oldest records are gone, or were not read.
    cut: bool,
    ended: bool,
}

/// The result of verifying a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Records emitted for the first time, and judged.
    pub events: u64,
    pub transactions: u64,
    /// How often the chain begins: with its slot, and again after every change of routes.
    pub beginnings: u64,
    /// Records emitted once more, after a crash.
    pub repeated: u64,
    /// Older than what every partition still has.
    pub before_start: u64,
    /// Newer than the commit that all partitions were read up to.
    pub not_judged: u64,
    /// Positions at which at least one transaction is missing.
    pub gaps: u64,
    /// Records that are missing within transactions.
    pub missing_records: u64,
    /// Records emitted for the first time behind later ones of their partition.
    pub out_of_order: u64,
    pub first: Option<String>,
    pub last: Option<String>,
    /// The first problem, explained.
    pub problem: Option<String>,
}

impl Findings {
    pub fn is_whole(&self) -> bool {
        self.gaps == 0 && self.missing_records == 0 && self.out_of_order == 0
    }

    fn problem(&mut self, text: impl FnOnce() -> String) {
        if self.problem.is_none() {
            self.problem = Some(text());
        }
    }
}

/// One chain, over all partitions.
#[derive(Debug, Default)]
pub struct Chain {
    lanes: Vec<Lane>,
    far: BTreeMap<u64, u64>,
    open: usize,
    /// Every record below this commit is judged.
    judged: u64,
    /// The last judged record's commit, and the ordinal that follows.
    last: Option<(u64, u32)>,
    /// No record up to this commit is judged: a partition has lost some of them.
    start: Option<u64>,
    /// From this commit on other routes repeat what the earlier ones emitted.
    re_emitted: Option<u64>,
    found: Findings,
}

impl Chain {
    /// A chain over these partitions; `cut` says for each whether its beginning is missing.
    pub fn new(cut: impl IntoIterator<Item = bool>) -> Chain {
        let lanes = cut.into_iter().map(|cut| Lane { cut, ..Lane::default() }).collect();
        Chain { lanes, ..Chain::default() }
    }

    /// Adds the next record of a partition.
    pub fn take(&mut self, lane: usize, position: ChainPosition) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let (commit, ordinal, previous) = (position.commit.0, position.ordinal, position.previous.0);
        if lane.top.is_none() && lane.cut {
            self.start = self.start.max(Some(commit));
        }
        let at = (commit, ordinal);
        if lane.top.is_some_and(|top| at <= top) {
            let known = commit < self.judged
                || lane.open.binary_search_by_key(&at, |link| (link.commit, link.ordinal)).is_ok();
            // Other routes may emit other records of the newest transactions.
            if !known && previous == 0 {
                self.re_emitted = Some(self.re_emitted.map_or(commit, |since| since.min(commit)));
            }
            if known || self.re_emitted.is_some_and(|since| commit >= since) {
                self.found.repeated += 1;
            } else {
                self.found.out_of_order += 1;
                self.found.problem(|| {
                    let top = Lsn(lane.top.unwrap_or_default().0);
                    format!(
                        "record {ordinal} of commit {} came after commit {top} of its partition",
                        Lsn(commit)
                    )
                });
            }
            return;
        }
        let back = match commit.checked_sub(previous).map(u32::try_from) {
            _ if previous == 0 => 0,
            Some(Ok(back)) if back > 0 && back < FAR => back,
            _ => {
                self.far.insert(commit, previous);
                FAR
            }
        };
        lane.open.push(Link { commit, ordinal, back });
        lane.top = Some(at);
        self.open += 1;
        if self.open >= OPEN_RECORDS_MAX && self.open.is_multiple_of(OPEN_RECORDS_MAX / 4) {
            self.judge_old();
        }
    }

    /// Marks a partition as read to its end.
    pub fn end(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.ended = true;
        }
    }

    /// The newest commit seen.
    pub fn newest(&self) -> Lsn {
        Lsn(self.lanes.iter().filter_map(|lane| lane.top).map(|top| top.0).max().unwrap_or(0))
    }

    /// No partition can add a record below this commit.
    fn horizon(&self) -> u64 {
        let reading = self.lanes.iter().filter(|lane| !lane.ended);
        reading.map(|lane| lane.top.map_or(0, |top| top.0)).min().unwrap_or(u64::MAX)
    }

    /// Judges the records that are old enough.
    fn judge_old(&mut self) {
        let old =
            self.lanes.iter().filter_map(|lane| lane.open.get(lane.open.len().checked_sub(NEWEST_RECORDS)?));
        let old = old.map(|link| link.commit).max().unwrap_or(0);
        self.judge(self.horizon().min(old));
    }

    /// Judges the remaining records, up to and with `newest`.
    pub fn finish(mut self, newest: Lsn) -> Findings {
        self.judge(newest.0.saturating_add(1));
        self.found.not_judged = self.open as u64;
        self.found
    }

    fn judge(&mut self, horizon: u64) {
        let mut records = Vec::new();
        for lane in &mut self.lanes {
            let below = lane.open.partition_point(|link| link.commit < horizon);
            records.extend(lane.open.drain(..below));
            lane.open.shrink_to(lane.open.len() * 2);
        }
        self.open -= records.len();
        self.judged = self.judged.max(horizon);
        records.sort_unstable();
        for link in records {
            self.link(link);
        }
        self.far = self.far.split_off(&horizon);
    }

    /// Judges the next record in the order of commits.
    fn link(&mut self, link: Link) {
        let Link { commit, ordinal, back } = link;
        if self.start.is_some_and(|start| commit <= start) {
            self.found.before_start += 1;
            return;
        }
        let previous = match back {
            0 => 0,
            FAR => self.far.get(&commit).copied().unwrap_or(0),
            back => commit - u64::from(back),
        };
        let expected = match self.last {
            Some((last, expected)) if last == commit => expected,
            last => {
                self.transaction(commit, previous, last.map(|(last, _)| last));
                0
            }
        };
        if ordinal < expected {
            // The record is in two partitions: their number was changed.
            self.found.repeated += 1;
            return;
        }
        self.found.events += 1;
        if ordinal > expected {
            self.found.missing_records += u64::from(ordinal - expected);
            self.found.problem(|| {
                let commit = Lsn(commit);
                format!("commit {commit} has record {ordinal}, and its record {expected} is nowhere")
            });
        }
        self.last = Some((commit, ordinal + 1));
    }

    fn transaction(&mut self, commit: u64, previous: u64, last: Option<u64>) {
        self.found.transactions += 1;
        self.found.last = Some(Lsn(commit).to_string());
        if last.is_none() {
            self.found.first.clone_from(&self.found.last);
        }
        if previous == 0 {
            self.found.beginnings += 1;
            return;
        }
        let fits = last.map_or(self.start.is_some(), |last| previous == last);
        if fits {
            return;
        }
        self.found.gaps += 1;
        let (commit, previous) = (Lsn(commit), Lsn(previous));
        self.found.problem(|| match last.map(Lsn) {
            None => format!("commit {commit} is the first here, and names {previous} before it, which is nowhere"),
            Some(last) if previous > last => format!(
                "commit {commit} names {previous} before it, which is nowhere: the one before it here is {last}, so \
                 that at least one transaction is missing between them"
            ),
            Some(last) => format!(
                "commit {commit} names {previous} before it, though {last} is between them: not the records of one \
                 slot alone"
            ),
        });
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
