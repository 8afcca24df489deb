//! Reads from the brokers: the topics of the saga, the relay's checkpoints and dead letters, lags, and the work queue.
//!
//! * Kafka is read without committing anything; those functions block.
//! * Parked records, acts of operators and dead letters belong to no saga topic, and still count as members of their chain.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::{Brokers, rabbitmq};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use saga::contract::{BALANCE_TOPIC, OPERATOR_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, SERVICE_TOPIC};
use serde::Deserialize;

use super::events::{FlaggedRecord, PublishedEvents, Record};
use super::relay::{Checkpoint, Checkpoints, DEAD_LETTER_TOPIC, STATE_TOPIC};
use crate::audit::targets::{Target, Targets};
use crate::topics::{self, SAGA_TOPICS};

/// The time of each node of RabbitMQ to take a connection, and of all of it.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);

/// A consumer group, and the topics that it subscribes to.
pub type Group = (String, &'static [&'static str]);

/// Each service's group.
const GROUPS: [(&str, &[&str]); 3] = [
    ("payments-svc", &[BALANCE_TOPIC, PAYMENT_RESULT_TOPIC]),
    ("balance-svc", &[PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC]),
    ("processor-svc", &[PAYMENT_TOPIC]),
];

/// The lag of a consumer group.
#[derive(Clone, Debug)]
pub struct GroupLag {
    pub group: String,
    /// Records that the group has not applied.
    pub lag: i64,
    /// Records on the topics that it subscribes to.
    pub records: i64,
}

/// Everything on Kafka.
#[derive(Debug, Default)]
pub struct KafkaContents {
    pub events: PublishedEvents,
    /// Rows that the relay could not emit.
    pub dead_letters: Vec<FlaggedRecord>,
    pub checkpoints: Vec<Checkpoint>,
}

/// Reads every topic to its present end, except the records that are `explained`. Blocking.
///
/// # Errors
/// When Kafka does not answer, or a checkpoint or dead letter cannot be parsed.
pub fn read_kafka(
    brokers: &Brokers,
    targets: &Targets,
    explained: BTreeSet<String>,
) -> Result<KafkaContents> {
    let events = PublishedEvents::except(explained);
    let checkpoints = checkpoints(brokers, targets)?;
    let mut contents = KafkaContents { events, checkpoints, ..KafkaContents::default() };
    for topic in SAGA_TOPICS {
        topics::visit(brokers, &targets.topic(topic), |message| {
            with_record(topic, message, |record| contents.events.add(record));
            Ok(())
        })?;
        topics::visit(brokers, &format!("{}.parked", targets.topic(topic)), |message| {
            with_record(topic, message, |record| contents.events.add_to_chain(record));
            Ok(())
        })?;
    }
    topics::visit(brokers, &format!("{}.parked", targets.queue), |message| {
        with_record(&targets.queue, message, |record| contents.events.add_to_chain(record));
        Ok(())
    })?;
    topics::visit(brokers, &targets.topic(OPERATOR_TOPIC), |message| {
        with_record(OPERATOR_TOPIC, message, |record| contents.events.add_to_chain(record));
        Ok(())
    })?;
    topics::visit(brokers, &targets.topic(DEAD_LETTER_TOPIC), |message| {
        add_dead_letter(message, &mut contents).context("a dead letter cannot be parsed")
    })?;
    Ok(contents)
}

#[derive(Deserialize)]
struct DeadLetter {
    source: String,
    destination: String,
    key: Option<String>,
    #[serde(default)]
    reason: String,
    /// The record ends the halt of its key.
    #[serde(default)]
    release: bool,
}

fn add_dead_letter(message: &BorrowedMessage<'_>, contents: &mut KafkaContents) -> Result<()> {
    let Some(value) = message.payload() else { return Ok(()) };
    let dead_letter: DeadLetter = serde_json::from_slice(value)?;
    with_record(DEAD_LETTER_TOPIC, message, |record| {
        contents.events.add_to_chain(&Record { source: Some(&dead_letter.source), ..record.clone() });
        if !dead_letter.release {
            let DeadLetter { destination, key, reason, .. } = &dead_letter;
            let why = format!("{destination}, key {}: {reason}", key.as_deref().unwrap_or("unknown"));
            contents.dead_letters.push(FlaggedRecord { at: record.at(), why });
        }
    });
    Ok(())
}

fn with_record(topic: &str, message: &BorrowedMessage<'_>, take: impl FnOnce(&Record<'_>)) {
    let mut record = Record {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().unwrap_or_default(),
        value: message.payload().unwrap_or_default(),
        ..Record::default()
    };
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        let text = header.value.and_then(|value| std::str::from_utf8(value).ok());
        match header.key {
            "ce_id" => record.id = text,
            "ce_type" => record.event_type = text,
            "ce_source" => record.source = text,
            "pg_chain" => record.chain = text,
            "pg_position" => record.position = text,
            _ => {}
        }
    }
    take(&record);
}

/// Reads the relay's checkpoint of each source. Blocking.
pub fn checkpoints(brokers: &Brokers, targets: &Targets) -> Result<Vec<Checkpoint>> {
    let mut checkpoints = Checkpoints::default();
    topics::visit(brokers, &targets.topic(STATE_TOPIC), |message| {
        let key = String::from_utf8_lossy(message.key().unwrap_or_default());
        checkpoints.add(&key, message.payload())
    })?;
    Ok(checkpoints.all())
}

/// Reads the lag of each group. Blocking.
pub fn group_lags(brokers: &Brokers, targets: &Targets, groups: &[Group]) -> Result<Vec<GroupLag>> {
    let lag = |(group, topics): &Group| {
        let topics: Vec<String> = topics.iter().map(|topic| targets.topic(topic)).collect();
        let (lag, records) = topics::lag(brokers, group, &topics)?;
        Ok(GroupLag { group: group.clone(), lag, records })
    };
    groups.iter().map(lag).collect()
}

/// Every group, with those of the search index and of the notifier where they are part of the system.
pub fn groups(targets: &Targets, search: Option<String>) -> Vec<Group> {
    let services = GROUPS.into_iter().map(|(name, topics)| (name.to_owned(), topics));
    let search = search.map(|name| -> Group { (name, &[PAYMENT_TOPIC, SERVICE_TOPIC]) });
    let notifier = targets.address(Target::Notifier);
    let notifier = notifier.map(|_| -> Group { ("notifier".to_owned(), &[PAYMENT_TOPIC]) });
    services.chain(search).chain(notifier).collect()
}

/// Counts the messages in the work queue.
pub async fn queue_depth(amqp_url: &str, queue: &str) -> Result<u32> {
    let ask = async {
        let connection = rabbitmq::connect(amqp_url, "coroctl", NODE_TIMEOUT).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        let closed = connection.close(200, "done".into()).await;
        let count = found?.message_count();
        closed?;
        anyhow::Ok(count)
    };
    let count = tokio::time::timeout(QUEUE_TIMEOUT, ask).await;
    let count = count.with_context(|| format!("RabbitMQ does not answer within {QUEUE_TIMEOUT:?}"))?;
    count.with_context(|| format!("cannot read the length of queue {queue}"))
}
