//! Reads all partitions of the topics once.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use brokers::Brokers;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::Verdict;
use crate::checkpoint::chain::{Chain, ChainPosition};
use crate::postgres::lsn::Lsn;
use crate::routes::Routes;
use crate::routes::destinations::Destinations;
use crate::sinks::kafka::client_config;

const BROKER_TIMEOUT: Duration = Duration::from_secs(15);
/// After so long without a record, the broker is asked for the position.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);
/// A running relay may still have a record in flight to one partition while later ones are in another. After this time the
/// partitions are read once more.
const SETTLE_INTERVAL: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    /// The topic's records have no CloudEvents source; their body names the source.
    pub dead_letters: bool,
}

struct Partition {
    topic: usize,
    number: i32,
    /// The offset of the next record.
    next: i64,
    end: i64,
    /// The partition's first records are gone, or were not requested.
    cut: bool,
}

#[derive(Default)]
struct SourceChain {
    chain: Chain,
    re_emitted: u64,
}

pub struct Reading {
    consumer: Rc<BaseConsumer>,
    topics: Vec<Topic>,
    partitions: Vec<Partition>,
    /// The partition's index by topic and number.
    index: BTreeMap<(usize, i32), usize>,
    sources: BTreeMap<String, SourceChain>,
    /// By source: the newest commit at the first reading of the ends.
    newest: BTreeMap<String, Lsn>,
    records: u64,
    /// Dead letters of no source in the routes file.
    unknown: u64,
    notes: Vec<String>,
}

impl Reading {
    /// Queries the beginnings and ends of the partitions. A missing topic has no records.
    pub fn connect(
        brokers: &Brokers,
        routes: &Routes,
        mut topics: Vec<Topic>,
        from: Option<Timestamp>,
    ) -> Result<Reading> {
        let consumer: BaseConsumer = client_config(brokers, routes)
            .set("group.id", "cdc-relay-verify")
            .set("enable.auto.commit", "false")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("fetch.message.max.bytes", "4194304")
            // Per partition; what is read and not yet looked at.
            .set("queued.max.messages.kbytes", "8192")
            .create()
            .context("no Kafka consumer")?;
        let metadata = consumer.fetch_metadata(None, BROKER_TIMEOUT).context("the brokers do not answer")?;
        // Topics named by values or by dropped tables. A topic of somebody else has no record of the relay.
        for name in Destinations::of(routes).among(metadata.topics().iter().map(|topic| topic.name())) {
            if !routes.is_compacted(&name) && !topics.iter().any(|topic| topic.name == name) {
                topics.push(Topic { name, dead_letters: false });
            }
        }
        let mut reading = Reading {
            consumer: Rc::new(consumer),
            topics,
            partitions: Vec::new(),
            index: BTreeMap::new(),
            sources: BTreeMap::new(),
            newest: BTreeMap::new(),
            records: 0,
            unknown: 0,
            notes: Vec::new(),
        };
        for topic in routes.topics.iter().filter(|topic| topic.is_compacted()) {
            let name = topic.name.get_ref();
            reading
                .notes
                .push(format!("{name} is compacted: its records have no position and were not read"));
        }
        for (topic, wanted) in reading.topics.iter().enumerate() {
            let Some(known) = metadata.topics().iter().find(|known| known.name() == wanted.name) else {
                reading.notes.push(format!("topic {} does not exist", wanted.name));
                continue;
            };
            for number in known.partitions().iter().map(|partition| partition.id()) {
                let (low, end) = reading.consumer.fetch_watermarks(&wanted.name, number, BROKER_TIMEOUT)?;
                reading.index.insert((topic, number), reading.partitions.len());
                reading.partitions.push(Partition { topic, number, next: low, end, cut: low > 0 });
            }
        }
        if let Some(from) = from {
            reading.skip(from)?;
        }
        Ok(reading)
    }

    /// Seeks the first record of that time or later.
    fn skip(&mut self, from: Timestamp) -> Result<()> {
        let mut times = TopicPartitionList::new();
        for partition in &self.partitions {
            let time = Offset::Offset(from.as_millisecond());
            times.add_partition_offset(&self.topics[partition.topic].name, partition.number, time)?;
        }
        let found = self.consumer.offsets_for_times(times, BROKER_TIMEOUT).context("offsets by time")?;
        for partition in &mut self.partitions {
            let name = &self.topics[partition.topic].name;
            let offset = found.find_partition(name, partition.number).map(|found| found.offset());
            let next = match offset {
                Some(Offset::Offset(offset)) => offset.max(partition.next),
                _ => partition.end,
            };
            partition.cut |= next > partition.next;
            partition.next = next;
        }
        Ok(())
    }

    /// Reads to the present ends; then once more, for records that were in flight meanwhile.
    pub fn all(&mut self, sources: Option<&BTreeMap<String, String>>) -> Result<()> {
        self.read_to_ends(sources)?;
        self.newest = self
            .sources
            .iter()
            .map(|(name, source_chain)| (name.clone(), source_chain.chain.newest()))
            .collect();
        std::thread::sleep(SETTLE_INTERVAL);
        for partition in &mut self.partitions {
            let name = &self.topics[partition.topic].name;
            (_, partition.end) = self.consumer.fetch_watermarks(name, partition.number, BROKER_TIMEOUT)?;
        }
        self.read_to_ends(sources)
    }

    fn read_to_ends(&mut self, sources: Option<&BTreeMap<String, String>>) -> Result<()> {
        let mut wanted = TopicPartitionList::new();
        for partition in self.partitions.iter().filter(|partition| partition.next < partition.end) {
            let name = &self.topics[partition.topic].name;
            wanted.add_partition_offset(name, partition.number, Offset::Offset(partition.next))?;
        }
        let total: i64 =
            self.partitions.iter().map(|partition| (partition.end - partition.next).max(0)).sum();
        let mut left = wanted.count();
        let by_name: BTreeMap<String, usize> =
            self.topics.iter().enumerate().map(|(index, topic)| (topic.name.clone(), index)).collect();
        let consumer = Rc::clone(&self.consumer);
        consumer.assign(&wanted)?;
        let progress = Progress::new(total);
        let mut last_received_at = Instant::now();
        while left > 0 {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    last_received_at = Instant::now();
                    let topic = by_name.get(message.topic()).copied().context("a record of another topic")?;
                    let index =
                        self.index.get(&(topic, message.partition())).copied().context("partition")?;
                    left -= usize::from(self.record(index, &message, sources));
                    progress.show(self.records);
                }
                Some(Err(error)) => tracing::warn!(%error, "a read of the topics failed and is repeated"),
                None if last_received_at.elapsed() > QUIET_INTERVAL => left -= self.passed(&consumer)?,
                None => {}
            }
            anyhow::ensure!(
                last_received_at.elapsed() < BROKER_TIMEOUT,
                "the topics cannot be read to their ends"
            );
        }
        progress.done();
        consumer.unassign()?;
        Ok(())
    }

    /// Takes a record. Returns whether it is the last of its partition.
    fn record(
        &mut self,
        index: usize,
        message: &BorrowedMessage<'_>,
        sources: Option<&BTreeMap<String, String>>,
    ) -> bool {
        let Some(partition) = self.partitions.get_mut(index) else { return false };
        let before = partition.next < partition.end;
        partition.next = message.offset() + 1;
        let ended = before && partition.next >= partition.end;
        let dead_letters = self.topics.get(partition.topic).is_some_and(|topic| topic.dead_letters);
        self.records += 1;
        let header = |name: &str| {
            let headers = message.headers()?;
            headers.iter().find(|header| header.key == name).and_then(|header| header.value)
        };
        let position = header("pg_position");
        let source = if dead_letters {
            position
                .and_then(|_| message.payload())
                .and_then(source_of)
                .and_then(|name| sources?.get(&name).cloned())
        } else {
            header("ce_source").map(|source| String::from_utf8_lossy(source).into_owned())
        };
        // Other sources of the file are not verified.
        let is_verified =
            |source: &String| sources.is_none_or(|sources| sources.values().any(|known| known == source));
        match (source.filter(is_verified), RecordPosition::of(position)) {
            (Some(source), position) => self.take(&source, index, position),
            (None, RecordPosition::None) => {}
            (None, _) if sources.is_none() => self.unknown += 1,
            (None, _) => {}
        }
        if ended {
            self.sources.values_mut().for_each(|source_chain| source_chain.chain.end(index));
        }
        ended
    }

    fn take(&mut self, source: &str, index: usize, position: RecordPosition) {
        if !self.sources.contains_key(source) {
            let mut chain = Chain::new(self.partitions.iter().map(|partition| partition.cut));
            let ended = self.partitions.iter().enumerate().filter(|(_, p)| p.next >= p.end);
            ended.for_each(|(index, _)| chain.end(index));
            self.sources.insert(source.to_owned(), SourceChain { chain, re_emitted: 0 });
        }
        let Some(source_chain) = self.sources.get_mut(source) else { return };
        match position {
            RecordPosition::Chain(position) => source_chain.chain.take(index, position),
            RecordPosition::Unreadable => self.unknown += 1,
            RecordPosition::None => source_chain.re_emitted += 1,
        }
    }

    /// Partitions without a last record, because of compaction or a transaction: the consumer is past it.
    fn passed(&mut self, consumer: &BaseConsumer) -> Result<usize> {
        let at = consumer.position()?;
        let mut ended = 0;
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            let name = &self.topics[partition.topic].name;
            let found = at.find_partition(name, partition.number).map(|found| found.offset());
            if let Some(Offset::Offset(offset)) = found
                && partition.next < partition.end
                && offset >= partition.end
            {
                partition.next = offset;
                ended += 1;
                self.sources.values_mut().for_each(|source_chain| source_chain.chain.end(index));
            }
        }
        Ok(ended)
    }

    /// The newest commit of this source's records; 0/0 without one.
    pub fn newest(&self, source: &str) -> Lsn {
        self.sources.get(source).map_or(Lsn::ZERO, |source_chain| source_chain.chain.newest())
    }

    /// Returns the number of records, the verdict of each source, and notes.
    pub fn judge(self) -> (u64, Vec<Verdict>, Vec<String>) {
        let mut notes = self.notes;
        if self.unknown > 0 {
            notes.push(format!(
                "{} records have a position that nobody can be named for (dead letters need a routes file)",
                self.unknown
            ));
        }
        let newest = self.newest;
        let verdict = |(source, source_chain): (String, SourceChain)| {
            let findings = source_chain.chain.finish(newest.get(&source).copied().unwrap_or_default());
            let whole = findings.is_whole();
            Verdict { whole, re_emitted: source_chain.re_emitted, findings, ..Verdict::of(source) }
        };
        (self.records, self.sources.into_iter().map(verdict).collect(), notes)
    }
}

/// The position of a record, as its header says.
#[derive(Clone, Copy)]
enum RecordPosition {
    Chain(ChainPosition),
    Unreadable,
    /// The row was emitted again.
    None,
}

impl RecordPosition {
    fn of(header: Option<&[u8]>) -> RecordPosition {
        match header.map(ChainPosition::parse) {
            Some(Some(position)) => RecordPosition::Chain(position),
            Some(None) => RecordPosition::Unreadable,
            None => RecordPosition::None,
        }
    }
}

/// The source that a dead letter names.
fn source_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct DeadLetter {
        source: String,
    }
    serde_json::from_slice::<DeadLetter>(body).ok().map(|dead_letter| dead_letter.source)
}

/// Shows the progress on a terminal, nothing elsewhere.
struct Progress {
    total: i64,
    shown: bool,
    every: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(total: i64) -> Progress {
        let shown = std::io::stderr().is_terminal() && total > 100_000;
        Progress { total, shown, every: std::cell::Cell::new(Instant::now()) }
    }

    fn show(&self, records: u64) {
        if self.shown && self.every.get().elapsed() > Duration::from_millis(250) {
            eprint!("\r{records} of {} records", self.total);
            self.every.set(Instant::now());
        }
    }

    fn done(&self) {
        if self.shown {
            eprint!("\r\u{1b}[K");
        }
    }
}
