//! Reads the stretches of the WAL in which routed tables may have sent nothing.
//!
//! * No chain shows them, since changes that were not sent have no position. The relay writes them to the state topic.
//! * A stretch ends where all rows of its tables were read again.

use std::collections::BTreeMap;

use anyhow::Result;
use brokers::Brokers;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Serialize;

use super::Verdict;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::refusal::Break;
use crate::commands::state_topic::{self, PublicationRecords};
use crate::routes::{Routes, Source};
use crate::source::coverage::record::Record;

#[derive(Debug, Clone, Serialize)]
pub struct Stretch {
    pub what: String,
    /// Everything was sent up to this commit.
    pub since: String,
    /// All rows were read again as they were at this position; `None`: not yet.
    pub until: Option<String>,
}

impl Stretch {
    /// `read`: whether all rows of a table were.
    fn all(record: Record, read: impl Fn(&str) -> bool) -> Vec<Stretch> {
        let stretch = |Break { what, since }, until| Stretch { what, since: since.to_string(), until };
        let healed = record.healed.into_iter().map(|healed| {
            let over = healed.tables.iter().all(|table| read(table));
            stretch(healed.broken, over.then(|| healed.until.to_string()))
        });
        let broken = record.broken.into_iter().map(|broken| stretch(broken, None));
        healed.chain(broken).collect()
    }
}

/// By source. `None`: there is no state topic.
pub fn read(brokers: &Brokers, routes: &Routes) -> Result<Option<BTreeMap<String, Vec<Stretch>>>> {
    let PublicationRecords { mut records, unread } = match state_topic::records(brokers, routes) {
        Ok(records) => records,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let of = |source: &Source| {
        let key = source.checkpoint_key();
        let record = records.remove(&key)?;
        let is_read = |table: &str| !unread.contains(&(key.clone(), table.to_owned()));
        let mut stretches = Stretch::all(record, is_read);
        // Earlier releases do not record the tables that a stretch waits for.
        if unread.iter().any(|(name, _)| *name == key)
            && stretches.iter().all(|stretch| stretch.until.is_some())
            && let Some(last) = stretches.last_mut()
        {
            last.until = None;
        }
        Some((source.name.get_ref().clone(), stretches))
    };
    Ok(Some(routes.sources.iter().filter_map(of).collect()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(UnknownPartition | UnknownTopic | UnknownTopicOrPartition))
}

/// Adds the stretches of each source to the verdict of its last chain, which then is not whole if one is open.
pub fn judge(verdicts: &mut Vec<Verdict>, stretches: BTreeMap<String, Vec<Stretch>>) {
    for (name, stretches) in stretches.into_iter().filter(|(_, stretches)| !stretches.is_empty()) {
        // The chains of a source sort by time.
        let last = verdicts.iter().rposition(|verdict| verdict.chain.source() == Some(&name));
        let index = last.unwrap_or_else(|| {
            verdicts.push(Verdict::of(name, ChainName::default()));
            verdicts.len() - 1
        });
        let Some(verdict) = verdicts.get_mut(index) else { continue };
        verdict.whole &= stretches.iter().all(|stretch| stretch.until.is_some());
        verdict.may_be_missing = stretches;
    }
}
