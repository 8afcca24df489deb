//! The topics of a run, and their offsets and times as the broker knows them.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use brokers::Brokers;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::run::Run;

pub const PARTITIONS: i32 = 4;
const BROKER_TIMEOUT: Duration = Duration::from_secs(20);

/// Produces rows without a relay.
#[derive(Clone)]
pub struct DirectProducer {
    producer: FutureProducer,
    topic: String,
}

impl DirectProducer {
    /// Nobody waits for the acknowledgement: a record that does not arrive is missed at the end.
    pub fn produce(&self, committed: Timestamp) -> Result<()> {
        let time = committed.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "ce_time", value: Some(&time) });
        let record = FutureRecord::<[u8; 8], _>::to(&self.topic).payload(&[0; 240]).headers(headers);
        drop(self.producer.send_result(record).map_err(|(error, _)| error)?);
        Ok(())
    }
}

#[derive(Clone)]
pub struct Topics {
    /// As the administrator: topics are made, and records written.
    brokers: Brokers,
}

impl Topics {
    pub fn connect(brokers: Brokers) -> Result<Self> {
        let topics = Self { brokers };
        topics.consumer()?.fetch_metadata(None, BROKER_TIMEOUT).context("Kafka does not answer")?;
        Ok(topics)
    }

    pub fn consumer(&self) -> Result<BaseConsumer> {
        self.brokers
            .config()
            // Required by the client, never used: nothing is committed.
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("socket.nagle.disable", "true")
            .set("fetch.wait.max.ms", "100")
            .set("fetch.queue.backoff.ms", "1")
            .set("queued.max.messages.kbytes", "65536")
            .create()
            .context("kafka consumer")
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.brokers.config().create().context("kafka admin")
    }

    /// Its records carry the time at which the broker appended them.
    pub async fn make(&self, topic: &str) -> Result<()> {
        let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))
            .set("message.timestamp.type", "LogAppendTime");
        self.create(new).await
    }

    pub async fn make_compacted(&self, topic: &str) -> Result<()> {
        self.create(NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact"))
            .await
    }

    async fn create(&self, topic: NewTopic<'_>) -> Result<()> {
        let options = AdminOptions::new().operation_timeout(Some(BROKER_TIMEOUT));
        for result in self.admin()?.create_topics([&topic], &options).await? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => anyhow::bail!("cannot create topic {name}: {code}"),
            }
        }
        Ok(())
    }

    /// Removes a run's topics, if they exist.
    pub async fn remove(&self, run: &Run) -> Result<()> {
        let names = [run.topic.as_str(), &run.state_topic, &run.dead_letter_topic];
        self.admin()?
            .delete_topics(&names, &AdminOptions::new().operation_timeout(Some(BROKER_TIMEOUT)))
            .await?;
        Ok(())
    }

    /// Sends at once, as the relay does a handful of rows.
    pub fn direct_producer(&self, topic: &str) -> Result<DirectProducer> {
        let producer = self
            .brokers
            .config()
            .set("socket.nagle.disable", "true")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create()
            .context("kafka producer")?;
        Ok(DirectProducer { producer, topic: topic.to_owned() })
    }

    /// Writes one record and waits until it is acknowledged. Blocking.
    pub fn write(&self, topic: &str, key: &str, value: &str) -> Result<()> {
        let producer: BaseProducer = self.brokers.config().set("acks", "all").create()?;
        producer.send(BaseRecord::to(topic).key(key).payload(value)).map_err(|(error, _)| error)?;
        producer.flush(BROKER_TIMEOUT).with_context(|| format!("topic {topic}"))
    }

    /// How many different keys the topic holds.
    pub async fn distinct_keys(&self, topic: &str) -> Result<u64> {
        let (topics, topic) = (self.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            let consumer = topics.consumer()?;
            let ends = ends(&consumer, &topic)?;
            let mut left: i64 = ends.iter().sum();
            assign(&consumer, &topic, &[0; PARTITIONS as usize])?;
            let mut keys: HashSet<Box<[u8]>> = HashSet::new();
            while left > 0 {
                let message = consumer.poll(BROKER_TIMEOUT).context("the topic cannot be read back")??;
                left -= 1;
                if let Some(key) = message.key() {
                    keys.insert(key.into());
                }
            }
            Ok(keys.len() as u64)
        })
        .await?
    }
}

/// The next offset of each partition.
pub fn ends(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i64>> {
    let end = |partition| Ok(consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)?.1);
    (0..PARTITIONS).map(end).collect()
}

/// Reads on from these offsets.
pub fn assign(consumer: &BaseConsumer, topic: &str, offsets: &[i64]) -> Result<()> {
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(offsets) {
        assignment.add_partition_offset(topic, partition, Offset::Offset(*offset))?;
    }
    consumer.assign(&assignment).context("assign")
}

/// Milliseconds: when the broker appended the record at `offset`. Blocking.
pub fn appended_at(consumer: &BaseConsumer, topic: &str, partition: i32, offset: i64) -> Result<i64> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&assignment)?;
    loop {
        let message = consumer.poll(BROKER_TIMEOUT).context("a record cannot be read back")??;
        ensure!(message.offset() >= offset, "the broker answered an earlier record");
        // Skips records fetched for an earlier question.
        if message.partition() == partition && message.offset() == offset {
            return message.timestamp().to_millis().context("a record without a time");
        }
    }
}
