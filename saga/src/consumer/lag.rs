//! The offsets of a group, seen from outside of it: how far it is behind, and whether it has reached a place.
//!
//! * It asks the brokers only when it is called, and joins no group.
//! * Every call blocks: for [`ANSWER_TIMEOUT`] at each request that is not answered in time.
//! * After an error the next call has a new client, since a client may have lost its brokers for good
//!   (see [`client`](super::client)).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Subscription;
use super::client::settings;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the client is polled before a request: until then it queues its log lines and errors.
const EVENTS_TIMEOUT: Duration = Duration::from_millis(10);

/// The group of a subscription, and its topics.
pub struct GroupOffsets {
    config: ClientConfig,
    topics: Vec<String>,
    client: Mutex<Option<BaseConsumer>>,
}

/// How far a group is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionProgress {
    pub topic: String,
    pub partition: i32,
    /// The next record that the group applies; the first one there is, if nothing was ever applied.
    pub committed: i64,
    /// The records that it has not applied and committed.
    pub behind: i64,
}

/// The first and the next offset of each partition, at one moment.
#[derive(Debug)]
pub struct Ends(pub(super) BTreeMap<(String, i32), (i64, i64)>);

impl Ends {
    /// Whether Kafka has a topic of this name.
    pub fn has_topic(&self, name: &str) -> bool {
        self.0.keys().any(|(topic, _)| topic == name)
    }
}

impl GroupOffsets {
    pub fn new(subscription: &Subscription) -> Self {
        let mut config = settings(&subscription.brokers, &subscription.group_id);
        config.set("enable.auto.commit", "false");
        Self { config, topics: subscription.topics.clone(), client: Mutex::new(None) }
    }

    /// The ends of the topics now. A topic that does not exist yet has none.
    ///
    /// # Errors
    /// When Kafka does not answer, or does not let us read a topic.
    pub fn ends(&self) -> anyhow::Result<Ends> {
        self.ask(|client| {
            let mut ends = BTreeMap::new();
            for name in &self.topics {
                let metadata = client.fetch_metadata(Some(name), ANSWER_TIMEOUT)?;
                let topic = metadata.topics().first().context("Kafka answers for no topic")?;
                for id in partitions(topic)? {
                    let marks = client.fetch_watermarks(name, id, ANSWER_TIMEOUT)?;
                    ends.insert((name.clone(), id), marks);
                }
            }
            Ok(Ends(ends))
        })
    }

    /// The records up to `ends` that the group has not applied and committed.
    ///
    /// # Errors
    /// When Kafka does not answer, or does not let us read the group.
    pub fn behind(&self, ends: &Ends) -> anyhow::Result<i64> {
        Ok(self.progress(ends)?.iter().map(|partition| partition.behind).sum())
    }

    /// How far the group is towards `ends`, by partition.
    ///
    /// # Errors
    /// When Kafka does not answer, or does not let us read the group.
    pub fn progress(&self, ends: &Ends) -> anyhow::Result<Vec<PartitionProgress>> {
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in ends.0.keys() {
            asked.add_partition(topic, *partition);
        }
        if asked.count() == 0 {
            return Ok(Vec::new());
        }
        self.ask(|client| {
            let offsets = client.committed_offsets(asked, ANSWER_TIMEOUT)?;
            let mut progress = Vec::with_capacity(ends.0.len());
            for ((topic, partition), (first, next)) in &ends.0 {
                let element = offsets.find_partition(topic, *partition);
                let committed = match element.map(|element| element.error().map(|()| element.offset())) {
                    Some(Ok(Offset::Offset(offset))) => offset,
                    // Nothing was ever applied.
                    Some(Ok(_)) | None => *first,
                    Some(Err(error)) => return Err(error).context("the group's offsets cannot be read"),
                };
                let behind = (next - committed).max(0);
                progress.push(PartitionProgress {
                    topic: topic.clone(),
                    partition: *partition,
                    committed,
                    behind,
                });
            }
            Ok(progress)
        })
    }

    /// Asks by the client of the last call, or by a new one.
    fn ask<T>(&self, question: impl FnOnce(&BaseConsumer) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match kept.take() {
            Some(client) => client,
            None => self.config.create().context("cannot create the Kafka client")?,
        };
        // It has no partitions, so no record comes.
        if let Some(Err(error)) = client.poll(EVENTS_TIMEOUT) {
            tracing::debug!(%error, "the Kafka client that asks for offsets reports an error");
        }
        let answer = question(&client);
        match &answer {
            Ok(_) => *kept = Some(client),
            // Its end may take as long as the brokers stay away.
            Err(_) => {
                std::thread::Builder::new().name("old client".into()).spawn(move || drop(client))?;
            }
        }
        answer
    }
}

/// The ids of the partitions; none of a topic that does not exist yet.
///
/// # Errors
/// When Kafka does not give them, as of a topic that may not be read.
pub fn partitions(topic: &MetadataTopic) -> anyhow::Result<Vec<i32>> {
    match topic.error().map(RDKafkaErrorCode::from) {
        None => Ok(topic.partitions().iter().map(MetadataPartition::id).collect()),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(Vec::new()),
        Some(error) => bail!("Kafka does not give the partitions of {}: {error}", topic.name()),
    }
}
