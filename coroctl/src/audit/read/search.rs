//! Reads the search index: all of its documents, and the consumer group that fills it.
//!
//! * Documents are read page by page in the order of their ids, after a refresh: what was written before is seen.
//! * Of a document only version and fingerprint are kept, as of a row.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saga::contract::{self, EventBody};
use saga::search_index::{Body, GROUP, KIND, Kind, Method, RECORD, SearchIndex};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::fingerprint;
use crate::audit::targets::{Target, Targets};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
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
}

fn index(targets: &Targets) -> Result<Option<SearchIndex>> {
    let url = targets.address(Target::Search);
    url.map(|url| SearchIndex::new(url, &targets.search.search_alias, REQUEST_TIMEOUT)).transpose()
}

/// The consumer group that fills the index; `None` without an address.
///
/// # Errors
/// When the index does not answer, or the alias does not lead to one index.
pub async fn group(targets: &Targets) -> Result<Option<String>> {
    let Some(index) = index(targets)? else { return Ok(None) };
    let path = format!("/{}/_settings/index.uuid", index.alias);
    let answer = index.send(Method::GET, &path, Body::None).await;
    let answer = answer.with_context(|| format!("the alias {} of the search index", index.alias))?;
    let indices = answer.as_object().filter(|indices| indices.len() == 1);
    let settings = indices.and_then(|indices| indices.values().next());
    let uuid = settings.and_then(|settings| settings.pointer("/settings/index/uuid")?.as_str());
    let uuid = uuid.with_context(|| format!("the alias {} does not lead to one index", index.alias))?;
    Ok(Some(format!("{GROUP}-{uuid}")))
}

/// Every document; none without an address.
///
/// # Errors
/// When the index does not answer, or a document is none of ours.
pub async fn read(targets: &Targets) -> Result<SearchDocuments> {
    let Some(index) = index(targets)? else { return Ok(SearchDocuments::default()) };
    let refresh = format!("/{}/_refresh", index.alias);
    index.send(Method::POST, &refresh, Body::None).await.context("cannot refresh the search index")?;
    let mut documents = SearchDocuments::default();
    for (id, document) in all::<contract::Payment>(&index, targets, Kind::Payment, "payment_id").await? {
        documents.payments.insert(id.parse().context("the id of a payment's document")?, document);
    }
    documents.services = all::<contract::Service>(&index, targets, Kind::Service, "service_id").await?;
    Ok(documents)
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
        let mut query = json!({
            "size": PAGE_DOCUMENTS,
            "track_total_hits": false,
            "sort": [{order: "asc"}],
            "query": {"term": {KIND: kind.as_str()}},
        });
        if !after.is_null() {
            query["search_after"] = after;
        }
        let path = format!("/{}/_search?allow_partial_search_results=false", index.alias);
        let mut answer = index.send(Method::POST, &path, Body::Json(query)).await?;
        let hits: Vec<Hit> = serde_json::from_value(answer["hits"]["hits"].take())
            .context("an answer of the search index has no hits")?;
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
