//! Compares what the relay emitted with the witness where a slot was lost under load and the source was resnapshot.
//!
//! The changes before the loss and those since the new slot are judged as without a loss. Between them the relay promises
//! every row as of the new slot, and no change. The comparison shows:
//!
//! * The events before the loss are a prefix of the committed changes, by key and in order.
//! * Every row was emitted as of the new slot's beginning, once, and before the new slot was confirmed any further.
//! * Every change committed since was emitted, in order, in a chain of its own, and nothing that was not committed.
//! * No row ever goes back: its first emissions are in the order of its changes, over all three.
//! * Until somebody disturbed the slot, everything up to its confirmed position was in the topics and in the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cdc_relay::postgres::lsn::Lsn;

use super::{
    Commit, Expectation, Oracle, SAMPLES_MIN, assert_confirmed_is_emitted, assert_positions, assert_same,
    committed_ids, emitted_ids, expectations, first_offsets, no_expectation, position, queue, work,
};
use crate::harness::{Harness, connect};
use crate::kafka::{Event, chain, read_from};

/// The extent of the judged load.
#[derive(Debug)]
pub struct Report {
    /// Transactions before the loss that were emitted, those that were not, and those since the new slot began.
    pub before: usize,
    pub lost: usize,
    pub since: usize,
    /// The number of samples before the loss and after the new slot went on.
    pub samples: (usize, usize),
}

impl Report {
    /// Fails unless the load was large enough and samples were taken meanwhile.
    pub fn expect(&self, transactions: usize) {
        let Report { before, lost, since, .. } = self;
        assert!(
            [before, lost, since].iter().all(|count| **count >= transactions),
            "too little load: {self:?}"
        );
        assert!(self.samples.0 >= SAMPLES_MIN && self.samples.1 >= 3, "too few samples: {self:?}");
    }
}

impl Oracle {
    /// Waits until everything is confirmed, then judges. The load must have ended. `begins_at`: the new slot's first position.
    pub async fn judge_across(mut self, harness: &Harness, begins_at: Lsn) -> Report {
        harness.confirmed().await;
        self.wal.read(&connect(&harness.url).await).await;
        let samples = self.sampler.stop().await;
        let commits = self.wal.commits;
        let (old, new) = commits.split_at(commits.partition_point(|commit| commit.end <= begins_at.0));
        let events = read_from(&harness.servers.kafka, &harness.topic());
        let dead = read_from(&harness.servers.kafka, &harness.dead_letter_topic());
        assert!(dead.is_empty(), "{} dead letters", dead.len());
        let (rows, streamed): (Vec<Event>, Vec<Event>) =
            events.iter().cloned().partition(|event| position(event).is_none());
        let (first, second): (Vec<Event>, Vec<Event>) =
            streamed.iter().cloned().partition(|event| position(event) < Some(begins_at.0));

        assert_beginning(&committed_ids(old), &emitted_ids(&first, &[]));
        assert_same(&committed_ids(new), &emitted_ids(&second, &[]));
        assert_positions(&commits, &streamed);
        let before = chain(&first);
        assert_eq!(chain(&second), new.len(), "transactions in the second chain");
        let current = rows_of(old);
        assert_rows(&current, &rows);
        assert_never_back(&commits, &events);

        let nothing = no_expectation(&samples);
        let first = first_offsets(&first, &[], nothing.ends.len());
        let undisturbed = samples.iter().filter(|sample| sample.undisturbed);
        assert_confirmed_is_emitted(&expectations(old, &first, nothing.clone()), undisturbed.clone());
        let confirmed = undisturbed.clone().map(|sample| sample.confirmed).max().unwrap_or_default();
        let safe = &old[..old.partition_point(|commit| commit.end <= confirmed)];
        let queued = work(safe).len() + current.values().filter(|current| current.work).count();
        let re_emitted = Expectation {
            confirmed: begins_at.0 + 1,
            ends: ends(&rows, nothing.ends),
            queued: queued as u32,
        };
        let second = first_offsets(&second, &[], re_emitted.ends.len());
        let later = samples.iter().filter(|sample| sample.confirmed > begins_at.0);
        assert_confirmed_is_emitted(&expectations(new, &second, re_emitted), later.clone());
        if self.work {
            assert_queue(&queue(harness).await, (old, &current, new));
        }
        let samples = (undisturbed.count(), later.count());
        Report { before, lost: old.len() - before, since: new.len(), samples }
    }
}

/// The last change of a row.
struct Current {
    id: String,
    work: bool,
}

/// The row of a change: its id without the version.
fn row(id: &str) -> &str {
    id.rsplit_once('/').expect("an id with a version").0
}

/// The state of each row after these commits.
fn rows_of(commits: &[Commit]) -> HashMap<&str, Current> {
    let mut rows = HashMap::new();
    for change in commits.iter().flat_map(|commit| &commit.changes) {
        rows.insert(row(&change.id), Current { id: change.id.clone(), work: change.work });
    }
    rows
}

fn assert_beginning(committed: &BTreeMap<String, Vec<String>>, emitted: &BTreeMap<String, Vec<String>>) {
    for (key, emitted) in emitted {
        let committed = committed.get(key).map(Vec::as_slice).unwrap_or_default();
        let differs = committed.iter().zip(emitted).position(|(committed, emitted)| committed != emitted);
        assert!(
            committed.starts_with(emitted),
            "key {key}: the events before the loss differ from change {differs:?} on"
        );
    }
}

fn assert_rows(current: &HashMap<&str, Current>, emitted: &[Event]) {
    let emitted: Vec<&str> = emitted.iter().map(|event| event.header("ce_id")).collect();
    let distinct: BTreeSet<&str> = emitted.iter().copied().collect();
    assert_eq!(distinct.len(), emitted.len(), "rows re-emitted twice");
    let current: BTreeSet<&str> = current.values().map(|current| current.id.as_str()).collect();
    let missing: Vec<_> = current.difference(&distinct).take(3).collect();
    let more: Vec<_> = distinct.difference(&current).take(3).collect();
    assert!(current == distinct, "as of the new slot: not emitted {missing:?}, emitted instead {more:?}");
}

fn assert_never_back(commits: &[Commit], events: &[Event]) {
    let changes = commits.iter().flat_map(|commit| &commit.changes);
    let order: HashMap<&str, usize> =
        changes.enumerate().map(|(index, change)| (change.id.as_str(), index)).collect();
    let (mut known, mut last) = (BTreeSet::new(), HashMap::new());
    for event in events {
        let id = event.header("ce_id");
        if known.insert(id) {
            let now = order.get(id).unwrap_or_else(|| panic!("{id} was emitted, and never committed"));
            let before = last.insert(row(id), now);
            assert!(before < Some(now), "{id} was emitted after a later change of its row");
        }
    }
}

/// The ends of the partitions once they hold these events.
fn ends(events: &[Event], mut ends: Vec<i64>) -> Vec<i64> {
    for event in events {
        let end = &mut ends[event.partition as usize];
        *end = (*end).max(event.offset + 1);
    }
    ends
}

/// First a beginning of the work before the loss, then rows that are work, in any order, then the work since.
fn assert_queue(queued: &[String], (old, current, new): (&[Commit], &HashMap<&str, Current>, &[Commit])) {
    let old = work(old);
    let emitted = queued.iter().zip(&old).take_while(|(queued, work)| queued == work).count();
    let (before, rest) = queued.split_at(emitted);
    let before: BTreeSet<&String> = before.iter().collect();
    let rows: BTreeSet<&String> = current.values().filter(|row| row.work).map(|row| &row.id).collect();
    let owed: BTreeSet<&String> = rows.difference(&before).copied().collect();
    let (again, since) = rest.split_at(owed.len().min(rest.len()));
    assert_eq!(again.iter().collect::<BTreeSet<_>>(), owed, "the work among the rows");
    assert_eq!(since, work(new), "the work since, without repeats");
}
