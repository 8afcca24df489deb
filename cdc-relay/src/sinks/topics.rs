//! Creates missing topics, asks for their limits, and reads small topics to their end.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use brokers::Brokers;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::routes::Routes;
use crate::sinks::kafka::client_config;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Creates the missing topics of the routes file. Returns the largest record that each topic takes, by index.
pub async fn prepare(brokers: &Brokers, routes: &Routes) -> Result<Vec<usize>> {
    let admin: AdminClient<DefaultClientContext> =
        client_config(brokers, routes).create().context("no Kafka admin client")?;
    let replication = || TopicReplication::Fixed(routes.relay.replication_factor.unwrap_or(-1));
    let mut wanted: Vec<NewTopic<'_>> = Vec::new();
    for topic in &routes.topics {
        let mut new = NewTopic::new(topic.name.get_ref(), topic.partitions, replication());
        for (key, value) in &topic.config {
            new = new.set(key, value.get_ref());
        }
        wanted.push(new);
    }
    let state = NewTopic::new(routes.relay.state_topic.get_ref(), 1, replication())
        .set("cleanup.policy", "compact")
        // Small closed segments are soon compacted, so that loading the checkpoint at start stays quick.
        .set("segment.ms", "600000")
        .set("min.cleanable.dirty.ratio", "0.1");
    let dead =
        NewTopic::new(routes.relay.dead_letter_topic.get_ref(), 1, replication()).set("retention.ms", "-1");
    wanted.extend([state, dead]);
    let options =
        AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT));
    let mut forbidden = Vec::new();
    for result in admin.create_topics(&wanted, &options).await.context("cannot create topics")? {
        match result {
            Ok(name) => tracing::info!(topic = name, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, RDKafkaErrorCode::TopicAuthorizationFailed)) => forbidden.push(name),
            Err((name, code)) => bail!("cannot create topic {name}: {code}"),
        }
    }
    if !forbidden.is_empty() {
        // Kafka does not say in its refusal whether the topics exist.
        let known = admin.inner().fetch_metadata(None, ADMIN_TIMEOUT).context("the brokers do not answer")?;
        let exists = |name: &str| known.topics().iter().any(|topic| topic.name() == name);
        if let Some(name) = forbidden.iter().find(|name| !exists(name)) {
            bail!(
                "topic {name} is missing, and this relay may not create it: create it, or allow the relay's principal \
                 Create and Describe on it"
            );
        }
    }
    limits(&admin, routes, &options).await
}

/// Returns for each topic the smaller of the routes file's limit and the broker's.
async fn limits(
    admin: &AdminClient<DefaultClientContext>,
    routes: &Routes,
    options: &AdminOptions,
) -> Result<Vec<usize>> {
    let ours = routes.relay.max_record_bytes;
    let resources: Vec<ResourceSpecifier<'_>> =
        routes.topics.iter().map(|topic| ResourceSpecifier::Topic(topic.name.get_ref())).collect();
    if resources.is_empty() {
        return Ok(Vec::new());
    }
    let answers = admin.describe_configs(&resources, options).await.context("cannot read topic settings")?;
    let limit = |answer: Result<rdkafka::admin::ConfigResource, RDKafkaErrorCode>| {
        let resource = answer.ok()?;
        let entry = resource.entries.iter().find(|entry| entry.name == "max.message.bytes")?;
        let theirs: usize = entry.value.as_ref()?.parse().ok()?;
        // A batch is a record and a header of 61 bytes; leave room for both and the lengths.
        Some(ours.min(theirs.saturating_sub(128)))
    };
    Ok(answers.into_iter().map(|answer| limit(answer).unwrap_or(ours)).collect())
}

/// Reads small topics of one partition. Blocking: for a thread off the runtime.
pub struct Reader {
    config: ClientConfig,
    /// Exists from the first reading on, until `disconnect`.
    consumer: RefCell<Option<Rc<BaseConsumer>>>,
}

impl Reader {
    pub fn new(brokers: &Brokers, routes: &Routes) -> Reader {
        let mut config = client_config(brokers, routes);
        config
            .set("group.id", "cdc-relay")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("queued.max.messages.kbytes", "4096");
        Reader { config, consumer: RefCell::default() }
    }

    /// The client; makes it if there is none.
    fn consumer(&self) -> Result<Rc<BaseConsumer>> {
        let mut consumer = self.consumer.borrow_mut();
        if let Some(consumer) = &*consumer {
            return Ok(Rc::clone(consumer));
        }
        let made: BaseConsumer = self.config.create().context("no Kafka consumer")?;
        Ok(Rc::clone(consumer.insert(Rc::new(made))))
    }

    /// Ends the client and its four threads, for when nothing is to be read for a while.
    pub fn disconnect(&self) {
        let Some(consumer) = self.consumer.take().and_then(Rc::into_inner) else { return };
        // Its end may take as long as the brokers are away; the caller must not wait for that.
        let thread = std::thread::Builder::new().name("old reader".to_owned());
        if let Err(error) = thread.spawn(move || drop(consumer)) {
            tracing::warn!(%error, "cannot start the thread that ends a Kafka consumer");
        }
    }

    /// Reads a topic from `offset` to its present end. Returns that end.
    pub fn read(
        &self,
        topic: &str,
        offset: i64,
        mut record: impl FnMut(i64, Option<&[u8]>, Option<&[u8]>) -> Result<()>,
    ) -> Result<i64> {
        let mut reading = self.open(topic, offset)?;
        loop {
            match reading.next(Duration::from_millis(200))? {
                Step::Record(message) => record(message.offset(), message.key(), message.payload())?,
                Step::Wait => {}
                Step::End => return Ok(reading.end),
            }
        }
    }

    /// Begins to read a topic from `offset` to its present end, step by step. One reading at a time.
    pub fn open(&self, topic: &str, offset: i64) -> Result<Reading> {
        let consumer = self.consumer()?;
        let (low, high) = consumer
            .fetch_watermarks(topic, 0, ADMIN_TIMEOUT)
            .with_context(|| format!("cannot read the end of topic {topic}"))?;
        let start = offset.max(low);
        if start < high {
            let mut partitions = TopicPartitionList::new();
            partitions.add_partition_offset(topic, 0, Offset::Offset(start))?;
            consumer.assign(&partitions)?;
        }
        let topic = topic.to_owned();
        Ok(Reading { consumer, topic, end: high, is_over: start >= high, last_record_at: Instant::now() })
    }
}

/// A topic that is being read.
pub struct Reading {
    consumer: Rc<BaseConsumer>,
    topic: String,
    /// The offset after the last record.
    end: i64,
    is_over: bool,
    last_record_at: Instant,
}

pub enum Step<'r> {
    Record(BorrowedMessage<'r>),
    /// Nothing yet.
    Wait,
    /// All records from before the reading are read.
    End,
}

impl Reading {
    /// The offset after the last record.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Waits up to `timeout` for the next record.
    pub fn next(&mut self, timeout: Duration) -> Result<Step<'_>> {
        if self.is_over {
            return Ok(Step::End);
        }
        match self.consumer.poll(timeout) {
            Some(Ok(message)) => {
                self.last_record_at = Instant::now();
                self.is_over = message.offset() + 1 >= self.end;
                return Ok(Step::Record(message));
            }
            // Compaction removed the last records before the end.
            Some(Err(KafkaError::PartitionEOF(_))) => {
                self.is_over = true;
                return Ok(Step::End);
            }
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed))) => {
                bail!("this relay may not read topic {}: allow its principal Read on it", self.topic);
            }
            Some(Err(error)) => {
                tracing::debug!(%error, topic = self.topic, "a read of the topic failed and is repeated");
            }
            None => {}
        }
        let topic = &self.topic;
        anyhow::ensure!(
            self.last_record_at.elapsed() < ADMIN_TIMEOUT,
            "topic {topic} cannot be read to its end"
        );
        Ok(Step::Wait)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // The next reading assigns anew either way.
        let _ = self.consumer.unassign();
    }
}
