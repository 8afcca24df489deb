//! Reads events as a subscriber would, with their headers, and commits nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use brokers::Brokers;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde_json::Value;

const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// A read ends with an error when no record arrives for so long.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

pub const SAGA_TOPICS: [&str; 3] = [PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC];

/// One event on Kafka.
#[derive(Clone, Debug)]
pub struct Event {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    pub headers: BTreeMap<String, String>,
    pub value: Vec<u8>,
}

impl Event {
    pub fn of(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text).unwrap_or_default(),
            headers: headers.map(|h| (h.key.to_owned(), text(h.value.unwrap_or_default()))).collect(),
            value: message.payload().unwrap_or_default().to_vec(),
        }
    }

    /// A header's value, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn event_type(&self) -> &str {
        self.header("ce_type")
    }

    pub fn subject(&self) -> &str {
        self.header("ce_subject")
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.value).context("an event's value is JSON")
    }
}

fn settings(brokers: impl Into<Brokers>) -> ClientConfig {
    let mut settings = brokers.into().config();
    settings
        // Required by the client, never used: nothing is committed.
        .set("group.id", "e2e-reader")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "1")
        // Per partition: records that are read ahead take memory.
        .set("queued.max.messages.kbytes", "4096");
    settings
}

fn consumer(brokers: impl Into<Brokers>) -> Result<BaseConsumer> {
    settings(brokers).set("enable.partition.eof", "false").create().context("kafka consumer")
}

/// Reads every event since `since`, by topic, partition and offset. Blocking: call it from a thread that may wait.
pub fn read(brokers: impl Into<Brokers>, topics: &[&str], since: jiff::Timestamp) -> Result<Vec<Event>> {
    read_matching(brokers, topics, since, |_| true)
}

/// As [`read`], only events about `subject`. Blocking.
pub fn about(
    brokers: impl Into<Brokers>,
    topics: &[&str],
    since: jiff::Timestamp,
    subject: &str,
) -> Result<Vec<Event>> {
    let is_subject =
        |header: Header<'_, &[u8]>| (header.key, header.value) == ("ce_subject", Some(subject.as_bytes()));
    read_matching(brokers, topics, since, |message| {
        message.headers().is_some_and(|headers| headers.iter().any(is_subject))
    })
}

fn read_matching(
    brokers: impl Into<Brokers>,
    topics: &[&str],
    since: jiff::Timestamp,
    keep: impl Fn(&BorrowedMessage<'_>) -> bool,
) -> Result<Vec<Event>> {
    let consumer = consumer(brokers)?;
    let mut from = TopicPartitionList::new();
    for topic in topics {
        for partition in partitions(&consumer, topic)? {
            from.add_partition_offset(topic, partition, Offset::Offset(since.as_millisecond()))?;
        }
    }
    // The relay has made none of the topics yet.
    if from.count() == 0 {
        return Ok(Vec::new());
    }
    // Kafka answers "end" where nothing is younger.
    let from = consumer.offsets_for_times(from, BROKER_TIMEOUT).context("offsets by time")?;
    let mut left = 0_usize;
    let mut ends = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for element in from.elements() {
        let (low, high) = consumer.fetch_watermarks(element.topic(), element.partition(), BROKER_TIMEOUT)?;
        let start = match element.offset() {
            Offset::Offset(offset) => offset.max(low),
            _ => high,
        };
        if start < high {
            left += 1;
            ends.insert((element.topic().to_owned(), element.partition()), high);
            assignment.add_partition_offset(element.topic(), element.partition(), Offset::Offset(start))?;
        }
    }
    consumer.assign(&assignment)?;
    drain(&consumer, ends, left, keep)
}

fn drain(
    consumer: &BaseConsumer,
    mut ends: BTreeMap<(String, i32), i64>,
    mut left: usize,
    keep: impl Fn(&BorrowedMessage<'_>) -> bool,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut last_received_at = Instant::now();
    while left > 0 {
        ensure!(
            last_received_at.elapsed() < STALL_TIMEOUT,
            "Kafka sent no record for {STALL_TIMEOUT:?}; {left} partitions are not read to their end"
        );
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        last_received_at = Instant::now();
        let at = (message.topic().to_owned(), message.partition());
        if ends.get(&at).is_some_and(|end| message.offset() + 1 >= *end) {
            ends.remove(&at);
            left -= 1;
        }
        if keep(&message) {
            events.push(Event::of(&message));
        }
    }
    events.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
    Ok(events)
}

/// Logs librdkafka's errors at debug: the end of a partition is one, and it repairs lost connections itself.
struct DebugLog;

impl ClientContext for DebugLog {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client error");
    }
}

impl ConsumerContext for DebugLog {}

/// Visits every present record of a topic, in order within a partition. A topic that does not exist has none. Blocking.
pub fn visit(
    brokers: impl Into<Brokers>,
    topic: &str,
    mut visit: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let consumer: BaseConsumer<DebugLog> = settings(brokers)
        // Compaction may remove the last records before the end: then only this shows that the end is reached.
        .set("enable.partition.eof", "true")
        .create_with_context(DebugLog)
        .context("kafka consumer")?;
    let mut ends = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions(&consumer, topic)? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)?;
        if low < high {
            ends.insert(partition, high);
            assignment.add_partition_offset(topic, partition, Offset::Offset(low))?;
        }
    }
    consumer.assign(&assignment)?;
    let mut last_received_at = Instant::now();
    while !ends.is_empty() {
        ensure!(
            last_received_at.elapsed() < STALL_TIMEOUT,
            "Kafka sent no record for {STALL_TIMEOUT:?}; {topic} is not read to its end"
        );
        let message = match consumer.poll(Duration::from_millis(100)) {
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
                continue;
            }
            Some(Err(error)) => {
                tracing::debug!(%error, topic, "read from Kafka failed; polling again");
                continue;
            }
            Some(Ok(message)) => message,
        };
        last_received_at = Instant::now();
        let Some(end) = ends.get(&message.partition()).copied() else { continue };
        if message.offset() < end {
            visit(&message)?;
        }
        if message.offset() + 1 >= end {
            ends.remove(&message.partition());
        }
    }
    Ok(())
}

fn partitions<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) -> Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).context("topic metadata")?;
    let topic = metadata.topics().first().context("topic metadata")?;
    saga::consumer::partitions(topic)
}

/// Counts the records of the topics that a group has not yet applied, and all records. Blocking.
pub fn lag(brokers: impl Into<Brokers>, group: &str, topics: &[String]) -> Result<(i64, i64)> {
    let consumer: BaseConsumer =
        settings(brokers).set("group.id", group).create().context("kafka consumer")?;
    let mut ends = BTreeMap::new();
    let mut asked = TopicPartitionList::new();
    for topic in topics {
        for partition in partitions(&consumer, topic)? {
            let marks = consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)?;
            ends.insert((topic.clone(), partition), marks);
            asked.add_partition(topic, partition);
        }
    }
    if ends.is_empty() {
        return Ok((0, 0));
    }
    let committed =
        consumer.committed_offsets(asked, BROKER_TIMEOUT).with_context(|| format!("offsets of {group}"))?;
    let (mut lag, mut records) = (0, 0);
    for ((topic, partition), (low, high)) in ends {
        let applied = match committed.find_partition(&topic, partition).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => offset,
            // Nothing was ever applied.
            Some(_) | None => low,
        };
        lag += (high - applied).max(0);
        records += high - low;
    }
    Ok((lag, records))
}

/// Follows a topic from its end on.
pub struct Tail {
    consumer: BaseConsumer,
}

impl Tail {
    /// Events that are emitted after this returns will be received. Blocking.
    pub fn from_end(brokers: impl Into<Brokers>, topic: &str) -> Result<Self> {
        let consumer = consumer(brokers)?;
        let mut assignment = TopicPartitionList::new();
        for partition in partitions(&consumer, topic)? {
            let (_, high) = consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)?;
            assignment.add_partition_offset(topic, partition, Offset::Offset(high))?;
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer })
    }

    /// The next event, if one comes within `wait`. Blocking.
    pub fn next_event(&self, wait: Duration) -> Option<Event> {
        Some(Event::of(&self.consumer.poll(wait)?.ok()?))
    }

    /// The type and subject of the next event, if one comes within `wait`. Blocking.
    pub fn next(&self, wait: Duration) -> Option<(String, String)> {
        let message = self.consumer.poll(wait)?.ok()?;
        let headers = message.headers()?;
        let header = |name: &str| {
            let found = headers.iter().find(|h| h.key == name)?;
            Some(std::str::from_utf8(found.value?).ok()?.to_owned())
        };
        Some((header("ce_type")?, header("ce_subject")?))
    }
}
