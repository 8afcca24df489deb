//! Reads from the brokers what the checks need: the topics of the saga, what the relay remembers and could not
//! tell, how far each group has come, and what waits in the work queue.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use saga::contract::{BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde::Deserialize;

use super::places::Places;
use super::relay::{DEAD_LETTER_TOPIC, Memories, Memory, STATE_TOPIC};
use super::told::{Foreign, Record, Told};
use crate::topics::{self, SAGA_TOPICS};

const BROKER_MAX: Duration = Duration::from_secs(15);

/// Each service's group, and what it hears.
pub const GROUPS: [(&str, &[&str]); 3] = [
    ("payments-svc", &[BALANCE_TOPIC, PAYMENT_RESULT_TOPIC]),
    ("balance-svc", &[PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC]),
    ("processor-svc", &[PAYMENT_TOPIC]),
];

/// How far a group has come.
#[derive(Clone, Debug)]
pub struct Lag {
    pub group: String,
    /// Records it has not applied.
    pub behind: i64,
    pub there: i64,
}

/// All that is on Kafka.
#[derive(Debug, Default)]
pub struct Heard {
    pub told: Told,
    /// What the relay could not tell.
    pub letters: Vec<Foreign>,
    pub memories: Vec<Memory>,
}

/// Blocking: reads every topic to its present end, beside the records that are `explained`.
pub fn kafka(brokers: &str, places: &Places, explained: BTreeSet<String>) -> Result<Heard> {
    let told = Told::beside(explained);
    let mut heard = Heard { told, memories: memories(brokers, places)?, ..Heard::default() };
    for topic in SAGA_TOPICS {
        topics::visit(brokers, &places.topic(topic), |message| {
            with_record(topic, message, |record| heard.told.hear(record));
            Ok(())
        })?;
        // Not of the saga, but links of the chains.
        topics::visit(brokers, &format!("{}.parked", places.topic(topic)), |message| {
            with_record(topic, message, |record| heard.told.link(record));
            Ok(())
        })?;
    }
    topics::visit(brokers, &format!("{}.parked", places.queue), |message| {
        with_record(&places.queue, message, |record| heard.told.link(record));
        Ok(())
    })?;
    topics::visit(brokers, &places.topic(DEAD_LETTER_TOPIC), |message| {
        letter(message, &mut heard).context("a dead letter")
    })?;
    Ok(heard)
}

#[derive(Deserialize)]
struct Letter {
    source: String,
    destination: String,
    key: Option<String>,
    #[serde(default)]
    reason: String,
    /// Says that the key may be told again.
    #[serde(default)]
    release: bool,
}

fn letter(message: &BorrowedMessage<'_>, heard: &mut Heard) -> Result<()> {
    let Some(value) = message.payload() else { return Ok(()) };
    let letter: Letter = serde_json::from_slice(value)?;
    with_record(DEAD_LETTER_TOPIC, message, |record| {
        heard.told.link(&Record { source: Some(&letter.source), ..record.clone() });
        if !letter.release {
            let Letter { destination, key, reason, .. } = &letter;
            let why = format!("{destination}, key {}: {reason}", key.as_deref().unwrap_or("unknown"));
            heard.letters.push(Foreign { at: record.at(), why });
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
            "pg_position" => record.position = text,
            _ => {}
        }
    }
    take(&record);
}

/// Blocking: what the relay remembers of each source.
pub fn memories(brokers: &str, places: &Places) -> Result<Vec<Memory>> {
    let mut memories = Memories::default();
    topics::visit(brokers, &places.topic(STATE_TOPIC), |message| {
        let key = String::from_utf8_lossy(message.key().unwrap_or_default());
        memories.add(&key, message.payload())
    })?;
    Ok(memories.all())
}

/// Blocking: how far each group is behind.
pub fn lags(brokers: &str, places: &Places) -> Result<Vec<Lag>> {
    let lag = |(group, heard): (&str, &[&str])| {
        let topics: Vec<String> = heard.iter().map(|topic| places.topic(topic)).collect();
        let (behind, there) = topics::lag(brokers, group, &topics)?;
        Ok(Lag { group: group.to_owned(), behind, there })
    };
    GROUPS.into_iter().map(lag).collect()
}

/// Messages that wait in the work queue.
pub async fn waiting(amqp_url: &str, queue: &str) -> Result<u32> {
    let ask = async {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), look, FieldTable::default()).await;
        let closed = connection.close(200, "seen".into()).await;
        let count = found?.message_count();
        closed.map(|()| count)
    };
    let count = tokio::time::timeout(BROKER_MAX, ask).await.context("RabbitMQ does not answer")?;
    count.with_context(|| format!("queue {queue}"))
}
