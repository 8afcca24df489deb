//! Reads every partition of some topics from the offsets that a group has committed, without joining the group.
//!
//! * Every instance sees every record, in the order of each partition. There is no rebalance and no time limit for a poll: a
//!   caller that does not poll holds the reading up, and [`READ_AHEAD_KBYTES`] a partition are read ahead at most.
//! * Nothing is committed but what the caller [commits](Reader::commit). With the offsets the group keeps a text of the
//!   caller's, so both are of one moment.
//! * A group that has committed nothing begins at the present end. A partition that is made later is read from its beginning.
//! * Records are fetched in rounds of about a second: the reader costs little, and is that late.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use brokers::Brokers;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientErrors, Health, settings};
use super::lag::{Ends, GroupOffsets};
use super::{Record, Subscription};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const READ_AHEAD_KBYTES: &str = "1024";

/// The next offset of each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets(BTreeMap<(String, i32), i64>);

impl Offsets {
    /// The records up to `ends` that are not read.
    pub fn behind(&self, ends: &Offsets) -> i64 {
        let behind = |(place, end): (&(String, i32), &i64)| end - self.0.get(place).copied().unwrap_or(0);
        ends.0.iter().map(behind).filter(|behind| *behind > 0).sum()
    }
}

/// A client that reads. Every method blocks.
pub struct Reader {
    consumer: BaseConsumer,
    /// Asks by a connection of its own: on the reader's an answer comes after that of the fetch before it.
    asker: GroupOffsets,
    topics: Vec<String>,
    next: Offsets,
    /// The time of the last record of each partition, in milliseconds since 1970.
    read_at: BTreeMap<(String, i32), i64>,
    errors: ClientErrors,
    health: Health,
}

impl Reader {
    /// Begins where the group has committed; also returns the text that was committed with it, if there is one.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn start(
        brokers: &Brokers,
        group_id: &str,
        topics: Vec<String>,
    ) -> anyhow::Result<(Self, Option<String>)> {
        let mut config = settings(brokers, group_id);
        config
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", READ_AHEAD_KBYTES)
            .set("fetch.min.bytes", "1000000")
            .set("fetch.wait.max.ms", "1000")
            .set("fetch.queue.backoff.ms", "100");
        let consumer: BaseConsumer = config.create().context("cannot create the Kafka client")?;
        let health = Health::new(Instant::now());
        let asker = GroupOffsets::new(&Subscription {
            brokers: brokers.clone(),
            group_id: group_id.to_owned(),
            instance_id: None,
            topics: topics.clone(),
        });
        let (next, read_at, errors) = (Offsets::default(), BTreeMap::new(), ClientErrors::default());
        let mut reader = Self { consumer, asker, topics, next, read_at, errors, health };
        let text = reader.begin()?;
        Ok((reader, text))
    }

    fn begin(&mut self) -> anyhow::Result<Option<String>> {
        let Ends(present) = self.asker.ends()?;
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in present.keys() {
            asked.add_partition(topic, *partition);
        }
        let committed = self
            .consumer
            .committed_offsets(asked, ANSWER_TIMEOUT)
            .context("the group's offsets cannot be read")?;
        let mut offsets = BTreeMap::new();
        let mut text = None;
        for element in committed.elements() {
            element.error().context("the group's offsets cannot be read")?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert((element.topic().to_owned(), element.partition()), offset);
                text = Some(element.metadata().to_owned()).filter(|text| !text.is_empty()).or(text);
            }
        }
        let is_new = offsets.is_empty();
        for (place, (low, high)) in present {
            let begin = if is_new { high } else { low };
            // Retention may have removed what was next.
            let next = offsets.get(&place).map_or(begin, |committed| (*committed).max(low));
            self.next.0.insert(place, next);
        }
        self.assign()?;
        Ok(text)
    }

    fn assign(&self) -> anyhow::Result<()> {
        self.consumer.assign(&self.list(&self.next, "")?).context("cannot assign the partitions")
    }

    fn list(&self, offsets: &Offsets, text: &str) -> anyhow::Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(offsets.0.len());
        for ((topic, partition), offset) in &offsets.0 {
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(*offset))?;
            if !text.is_empty() {
                element.set_metadata(text);
            }
        }
        Ok(list)
    }

    /// The present ends. Partitions that were made since are read from now on, from their beginning.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn ends(&mut self) -> anyhow::Result<Offsets> {
        let Ends(present) = self.asker.ends()?;
        let known = self.next.0.len();
        for (place, (low, _)) in &present {
            self.next.0.entry(place.clone()).or_insert(*low);
        }
        if self.next.0.len() > known {
            self.assign()?;
        }
        Ok(Offsets(present.into_iter().map(|(place, (_, high))| (place, high)).collect()))
    }

    /// The time up to which every partition is read that is not read up to `ends`, in milliseconds since 1970; `None`: each
    /// one is. Within a partition the relay emits in the order of this time.
    pub fn read_until(&self, ends: &Offsets) -> Option<i64> {
        let is_behind = |place: &(String, i32)| self.next.0.get(place) < ends.0.get(place);
        let behind = ends.0.keys().filter(|place| is_behind(place));
        behind.map(|place| self.read_at.get(place).copied().unwrap_or(0)).min()
    }

    /// The offsets of the next records.
    pub fn next(&self) -> &Offsets {
        &self.next
    }

    /// Hands over the next record, if one comes within `wait`; false if none came.
    ///
    /// # Errors
    /// When the client is beyond repair, or has lost all brokers: then a new reader is needed.
    pub fn poll(&mut self, wait: Duration, on_record: impl FnOnce(&Record<'_>)) -> anyhow::Result<bool> {
        let message = match self.consumer.poll(wait) {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                self.errors.report(&error)?;
                return Ok(false);
            }
            None => {
                let topic = self.topics.first().map(String::as_str);
                let is_lost = self.health.is_client_lost(&self.consumer, topic);
                anyhow::ensure!(!is_lost, "no broker answers this Kafka client");
                return Ok(false);
            }
        };
        self.health.received(Instant::now());
        let place = (message.topic().to_owned(), message.partition());
        let next = self.next.0.get_mut(&place).context("a record of a partition that was not assigned")?;
        *next = message.offset() + 1;
        if let Some(at) = message.timestamp().to_millis() {
            self.read_at.insert(place, at);
        }
        on_record(&Record(&message.into()));
        Ok(true)
    }

    /// Commits offsets for the group, with a text of at most 4 kB.
    ///
    /// # Errors
    /// When Kafka does not take them: it is away, or the group has members.
    pub fn commit(&self, offsets: &Offsets, text: &str) -> anyhow::Result<()> {
        if offsets.0.is_empty() {
            return Ok(());
        }
        let list = self.list(offsets, text)?;
        self.consumer.commit(&list, CommitMode::Sync).context("the offsets cannot be committed")
    }
}
