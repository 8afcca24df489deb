//! Stretches of the log in which tables with routes may have sent nothing. No chain shows them: what was not sent has no
//! position. The relay writes them to the state topic when it notices.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Serialize;

use super::Verdict;
use crate::coverage::record::{Break, Record, record_key};
use crate::routes::{Routes, Source};
use crate::snapshot::{Position, record_table};
use crate::topics::Reader;

#[derive(Debug, Clone, Serialize)]
pub struct Stretch {
    pub what: String,
    /// Everything was sent up to this commit.
    pub since: String,
    /// All rows were read again as they were at this position; `None`: they were not read again yet.
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

/// By CloudEvents source. `None`: there is no state topic.
pub fn read(brokers: &str, routes: &Routes) -> Result<Option<BTreeMap<String, Vec<Stretch>>>> {
    let key = |source: &Source| format!("{}/{}", source.name.get_ref(), source.slot.get_ref());
    let sources: Vec<(String, String)> =
        routes.sources.iter().map(|source| (key(source), source.event_source.get_ref().clone())).collect();
    let mut records: BTreeMap<String, Record> = BTreeMap::new();
    // Memory and table.
    let mut unread: BTreeSet<(String, String)> = BTreeSet::new();
    let topic = routes.relay.state_topic.get_ref();
    let read = Reader::new(brokers, routes).read(topic, 0, |_, found, value| {
        let found = found.unwrap_or_default();
        for (key, _) in &sources {
            if found == record_key(key).as_bytes() {
                match value.map(serde_json::from_slice).transpose().context("publication record")? {
                    Some(record) => records.insert(key.clone(), record),
                    None => records.remove(key),
                };
            } else if let Some(table) = record_table(key, found) {
                let position: Option<Position> =
                    value.map(serde_json::from_slice).transpose().context("snapshot record")?;
                let table = (key.clone(), table.to_owned());
                if position.is_some_and(|position| position.heals && !position.done) {
                    unread.insert(table);
                } else {
                    unread.remove(&table);
                }
            }
        }
        Ok(())
    });
    match read {
        Ok(_) => {}
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let all = |(key, source): (String, String)| {
        let record = records.remove(&key)?;
        Some((source, Stretch::all(record, |table| !unread.contains(&(key.clone(), table.to_owned())))))
    };
    Ok(Some(sources.into_iter().filter_map(all).collect()))
}

fn is_missing(error: &anyhow::Error) -> bool {
    use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(UnknownPartition | UnknownTopic | UnknownTopicOrPartition))
}

/// Adds the stretches to the verdicts: what is not read again yet is not whole.
pub fn judge(verdicts: &mut Vec<Verdict>, stretches: BTreeMap<String, Vec<Stretch>>) {
    for (source, stretches) in stretches.into_iter().filter(|(_, stretches)| !stretches.is_empty()) {
        let index = verdicts.iter().position(|verdict| verdict.source == source).unwrap_or_else(|| {
            verdicts.push(Verdict::of(source));
            verdicts.len() - 1
        });
        let Some(verdict) = verdicts.get_mut(index) else { continue };
        verdict.whole &= stretches.iter().all(|stretch| stretch.until.is_some());
        verdict.may_be_missing = stretches;
    }
}
