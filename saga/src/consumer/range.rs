//! Reads a topic from a time to the end that it has when the reading begins.
//!
//! * Records that are produced later are not read. The order within a partition is kept.
//! * The client joins no group, and neither reads nor commits offsets.
//! * A thread polls and decodes, since the client's poll blocks. It waits for the caller once [`BATCHES_AHEAD`] batches of at
//!   most [`BATCH_MAX`] records are read ahead, so memory is bounded whatever the topic holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use brokers::Brokers;
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::Record;
use super::client::{ClientErrors, Health, settings};
use super::lag::partitions;

const BATCH_MAX: usize = 1000;
const BATCHES_AHEAD: usize = 2;
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A topic, and since when it is read.
#[derive(Clone, Debug)]
pub struct TopicRange {
    pub brokers: Brokers,
    /// Of the service: a client has one, though this one never joins it.
    pub group_id: String,
    /// The topic with its prefix, if the system has one.
    pub topic: String,
    /// By the times of the records, which are those of their commits; `None`: from the first record that there is.
    pub since: Option<Timestamp>,
}

/// The records of a range, decoded, in batches.
pub struct Batches<T>(mpsc::Receiver<anyhow::Result<Vec<T>>>);

impl<T> Batches<T> {
    /// The next batch; `None` after the last one.
    ///
    /// # Errors
    /// When the topic does not exist or cannot be read to its end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<T>>> {
        self.0.recv().await.transpose()
    }
}

/// The records of one partition that are left, by offset: `next` inclusive, `end` exclusive.
#[derive(Clone, Copy, Debug)]
struct Rest {
    next: i64,
    end: i64,
}

impl TopicRange {
    /// Whether the topic exists.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub async fn is_there(&self) -> anyhow::Result<bool> {
        let range = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let consumer = range.client()?;
            anyhow::Ok(!range.partitions(&consumer)?.is_empty())
        });
        asked.await.context("the thread that asked Kafka panicked")?
    }

    /// Starts to read, on a thread that ends with the range or with the batches.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn read<T: Send + 'static>(
        self,
        decode: impl Fn(&Record<'_>) -> T + Send + 'static,
    ) -> anyhow::Result<Batches<T>> {
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let read = move || {
            if let Err(error) = self.send(&decode, &sender) {
                // Nobody waits for it if the caller has ended.
                let _ = sender.blocking_send(Err(error));
            }
        };
        std::thread::Builder::new()
            .name("range".into())
            .spawn(read)
            .context("cannot start the thread that reads a topic")?;
        Ok(Batches(batches))
    }

    fn send<T>(
        &self,
        decode: &dyn Fn(&Record<'_>) -> T,
        sender: &mpsc::Sender<anyhow::Result<Vec<T>>>,
    ) -> anyhow::Result<()> {
        let consumer = self.client()?;
        let mut rests = self.rests(&consumer)?;
        let mut assigned = TopicPartitionList::with_capacity(rests.len());
        for (partition, rest) in &rests {
            assigned.add_partition_offset(&self.topic, *partition, Offset::Offset(rest.next))?;
        }
        consumer.assign(&assigned).context("cannot assign the partitions")?;
        let (mut errors, mut health) = (ClientErrors::default(), Health::new(Instant::now()));
        let mut batch = Vec::new();
        while !rests.is_empty() {
            match consumer.poll(POLL_INTERVAL) {
                Some(Ok(message)) => {
                    health.received(Instant::now());
                    let (partition, offset) = (message.partition(), message.offset());
                    let Some(rest) = rests.get(&partition) else { continue };
                    if offset < rest.end {
                        batch.push(decode(&Record(&message.into())));
                    }
                    if offset + 1 >= rest.end {
                        rests.remove(&partition);
                    }
                }
                // The last offsets may be no records: marks of transactions.
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(rests.remove(&partition)),
                Some(Err(error)) => errors.report(&error)?,
                None => {
                    let is_lost = health.is_client_lost(&consumer, Some(&self.topic));
                    ensure!(!is_lost, "no broker answers this Kafka client");
                }
            }
            let is_due = batch.len() >= BATCH_MAX || (rests.is_empty() && !batch.is_empty());
            if is_due && sender.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn client(&self) -> anyhow::Result<BaseConsumer> {
        let mut config = settings(&self.brokers, &self.group_id);
        config
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("queued.max.messages.kbytes", "16384");
        config.create().context("cannot create the Kafka client")
    }

    /// None where the topic does not exist.
    fn partitions(&self, consumer: &BaseConsumer) -> anyhow::Result<Vec<i32>> {
        let metadata =
            consumer.fetch_metadata(Some(&self.topic), ANSWER_TIMEOUT).context("Kafka does not answer")?;
        partitions(metadata.topics().first().context("Kafka answers for no topic")?)
    }

    /// The partitions that have records of the range.
    fn rests(&self, consumer: &BaseConsumer) -> anyhow::Result<BTreeMap<i32, Rest>> {
        let ids = self.partitions(consumer)?;
        ensure!(!ids.is_empty(), "Kafka has no topic {}; check the prefix of the topics", self.topic);
        let begins = self.begins(consumer, &ids)?;
        let mut rests = BTreeMap::new();
        for id in ids {
            let (first, end) = consumer
                .fetch_watermarks(&self.topic, id, ANSWER_TIMEOUT)
                .with_context(|| format!("partition {id} does not answer"))?;
            let next = match begins.get(&id) {
                // No record is that young.
                Some(None) => end,
                Some(Some(begin)) => (*begin).max(first),
                None => first,
            };
            if first > 0 && next == first {
                tracing::warn!(
                    topic = self.topic,
                    partition = id,
                    first,
                    "the first records of this partition were removed; what only they had is not found"
                );
            }
            if next < end {
                rests.insert(id, Rest { next, end });
            }
        }
        Ok(rests)
    }

    /// The first offset of each partition since the time, if there is a time; `None` where every record is older.
    fn begins(&self, consumer: &BaseConsumer, ids: &[i32]) -> anyhow::Result<BTreeMap<i32, Option<i64>>> {
        let Some(since) = self.since else { return Ok(BTreeMap::new()) };
        let mut asked = TopicPartitionList::with_capacity(ids.len());
        for id in ids {
            asked.add_partition_offset(&self.topic, *id, Offset::Offset(since.as_millisecond()))?;
        }
        let found = consumer
            .offsets_for_times(asked, ANSWER_TIMEOUT)
            .context("Kafka does not give the offsets of a time")?;
        let mut begins = BTreeMap::new();
        for element in found.elements() {
            element.error().context("Kafka does not give the offset of a time")?;
            let begin = if let Offset::Offset(offset) = element.offset() { Some(offset) } else { None };
            begins.insert(element.partition(), begin);
        }
        Ok(begins)
    }
}
