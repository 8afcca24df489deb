//! Reads the search index: all of its documents, the messages that search-indexer has parked, and the consumer group that
//! fills it.
//!
//! * Documents are read page by page in the order of their ids, after a refresh: what was written before is seen.
//! * Of a document only version and fingerprint are kept, as of a row.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use saga::contract::{self, EventBody};
use saga::search_index::{Body, GROUP, KIND, Kind, Method, RECORD, SearchIndex};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::{ParkedMessage, fingerprint};
use crate::audit::connections::search_index;
use crate::audit::targets::Targets;

/// Documents of a page; OpenSearch gives 10,000 at most.
const PAGE_DOCUMENTS: usize = 5_000;

/// A document of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub version: u32,
    pub fingerprint: u64,
    /// The place of its event on Kafka: topic/partition/offset, without the prefix of topics.
    pub record: String,
}

#[derive(Debug, Default)]
pub struct SearchDocuments {
    pub payments: HashMap<Uuid, Document>,
    /// By service id.
    pub services: HashMap<String, Document>,
    /// In an index of their own.
    pub parked: Vec<ParkedMessage>,
}

/// The consumer group that fills the index; `None` without one.
///
/// # Errors
/// When the index does not answer, or the alias does not lead to one index.
pub async fn group(index: Option<&SearchIndex>) -> Result<Option<String>> {
    let Some(index) = index else { return Ok(None) };
    let live =
        index.live().await.with_context(|| format!("the alias {} of the search index", index.alias))?;
    let live = live.with_context(|| format!("the alias {} leads to no search index", index.alias))?;
    Ok(Some(live.group(GROUP)))
}

/// Every document; none without an index.
///
/// # Errors
/// When the index does not answer, or a document is none of ours.
pub async fn read(index: Option<&SearchIndex>, targets: &Targets) -> Result<SearchDocuments> {
    let Some(index) = index else { return Ok(SearchDocuments::default()) };
    let refresh = format!("/{}/_refresh", index.alias);
    index.send(Method::POST, &refresh, Body::None).await.context("cannot refresh the search index")?;
    let mut documents = SearchDocuments::default();
    for (id, document) in all::<contract::Payment>(index, targets, Kind::Payment, "payment_id").await? {
        documents.payments.insert(id.parse().context("the id of a payment's document")?, document);
    }
    documents.services = all::<contract::Service>(index, targets, Kind::Service, "service_id").await?;
    documents.parked = parked_in(index).await?;
    Ok(documents)
}

/// The messages that search-indexer has parked; none without an address.
///
/// # Errors
/// When the index does not answer.
pub async fn parked(targets: &Targets) -> Result<Vec<ParkedMessage>> {
    match search_index(targets)? {
        Some(index) => parked_in(&index).await,
        None => Ok(Vec::new()),
    }
}

async fn parked_in(index: &SearchIndex) -> Result<Vec<ParkedMessage>> {
    let name = index.parked_index();
    match index.send(Method::POST, &format!("/{name}/_refresh"), Body::None).await {
        Ok(_) => {}
        // Nothing was ever parked, nor indexed.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot refresh the index of parked messages"),
    }
    let mut parked = Vec::new();
    let mut after = Value::Null;
    loop {
        let query = json!({"_source": ["reason", "headers.ce_subject"], "sort": [{"_seq_no": "asc"}]});
        let hits = page(index, &name, query, after).await.context("the index of parked messages")?;
        let Some(last) = hits.last() else { return Ok(parked) };
        after = last.sort.clone();
        for Hit { id, source, .. } in hits {
            let text = |pointer| source.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let (reason, subject) = (text("/reason").unwrap_or_default(), text("/headers/ce_subject"));
            parked.push(ParkedMessage { shard: None, parked_id: id, reason, subject, is_dealt_with: false });
        }
    }
}

/// The fields of a hit.
#[derive(Deserialize)]
struct Hit {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_source")]
    source: Value,
    sort: Value,
}

/// The hits of a query that follow the one with the sort values `after`.
async fn page(index: &SearchIndex, name: &str, mut query: Value, after: Value) -> Result<Vec<Hit>> {
    query["size"] = json!(PAGE_DOCUMENTS);
    query["track_total_hits"] = json!(false);
    if !after.is_null() {
        query["search_after"] = after;
    }
    let path = format!("/{name}/_search?allow_partial_search_results=false");
    let mut answer = index.send(Method::POST, &path, Body::Json(query)).await?;
    let hits = answer.pointer_mut("/hits/hits").map(Value::take).unwrap_or_default();
    serde_json::from_value(hits).context("an answer of the search index has no hits")
}

/// Every document of a kind, by the subject of its event.
async fn all<T: EventBody + Serialize>(
    index: &SearchIndex,
    targets: &Targets,
    kind: Kind,
    order: &str,
) -> Result<HashMap<String, Document>> {
    let mut documents = HashMap::new();
    let mut after = Value::Null;
    loop {
        let query = json!({"sort": [{order: "asc"}], "query": {"term": {KIND: kind.as_str()}}});
        let hits = page(index, &index.alias, query, after).await?;
        let Some(last) = hits.last() else { return Ok(documents) };
        after = last.sort.clone();
        for Hit { id, mut source, .. } in hits {
            let version = source["version"].as_u64().and_then(|version| u32::try_from(version).ok());
            let version = version.with_context(|| format!("document {id} has no version"))?;
            let record = source[RECORD].take();
            let record = record.as_str().with_context(|| format!("document {id} names no record"))?;
            let record = record.strip_prefix(&targets.topic_prefix).unwrap_or(record).to_owned();
            let body: T = serde_json::from_value(source).with_context(|| format!("document {id}"))?;
            let document = Document { version, fingerprint: fingerprint(&body)?, record };
            let known = documents.insert(body.subject(), document);
            ensure!(known.is_none(), "two documents are about {}", body.subject());
        }
    }
}
