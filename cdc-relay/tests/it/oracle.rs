//! What the relay has to have told, from a witness of its own: a second slot, made before the load and read after it, as
//! another plugin of the server decodes it. Held against the topics and the queue it shows that
//!
//! * every committed change was told, and nothing that was not committed;
//! * the first tellings of a key stand in commit order;
//! * every transaction names the one before it;
//! * whenever somebody looked, what the relay's slot was confirmed to had already been in the topics, and in the queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdc_relay::lsn::Lsn;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::kafka::{Ends, Event, chain, first_tellings, read_from};
use crate::rabbit;
use crate::rig::{Rig, Servers, attempt, connect};

/// As long as one look may take.
const SECOND: Duration = Duration::from_secs(1);

pub struct Oracle {
    slot: String,
    url: String,
    work: bool,
    stop: Arc<AtomicBool>,
    sampler: JoinHandle<Vec<Sample>>,
}

/// What was looked up, in this order.
struct Sample {
    confirmed: u64,
    /// Where the topic's partitions and the dead letters end.
    ends: Vec<i64>,
    queued: Option<u32>,
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
    /// The end of the commit before it: its own lies between the two.
    start: u64,
    end: u64,
    changes: Vec<Change>,
}

/// How much there was to judge.
#[derive(Debug)]
pub struct Report {
    pub transactions: usize,
    pub changes: usize,
    /// Told more often than once; for whoever reads the report.
    #[expect(dead_code, reason = "printed")]
    pub repeats: usize,
    pub dead: usize,
    pub samples: usize,
}

impl Oracle {
    /// Call it when the relay's slot exists and before the load. `work`: the load has work for the queue.
    pub async fn watch(rig: &Rig, work: bool) -> Oracle {
        let slot = format!("{}_oracle", rig.name);
        let make = "select pg_create_logical_replication_slot($1, 'test_decoding')";
        rig.sql.execute(make, &[&slot]).await.expect("the oracle's slot");
        let stop = Arc::new(AtomicBool::new(false));
        let place = Place {
            url: rig.url.clone(),
            slot: rig.name.clone(),
            servers: rig.servers.clone(),
            topics: [rig.topic(), rig.dead_letters()],
            queue: work.then(|| rig.queue()),
        };
        let sampler = tokio::spawn(sample(place, Arc::clone(&stop)));
        Oracle { slot, url: rig.url.clone(), work, stop, sampler }
    }

    /// Waits until everything is confirmed, then judges. The load must have ended.
    pub async fn judge(self, rig: &Rig) -> Report {
        rig.confirmed().await;
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.sampler.await.expect("samples");
        let commits = commits(&connect(&self.url).await, &self.slot).await;
        let events = read_from(&rig.servers.kafka, &rig.topic());
        let dead = read_from(&rig.servers.kafka, &rig.dead_letters());
        let told: BTreeMap<String, Vec<String>> = told(&events, &dead);
        assert_same(&committed(&commits), &told);
        assert_positions(&commits, &events);
        let all: Vec<Event> = events.iter().chain(&dead).cloned().collect();
        assert_eq!(chain(&all), commits.len(), "transactions in the chain");
        if self.work {
            assert_queue(rig, &commits).await;
        }
        assert_confirmed_is_told(&commits, &samples, (&events, &dead));
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
    /// That the test was one: enough went through, and somebody looked meanwhile.
    pub fn expect(&self, transactions: usize) {
        assert!(self.transactions >= transactions, "too little load: {self:?}");
        assert!(self.samples >= 5, "nobody looked: {self:?}");
    }
}

/// Where samples are taken.
struct Place {
    url: String,
    slot: String,
    servers: Servers,
    topics: [String; 2],
    queue: Option<String>,
}

/// The slot first: what is in the topics afterwards may be more than what it was confirmed for, never less.
async fn sample(place: Place, stop: Arc<AtomicBool>) -> Vec<Sample> {
    let ends = Arc::new(Ends::of(&place.servers.kafka, &place.topics));
    let (mut samples, mut sql, mut queue) = (Vec::new(), None, Queue::default());
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let Some(client) = sql.as_ref().filter(|client: &&Client| !client.is_closed()) else {
            sql = attempt(&place.url).await;
            continue;
        };
        let query =
            "select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = $1";
        let Ok(Some(row)) = client.query_opt(query, &[&place.slot]).await else { continue };
        let Some(confirmed) = row.get::<_, Option<i64>>(0) else { continue };
        let now = Arc::clone(&ends);
        let Some(ends) = tokio::task::spawn_blocking(move || now.read()).await.expect("ends") else {
            continue;
        };
        let queued = match &place.queue {
            Some(name) => match queue.count(&place.servers.amqp, name).await {
                Some(count) => Some(count),
                None => continue,
            },
            None => None,
        };
        samples.push(Sample { confirmed: confirmed as u64, ends, queued });
    }
    samples
}

/// What the oracle itself puts into the queue.
const BARRIER: &str = "barrier";

/// A connection over which the queue can be counted.
struct Counter {
    connection: lapin::Connection,
    channel: Channel,
}

impl Counter {
    /// A quorum queue answers a passive declare from the state it has applied, which after a start of the broker is
    /// less than its log has. What is confirmed by this start of it is behind all of that in the log.
    async fn connect(amqp: &str, queue: &str) -> Option<Counter> {
        let (connection, channel) = rabbit::attempt(amqp).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
        let properties = BasicProperties::default().with_message_id(BARRIER.into()).with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let told = channel.basic_publish("".into(), queue.into(), options, b"", properties).await.ok()?;
        told.await.ok()?.is_ack().then_some(Counter { connection, channel })
    }

    /// How many messages wait, barriers included; 0 when the queue took more than 250 ms to answer.
    async fn count(&self, queue: &str) -> Option<u32> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declare = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        Some(timeout(SECOND, declare).await.ok()?.ok()?.message_count())
    }
}

/// The queue, as it was seen over one connection after the other.
#[derive(Default)]
struct Queue {
    counter: Option<Counter>,
    barriers: u32,
}

impl Queue {
    /// How many messages of the relay wait, unless that cannot be said.
    async fn count(&mut self, amqp: &str, queue: &str) -> Option<u32> {
        if self.counter.as_ref().is_none_or(|counter| !counter.connection.status().connected()) {
            self.counter = timeout(SECOND, Counter::connect(amqp, queue)).await.ok().flatten();
            self.barriers += u32::from(self.counter.is_some());
        }
        let count = self.counter.as_ref()?.count(queue).await;
        if count.is_none() {
            self.counter = None;
        }
        count?.checked_sub(self.barriers)
    }
}

/// Reads the oracle's slot to its end. Transactions that changed nothing published are left out.
async fn commits(sql: &Client, slot: &str) -> Vec<Commit> {
    let query = "select (lsn - '0/0')::int8, data from pg_logical_slot_get_changes($1, null, null, 'include-xids', '0')";
    let rows = sql.query(query, &[&slot]).await.expect("the oracle's changes");
    let (mut commits, mut changes, mut start) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let (lsn, text): (i64, &str) = (row.get(0), row.get(1));
        if let Some(row) = text.strip_prefix("table public.items: ") {
            changes.push(change(row));
        } else if text == "COMMIT" {
            // The position behind the commit.
            let (end, changes) = (lsn as u64, std::mem::take(&mut changes));
            if !changes.is_empty() {
                commits.push(Commit { start, end, changes });
            }
            start = end;
        }
    }
    commits
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
fn committed(commits: &[Commit]) -> BTreeMap<String, Vec<String>> {
    let mut by_key = BTreeMap::<String, Vec<String>>::new();
    for change in commits.iter().flat_map(|commit| &commit.changes) {
        by_key.entry(change.owner.clone()).or_default().push(change.id.clone());
    }
    by_key
}

/// The ids of what was told, by key, in the order of first tellings; after them those of the dead letters, since a
/// key that has one goes on there.
fn told(events: &[Event], dead: &[Event]) -> BTreeMap<String, Vec<String>> {
    let ids = |events: &[Event]| events.iter().map(|event| event.header("ce_id").to_owned()).collect();
    let mut by_key: BTreeMap<String, Vec<String>> =
        first_tellings(events).into_iter().map(|(key, events)| (key, ids(&events))).collect();
    for letter in dead {
        let (key, id) = buried(letter);
        let ids = by_key.entry(key).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    by_key
}

fn buried(letter: &Event) -> (String, String) {
    let letter = letter.json();
    let text = |name: &str| letter["row"][name].as_str().expect("a column").to_owned();
    let (owner, id, version) = (text("owner"), text("id"), text("version"));
    let id = format!("it/items/{owner}/{id}/{version}");
    (owner, id)
}

fn assert_same(committed: &BTreeMap<String, Vec<String>>, told: &BTreeMap<String, Vec<String>>) {
    for (key, committed) in committed {
        let told = told.get(key).map(Vec::as_slice).unwrap_or_default();
        let differs = committed.iter().zip(told).position(|(committed, told)| committed != told);
        let at = differs.unwrap_or(committed.len().min(told.len()));
        let around = |ids: &[String]| ids[at.saturating_sub(2)..(at + 3).min(ids.len())].to_vec();
        assert!(
            committed == told,
            "key {key}: {} committed, {} told; from change {at} on: committed {:?}, told {:?}",
            committed.len(),
            told.len(),
            around(committed),
            around(told)
        );
    }
    for key in told.keys() {
        assert!(committed.contains_key(key), "key {key} was told, and nothing of it was committed");
    }
}

/// Every telling names the transaction it is from.
fn assert_positions(commits: &[Commit], events: &[Event]) {
    let mut by_id = HashMap::new();
    for commit in commits {
        by_id.extend(commit.changes.iter().map(|change| (change.id.as_str(), commit.start..commit.end)));
    }
    for event in events {
        let (id, position) = (event.header("ce_id"), event.header("pg_position"));
        let lsn = position.split(';').next().and_then(|lsn| lsn.parse::<Lsn>().ok()).expect("a position");
        assert!(by_id[id].contains(&lsn.0), "{id} is told as of {position}");
    }
}

fn assert_confirmed_is_told(commits: &[Commit], samples: &[Sample], (events, dead): (&[Event], &[Event])) {
    let mut first = HashMap::new();
    for event in events {
        first.entry(event.header("ce_id").to_owned()).or_insert((event.partition as usize, event.offset));
    }
    let partitions = samples.iter().map(|sample| sample.ends.len()).max().unwrap_or(1);
    for letter in dead {
        first.entry(buried(letter).1).or_insert((partitions - 1, letter.offset));
    }
    // What has to be there once the slot is confirmed past each commit.
    let (mut needed, mut work) = (vec![0; partitions], 0);
    let mut after: Vec<(u64, Vec<i64>, u32)> = Vec::new();
    for commit in commits {
        for change in &commit.changes {
            let (partition, offset) = first[&change.id];
            needed[partition] = needed[partition].max(offset + 1);
            work += u32::from(change.work);
        }
        after.push((commit.end, needed.clone(), work));
    }
    for sample in samples {
        let count = after.partition_point(|(end, ..)| *end <= sample.confirmed);
        let Some((end, needed, work)) = count.checked_sub(1).map(|index| &after[index]) else { continue };
        let told = sample.ends.iter().zip(needed).all(|(end, needed)| end >= needed);
        assert!(told, "confirmed past {end:X}, when the topics had {:?} of {needed:?}", sample.ends);
        let queued = sample.queued.unwrap_or(*work);
        assert!(queued >= *work, "confirmed past {end:X}, when the queue had {queued} of {work}");
    }
}

async fn assert_queue(rig: &Rig, commits: &[Commit]) {
    let changes = commits.iter().flat_map(|commit| &commit.changes);
    let work: Vec<String> = changes.filter(|change| change.work).map(|change| change.id.clone()).collect();
    let (_connection, channel) = rabbit::attempt(&rig.servers.amqp).await.expect("RabbitMQ");
    let mut queued = rabbit::drain_all(&channel, &rig.queue()).await;
    queued.retain(|id| id != BARRIER);
    assert_eq!(queued, work, "the queue, without repeats");
}
