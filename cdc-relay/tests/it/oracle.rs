//! Compares what the relay emitted with a witness: a second slot, which another plugin of the server decodes.
//!
//! The slot is made before the load and read after it. The comparison with the topics and the queue shows:
//!
//! * The relay emitted every committed change, and nothing that was not committed.
//! * The first emissions of a key are in commit order.
//! * Every transaction names the one before it.
//! * At each sample, everything up to the slot's confirmed position was already in the topics and in the queue.

mod across;
mod sample;

use std::collections::{BTreeMap, HashMap};

use cdc_relay::postgres::lsn::Lsn;
use tokio_postgres::Client;

use self::sample::{BARRIER, Sample, Sampler};
use crate::harness::{Harness, connect};
use crate::kafka::{Event, chain, first_emissions, read_from};
use crate::rabbit;

/// Samples of each part that is judged, at least. The first of them may have begun before the part.
const SAMPLES_MIN: usize = 5;

pub struct Oracle {
    work: bool,
    sampler: Sampler,
    wal: DecodedWal,
}

/// The commits that the oracle's slot has decoded so far.
struct DecodedWal {
    slot: String,
    commits: Vec<Commit>,
    /// The end of the last commit.
    end: u64,
}

/// A committed change of `items`.
#[derive(Debug, Clone)]
struct Change {
    id: String,
    owner: String,
    work: bool,
}

#[derive(Debug)]
struct Commit {
    /// The end of the previous commit: this commit's position lies between `start` and `end`.
    start: u64,
    end: u64,
    changes: Vec<Change>,
}

/// The extent of the judged load.
#[derive(Debug)]
pub struct Report {
    pub transactions: usize,
    pub changes: usize,
    /// Events that were emitted again; for the reader of the report.
    #[expect(dead_code, reason = "printed")]
    pub repeats: usize,
    pub dead: usize,
    pub samples: usize,
}

impl Oracle {
    /// Call this when the relay's slot exists and before the load. `work`: the load has work for the queue.
    pub async fn watch(harness: &Harness, work: bool) -> Oracle {
        let slot = format!("{}_oracle", harness.name);
        let make = "select pg_create_logical_replication_slot($1, 'test_decoding')";
        harness.sql.execute(make, &[&slot]).await.expect("the oracle's slot");
        let wal = DecodedWal { slot, commits: Vec::new(), end: 0 };
        Oracle { work, sampler: Sampler::start(harness, work), wal }
    }

    /// Waits until it has as many samples more as it needs. Call this under load, once what is to be sampled has begun.
    pub async fn sampled(&self) {
        self.sampler.more(SAMPLES_MIN).await;
    }

    /// Call this before the test moves or drops the relay's slot.
    pub fn disturb_slot(&self) {
        self.sampler.disturb();
    }

    /// Reads until its slot needs none of the present WAL.
    pub async fn release_wal(&mut self, harness: &Harness) {
        let (now, _) = harness.positions().await;
        let needs = "select (restart_lsn - '0/0')::int8 from pg_replication_slots where slot_name = $1";
        for _ in 0..100 {
            // A slot can restart only where the server has logged the running transactions.
            harness.sql.batch_execute("checkpoint").await.expect("checkpoint");
            self.wal.read(&harness.sql).await;
            let row = harness.sql.query_one(needs, &[&self.wal.slot]).await.expect("the oracle's slot");
            if row.get::<_, i64>(0) as u64 >= now {
                return;
            }
        }
        panic!("the oracle's slot still needs {now:X}");
    }

    /// Waits until everything is confirmed, then judges. The load must have ended.
    pub async fn judge(mut self, harness: &Harness) -> Report {
        harness.confirmed().await;
        self.wal.read(&connect(&harness.url).await).await;
        let (samples, commits) = (self.sampler.stop().await, self.wal.commits);
        let events = read_from(&harness.servers.kafka, &harness.topic());
        let dead = read_from(&harness.servers.kafka, &harness.dead_letter_topic());
        let emitted: BTreeMap<String, Vec<String>> = emitted_ids(&events, &dead);
        assert_same(&committed_ids(&commits), &emitted);
        assert_positions(&commits, &events);
        let all: Vec<Event> = events.iter().chain(&dead).cloned().collect();
        assert_eq!(chain(&all), commits.len(), "transactions in the chain");
        if self.work {
            assert_eq!(queue(harness).await, work(&commits), "the queue, without repeats");
        }
        let nothing = no_expectation(&samples);
        let offsets = first_offsets(&events, &dead, nothing.ends.len());
        assert_confirmed_is_emitted(&expectations(&commits, &offsets, nothing), &samples);
        let changes = commits.iter().map(|commit| commit.changes.len()).sum();
        Report {
            transactions: commits.len(),
            changes,
            repeats: all.len() - changes,
            dead: dead.len(),
            samples: samples.len(),
        }
    }
}

impl Report {
    /// Fails unless the load was large enough and samples were taken meanwhile.
    pub fn expect(&self, transactions: usize) {
        assert!(self.transactions >= transactions, "too little load: {self:?}");
        assert!(self.samples >= SAMPLES_MIN, "too few samples: {self:?}");
    }
}

impl DecodedWal {
    /// Reads the slot to its end, without transactions that changed no published table.
    async fn read(&mut self, sql: &Client) {
        let query = "select (lsn - '0/0')::int8, data from pg_logical_slot_get_changes($1, null, null, 'include-xids', '0')";
        let rows = sql.query(query, &[&self.slot]).await.expect("the oracle's changes");
        let mut changes = Vec::new();
        for row in rows {
            let (lsn, text): (i64, &str) = (row.get(0), row.get(1));
            if let Some(row) = text.strip_prefix("table public.items: ") {
                changes.push(change(row));
            } else if text == "COMMIT" {
                // The position after the commit.
                let (start, end) = (std::mem::replace(&mut self.end, lsn as u64), lsn as u64);
                let changes = std::mem::take(&mut changes);
                if !changes.is_empty() {
                    self.commits.push(Commit { start, end, changes });
                }
            }
        }
    }
}

/// `INSERT: owner[text]:'o1' id[bigint]:7 …`, or `UPDATE: old-key: … new-tuple: …`.
fn change(row: &str) -> Change {
    let new = row.split_once(" new-tuple:").map_or(row, |(_, new)| new);
    let column = |name: &str| {
        let (_, rest) = new.split_once(&format!(" {name}[")).expect("column");
        let (_, value) = rest.split_once("]:").expect("value");
        match value.strip_prefix('\'') {
            Some(text) => text.split('\'').next(),
            None => value.split(' ').next(),
        }
        .expect("text")
        .to_owned()
    };
    let owner = column("owner");
    let id = format!("it/items/{owner}/{}/{}", column("id"), column("version"));
    Change { id, owner, work: column("kind") == "work" }
}

/// The ids of all changes by key, in commit order.
fn committed_ids(commits: &[Commit]) -> BTreeMap<String, Vec<String>> {
    let mut by_key = BTreeMap::<String, Vec<String>>::new();
    for change in commits.iter().flat_map(|commit| &commit.changes) {
        by_key.entry(change.owner.clone()).or_default().push(change.id.clone());
    }
    by_key
}

/// The ids of the events by key, in the order of first emissions; after them those of the dead letters, since a halted
/// key goes on there.
fn emitted_ids(events: &[Event], dead: &[Event]) -> BTreeMap<String, Vec<String>> {
    let ids = |events: &[Event]| events.iter().map(|event| event.header("ce_id").to_owned()).collect();
    let mut by_key: BTreeMap<String, Vec<String>> =
        first_emissions(events).into_iter().map(|(key, events)| (key, ids(&events))).collect();
    for dead_letter in dead {
        let (key, id) = key_and_id(dead_letter);
        let ids = by_key.entry(key).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    by_key
}

fn key_and_id(dead_letter: &Event) -> (String, String) {
    let dead_letter = dead_letter.json();
    let text = |name: &str| dead_letter["row"][name].as_str().expect("a column").to_owned();
    let (owner, id, version) = (text("owner"), text("id"), text("version"));
    let id = format!("it/items/{owner}/{id}/{version}");
    (owner, id)
}

fn assert_same(committed: &BTreeMap<String, Vec<String>>, emitted: &BTreeMap<String, Vec<String>>) {
    for (key, committed) in committed {
        let emitted = emitted.get(key).map(Vec::as_slice).unwrap_or_default();
        let differs = committed.iter().zip(emitted).position(|(committed, emitted)| committed != emitted);
        let at = differs.unwrap_or(committed.len().min(emitted.len()));
        let around = |ids: &[String]| ids[at.saturating_sub(2)..(at + 3).min(ids.len())].to_vec();
        assert!(
            committed == emitted,
            "key {key}: {} committed, {} emitted; from change {at} on: committed {:?}, emitted {:?}",
            committed.len(),
            emitted.len(),
            around(committed),
            around(emitted)
        );
    }
    for key in emitted.keys() {
        assert!(committed.contains_key(key), "key {key} was emitted, and none of its rows was committed");
    }
}

/// Fails unless every event names its transaction.
fn assert_positions(commits: &[Commit], events: &[Event]) {
    let mut by_id = HashMap::new();
    for commit in commits {
        by_id.extend(commit.changes.iter().map(|change| (change.id.as_str(), commit.start..commit.end)));
    }
    for event in events {
        let (id, position) = (event.header("ce_id"), position(event).expect("a position"));
        assert!(by_id[id].contains(&position), "{id} has position {position:X}, which is not its commit");
    }
}

/// The commit of an event; none if a snapshot, resnapshot, release or replay emitted it.
fn position(event: &Event) -> Option<u64> {
    let position = event.header("pg_position").split(';').next().filter(|text| !text.is_empty());
    position.map(|text| text.parse::<Lsn>().expect("a position").0)
}

/// The least content of the sinks once the slot is confirmed up to a position.
#[derive(Clone)]
struct Expectation {
    confirmed: u64,
    /// The least end of each partition of the topic, and of the dead-letter topic.
    ends: Vec<i64>,
    queued: u32,
}

/// Partition and offset of the first emission of each change.
type Offsets = HashMap<String, (usize, i64)>;

fn first_offsets(events: &[Event], dead: &[Event], partitions: usize) -> Offsets {
    let mut first = HashMap::new();
    for event in events {
        first.entry(event.header("ce_id").to_owned()).or_insert((event.partition as usize, event.offset));
    }
    for dead_letter in dead {
        first.entry(key_and_id(dead_letter).1).or_insert((partitions - 1, dead_letter.offset));
    }
    first
}

/// The expectations after each commit, beginning with `before`.
fn expectations(commits: &[Commit], offsets: &Offsets, before: Expectation) -> Vec<Expectation> {
    let mut expectations = vec![before];
    for commit in commits {
        let mut expectation =
            Expectation { confirmed: commit.end, ..expectations[expectations.len() - 1].clone() };
        for change in &commit.changes {
            // A change that was never emitted has no offset: no end is large enough.
            let (partition, offset) = offsets.get(&change.id).copied().unwrap_or((0, i64::MAX - 1));
            expectation.ends[partition] = expectation.ends[partition].max(offset + 1);
            expectation.queued += u32::from(change.work);
        }
        expectations.push(expectation);
    }
    expectations
}

fn assert_confirmed_is_emitted<'a>(
    expectations: &[Expectation],
    samples: impl IntoIterator<Item = &'a Sample>,
) {
    for sample in samples {
        let count = expectations.partition_point(|expectation| expectation.confirmed <= sample.confirmed);
        let Some(Expectation { confirmed, ends, queued }) =
            count.checked_sub(1).map(|last| &expectations[last])
        else {
            continue;
        };
        let emitted = sample.ends.iter().zip(ends).all(|(end, expectation)| end >= expectation);
        assert!(emitted, "confirmed past {confirmed:X}, when the topics had {:?} of {ends:?}", sample.ends);
        let found = sample.queued.unwrap_or(*queued);
        assert!(found >= *queued, "confirmed past {confirmed:X}, when the queue had {found} of {queued}");
    }
}

/// The expectation before any commit. The dead-letter topic counts as the last partition.
fn no_expectation(samples: &[Sample]) -> Expectation {
    let partitions = samples.first().map_or(1, |sample| sample.ends.len());
    Expectation { confirmed: 0, ends: vec![0; partitions], queued: 0 }
}

/// The ids of the changes that are work.
fn work(commits: &[Commit]) -> Vec<String> {
    let changes = commits.iter().flat_map(|commit| &commit.changes);
    changes.filter(|change| change.work).map(|change| change.id.clone()).collect()
}

/// The messages in the queue, without repeats.
async fn queue(harness: &Harness) -> Vec<String> {
    let (_connection, channel) = rabbit::attempt(&harness.servers.amqp).await.expect("RabbitMQ");
    let mut queued = rabbit::drain_all(&channel, &harness.queue()).await;
    queued.retain(|id| id != BARRIER);
    queued
}
