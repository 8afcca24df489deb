//! Reads the state topic for the commands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use brokers::Brokers;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::checkpoint::state::{Checkpoint, load};
use crate::routes::{Routes, Source};
use crate::sinks::kafka::client_config;
use crate::sinks::topics::Reader;
use crate::source::backfill::snapshot::{TableProgress, record_table};
use crate::source::coverage::record::{Record, record_key};

/// How long the brokers may take to list the topics.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(15);

/// The checkpoints, by `source/slot`.
pub fn checkpoints(brokers: &Brokers, routes: &Routes) -> Result<BTreeMap<String, Checkpoint>> {
    let topic = routes.relay.state_topic.get_ref();
    let mut checkpoints: BTreeMap<String, Option<Checkpoint>> =
        routes.sources.iter().map(|source| (source.checkpoint_key(), None)).collect();
    Reader::new(brokers, routes).read(topic, 0, |_, key, value| {
        // Other records are of sources and of tables that nobody asks for here.
        let known =
            std::str::from_utf8(key.unwrap_or_default()).ok().and_then(|key| checkpoints.get_mut(key));
        if let Some(checkpoint) = known {
            let record = value.map(serde_json::from_slice).transpose().context("state record")?;
            *checkpoint = load(checkpoint.take(), record);
        }
        Ok(())
    })?;
    Ok(checkpoints.into_iter().filter_map(|(name, checkpoint)| Some((name, checkpoint?))).collect())
}

/// The checkpoint of a source. There is none where there is no state topic.
pub fn checkpoint(brokers: &Brokers, routes: &Routes, source: &Source) -> Result<Option<Checkpoint>> {
    let topic = routes.relay.state_topic.get_ref();
    let consumer: BaseConsumer = client_config(brokers, routes).create().context("no Kafka consumer")?;
    let metadata = consumer.fetch_metadata(None, TOPICS_TIMEOUT).context("the brokers do not answer")?;
    if !metadata.topics().iter().any(|known| known.name() == topic) {
        return Ok(None);
    }
    Ok(checkpoints(brokers, routes)?.remove(&source.checkpoint_key()))
}

/// The records of the sources' publications.
#[derive(Debug, Default)]
pub struct PublicationRecords {
    /// By `source/slot`.
    pub records: BTreeMap<String, Record>,
    /// By `source/slot`, the tables whose rows are still to be read again: the publication left something out of them.
    pub unread: BTreeSet<(String, String)>,
}

pub fn records(brokers: &Brokers, routes: &Routes) -> Result<PublicationRecords> {
    let names: Vec<String> = routes.sources.iter().map(Source::checkpoint_key).collect();
    let (mut records, mut unread) = (BTreeMap::new(), BTreeSet::new());
    let topic = routes.relay.state_topic.get_ref();
    Reader::new(brokers, routes).read(topic, 0, |_, key, value| {
        let key = key.unwrap_or_default();
        for name in &names {
            if key == record_key(name).as_bytes() {
                match value.map(serde_json::from_slice).transpose().context("publication record")? {
                    Some(record) => records.insert(name.clone(), record),
                    None => records.remove(name),
                };
            } else if let Some(table) = record_table(name, key) {
                let position: Option<TableProgress> =
                    value.map(serde_json::from_slice).transpose().context("snapshot record")?;
                let table = (name.clone(), table.to_owned());
                if position.is_some_and(|position| position.heals && !position.done) {
                    unread.insert(table);
                } else {
                    unread.remove(&table);
                }
            }
        }
        Ok(())
    })?;
    Ok(PublicationRecords { records, unread })
}
