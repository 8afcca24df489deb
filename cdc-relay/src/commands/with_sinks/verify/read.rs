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

use super::Verdict;
use crate::checkpoint::chain::{Chain, ChainPosition};
use crate::checkpoint::chain_name::ChainName;
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

struct Partition {
    topic: usize,
    number: i32,
    /// The offset of the next record.
    next: i64,
    end: i64,
    /// The partition's first records are gone, or were not requested.
    cut: bool,
}

/// The chains to verify.
#[derive(Debug, Clone)]
pub enum Wanted {
    All,
    /// Those of the sources of a routes file: `ce_source` by name. Chains of sources that it listed earlier count, if a listed
    /// source has their `ce_source`.
    Listed(BTreeMap<String, String>),
    /// Those of one source.
    One(String),
}

impl Wanted {
    /// Whether a chain is wanted. `source` is the `ce_source` of its events; dead letters have none.
    fn has(&self, name: &ChainName, source: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Listed(sources) => {
                name.source().is_some_and(|name| sources.contains_key(name))
                    || source.is_some_and(|source| sources.values().any(|listed| listed == source))
            }
            Self::One(source) => name.source() == Some(source),
        }
    }
}

/// What was read of one chain.
struct ReadChain {
    /// `ce_source`, as soon as an event has come.
    source: Option<String>,
    chain: Chain,
    re_emitted: u64,
}

pub struct Reading {
    consumer: Rc<BaseConsumer>,
    topics: Vec<String>,
    partitions: Vec<Partition>,
    /// The partition's index by topic and number.
    index: BTreeMap<(usize, i32), usize>,
    chains: BTreeMap<ChainName, ReadChain>,
    /// By chain: the newest commit at the first reading of the ends.
    newest: BTreeMap<ChainName, Lsn>,
    records: u64,
    /// Records whose position is not readable, or of no chain.
    unknown: u64,
    notes: Vec<String>,
}

impl Reading {
    /// Queries the beginnings and ends of the partitions. A missing topic has no records.
    pub fn connect(
        brokers: &Brokers,
        routes: &Routes,
        mut topics: Vec<String>,
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
            if !routes.is_compacted(&name) && !topics.contains(&name) {
                topics.push(name);
            }
        }
        let mut reading = Reading {
            consumer: Rc::new(consumer),
            topics,
            partitions: Vec::new(),
            index: BTreeMap::new(),
            chains: BTreeMap::new(),
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
            let Some(known) = metadata.topics().iter().find(|known| known.name() == *wanted) else {
                reading.notes.push(format!("topic {wanted} does not exist"));
                continue;
            };
            for number in known.partitions().iter().map(|partition| partition.id()) {
                let (low, end) = reading.consumer.fetch_watermarks(wanted, number, BROKER_TIMEOUT)?;
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
            times.add_partition_offset(&self.topics[partition.topic], partition.number, time)?;
        }
        let found = self.consumer.offsets_for_times(times, BROKER_TIMEOUT).context("offsets by time")?;
        for partition in &mut self.partitions {
            let name = &self.topics[partition.topic];
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
    pub fn all(&mut self, wanted: &Wanted) -> Result<()> {
        self.read_to_ends(wanted)?;
        self.newest = self.chains.iter().map(|(name, read)| (name.clone(), read.chain.newest())).collect();
        std::thread::sleep(SETTLE_INTERVAL);
        for partition in &mut self.partitions {
            let name = &self.topics[partition.topic];
            (_, partition.end) = self.consumer.fetch_watermarks(name, partition.number, BROKER_TIMEOUT)?;
        }
        self.read_to_ends(wanted)
    }

    fn read_to_ends(&mut self, wanted: &Wanted) -> Result<()> {
        let mut unread = TopicPartitionList::new();
        for partition in self.partitions.iter().filter(|partition| partition.next < partition.end) {
            let name = &self.topics[partition.topic];
            unread.add_partition_offset(name, partition.number, Offset::Offset(partition.next))?;
        }
        let total: i64 =
            self.partitions.iter().map(|partition| (partition.end - partition.next).max(0)).sum();
        let mut left = unread.count();
        let by_name: BTreeMap<String, usize> =
            self.topics.iter().enumerate().map(|(index, topic)| (topic.clone(), index)).collect();
        let consumer = Rc::clone(&self.consumer);
        consumer.assign(&unread)?;
        let progress = Progress::new(total);
        let mut last_received_at = Instant::now();
        while left > 0 {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    last_received_at = Instant::now();
                    let topic = by_name.get(message.topic()).copied().context("a record of another topic")?;
                    let index =
                        self.index.get(&(topic, message.partition())).copied().context("partition")?;
                    left -= usize::from(self.record(index, &message, wanted));
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
    fn record(&mut self, index: usize, message: &BorrowedMessage<'_>, wanted: &Wanted) -> bool {
        let Some(partition) = self.partitions.get_mut(index) else { return false };
        let before = partition.next < partition.end;
        partition.next = message.offset() + 1;
        let ended = before && partition.next >= partition.end;
        self.records += 1;
        let header = |name: &str| {
            let headers = message.headers()?;
            let value = headers.iter().find(|header| header.key == name)?.value?;
            std::str::from_utf8(value).ok()
        };
        let (source, position) = (header("ce_source"), RecordPosition::of(header("pg_position")));
        match header("pg_chain").map(ChainName::read) {
            // The `ce_source` of a chain whose dead letters alone were read may come later.
            Some(name) if source.is_none() || wanted.has(&name, source) => {
                self.take(name, source, index, position);
            }
            Some(_) => {}
            None => self.unknown += u64::from(!matches!(position, RecordPosition::None)),
        }
        if ended {
            self.chains.values_mut().for_each(|read| read.chain.end(index));
        }
        ended
    }

    fn take(&mut self, name: ChainName, source: Option<&str>, index: usize, position: RecordPosition) {
        let read = self.chains.entry(name).or_insert_with(|| {
            let mut chain = Chain::new(self.partitions.iter().map(|partition| partition.cut));
            let ended = self.partitions.iter().enumerate().filter(|(_, p)| p.next >= p.end);
            ended.for_each(|(index, _)| chain.end(index));
            ReadChain { source: None, chain, re_emitted: 0 }
        });
        if read.source.is_none() {
            read.source = source.map(str::to_owned);
        }
        match position {
            RecordPosition::Chain(position) => read.chain.take(index, position),
            RecordPosition::Unreadable => self.unknown += 1,
            // Notes of the dead-letter topic have none either.
            RecordPosition::None => read.re_emitted += u64::from(source.is_some()),
        }
    }

    /// Partitions without a last record, because of compaction or a transaction: the consumer is past it.
    fn passed(&mut self, consumer: &BaseConsumer) -> Result<usize> {
        let at = consumer.position()?;
        let mut ended = 0;
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            let name = &self.topics[partition.topic];
            let found = at.find_partition(name, partition.number).map(|found| found.offset());
            if let Some(Offset::Offset(offset)) = found
                && partition.next < partition.end
                && offset >= partition.end
            {
                partition.next = offset;
                ended += 1;
                self.chains.values_mut().for_each(|read| read.chain.end(index));
            }
        }
        Ok(ended)
    }

    /// The newest commit of this chain's records; 0/0 without one.
    pub fn newest(&self, chain: &ChainName) -> Lsn {
        self.chains.get(chain).map_or(Lsn::ZERO, |read| read.chain.newest())
    }

    /// Returns the number of records, the verdict of each chain, and notes.
    pub fn judge(self, wanted: &Wanted) -> (u64, Vec<Verdict>, Vec<String>) {
        let mut notes = self.notes;
        if self.unknown > 0 {
            notes.push(format!(
                "{} records have a position that cannot be read, or that is of no chain (pg_chain)",
                self.unknown
            ));
        }
        let newest = self.newest;
        let verdict = |(name, ReadChain { source, chain, re_emitted }): (ChainName, ReadChain)| {
            let findings = chain.finish(newest.get(&name).copied().unwrap_or_default());
            let whole = findings.is_whole();
            Verdict { whole, re_emitted, findings, ..Verdict::of(source.unwrap_or_default(), name) }
        };
        let chains = self.chains.into_iter().filter(|(name, read)| wanted.has(name, read.source.as_deref()));
        (self.records, chains.map(verdict).collect(), notes)
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
    fn of(header: Option<&str>) -> RecordPosition {
        match header.map(|text| ChainPosition::parse(text.as_bytes())) {
            Some(Some(position)) => RecordPosition::Chain(position),
            Some(None) => RecordPosition::Unreadable,
            None => RecordPosition::None,
        }
    }
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
