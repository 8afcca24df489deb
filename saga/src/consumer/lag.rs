//! The offsets of a group, seen from outside of it: how far it is behind, and whether it has reached a place.
//!
//! * It asks the brokers only when it is called, and joins no group.
//! * Every call blocks, for some seconds at most.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::MetadataPartition;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Subscription;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The group of a subscription, and its topics.
pub struct GroupOffsets {
    consumer: BaseConsumer,
    topics: Vec<String>,
}

/// The first and the next offset of each partition, at one moment.
pub struct Ends(BTreeMap<(String, i32), (i64, i64)>);

impl GroupOffsets {
    /// # Errors
    /// When a setting of the client is not usable.
    pub fn new(subscription: &Subscription) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config.set("reconnect.backoff.max.ms", "1000");
        subscription.brokers.apply(&mut config);
        config.set("group.id", &subscription.group_id).set("enable.auto.commit", "false");
        let consumer = config.create().context("cannot create the Kafka client")?;
        Ok(Self { consumer, topics: subscription.topics.clone() })
    }

    /// The ends of the topics now. A topic that does not exist yet has none.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn ends(&self) -> anyhow::Result<Ends> {
        let mut ends = BTreeMap::new();
        for name in &self.topics {
            let metadata = self.consumer.fetch_metadata(Some(name), ANSWER_TIMEOUT)?;
            let topic = metadata.topics().first().context("Kafka answers for no topic")?;
            for id in topic.partitions().iter().map(MetadataPartition::id) {
                let marks = self.consumer.fetch_watermarks(name, id, ANSWER_TIMEOUT)?;
                ends.insert((name.clone(), id), marks);
            }
        }
        Ok(Ends(ends))
    }

    /// The records up to `ends` that the group has not applied and committed.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn behind(&self, ends: &Ends) -> anyhow::Result<i64> {
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in ends.0.keys() {
            asked.add_partition(topic, *partition);
        }
        if asked.count() == 0 {
            return Ok(0);
        }
        let committed = self.consumer.committed_offsets(asked, ANSWER_TIMEOUT)?;
        let behind = ends.0.iter().map(|((topic, partition), (first, next))| {
            let found = committed.find_partition(topic, *partition).map(|element| element.offset());
            let applied = match found {
                Some(Offset::Offset(offset)) => offset,
                // Nothing was ever applied.
                Some(_) | None => *first,
            };
            (next - applied).max(0)
        });
        Ok(behind.sum())
    }
}
