//! All requests to the search index.
//!
//! * A batch is one bulk request. An external version that is not higher is a conflict, and a conflict is done.
//! * The index that searches use is the one behind the alias. Its unique id names its consumer group, so the offsets of a
//!   group are always those of one index: whoever makes an index anew, for whatever reason, begins at the first event.
//! * Parked messages have an index of their own, `<alias>-parked`, which no rebuild touches.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saga::parked::Parked;
use saga::search_index::{Body, Method, SearchError, SearchIndex, Settings};
use serde_json::{Value, json};

use crate::events::Document;

/// A bulk request of a thousand documents takes tens of milliseconds; on a busy server, seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Settings and mapping of an index.
const INDEX: &str = include_str!("index.json");
const PARKED_INDEX: &str = r#"{
    "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
    "mappings": {"dynamic": false, "properties": {
        "source": {"type": "keyword"}, "type": {"type": "keyword"}, "reason": {"type": "keyword", "ignore_above": 1000}}}
}"#;
/// The server's name of the error when an index is there already.
const EXISTS: &str = "resource_already_exists_exception";
/// What is wrong with a document rather than with the server.
const DOCUMENT_ERRORS: [&str; 3] =
    ["mapper_parsing_exception", "document_parsing_exception", "illegal_argument_exception"];

/// An index, by its name and by the id that no other index ever has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    pub uuid: String,
}

/// What became of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Applied,
    /// The index has this version, or a higher one.
    Already,
    /// It cannot be indexed, ever; the server's name of the error.
    Refused(String),
}

#[derive(Clone)]
pub struct Store {
    index: SearchIndex,
}

impl Store {
    /// # Errors
    /// When no URL is set, or the client cannot be created.
    pub fn new(settings: &Settings) -> Result<Self> {
        let url = settings.search_url.as_deref().filter(|url| !url.is_empty());
        let url = url.context("SEARCH_URL is not set: where is the search index?")?;
        Ok(Self { index: SearchIndex::new(url, &settings.search_alias, REQUEST_TIMEOUT)? })
    }

    /// The index behind the alias; `None` if there is none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn live(&self) -> Result<Option<Index>> {
        self.named(&self.index.alias).await
    }

    /// The index behind the alias, made if there is none, and the index of parked messages.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn ensure(&self) -> Result<Index> {
        let parked: Value = serde_json::from_str(PARKED_INDEX)?;
        self.put(&self.parked_index(), parked).await?;
        if let Some(live) = self.live().await? {
            return Ok(live);
        }
        let name = format!("{}-1", self.index.alias);
        let mut first: Value = serde_json::from_str(INDEX)?;
        first["aliases"] = json!({ &self.index.alias: {} });
        self.put(&name, first).await?;
        if self.live().await?.is_none() {
            // It was there, and somebody has removed the alias.
            self.alias(json!([{"add": {"index": name, "alias": self.index.alias}}])).await?;
        }
        self.live().await?.context("the alias was made, and is not there: does somebody remove it?")
    }

    /// The index that follows `live`, made if it is not there: a rebuild that was interrupted goes on.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn next(&self, live: &Index) -> Result<Index> {
        let name = next_name(&self.index.alias, &live.name)?;
        self.put(&name, serde_json::from_str(INDEX)?).await?;
        self.named(&name).await?.with_context(|| format!("the index {name} was made, and is not there"))
    }

    /// Lets searches use `new`, at one moment, and deletes `old`.
    ///
    /// # Errors
    /// When the server does not answer, or refuses; searches then use `old` as before.
    pub async fn switch(&self, old: &Index, new: &Index) -> Result<()> {
        if self.live().await?.as_ref() == Some(new) {
            // Another rebuild has done it.
            return Ok(());
        }
        self.send(Method::POST, &format!("/{}/_refresh", new.name), Body::None).await?;
        let alias = &self.index.alias;
        let (add, remove) =
            (json!({"index": new.name, "alias": alias}), json!({"index": old.name, "alias": alias}));
        self.alias(json!([{"add": add}, {"remove": remove}])).await?;
        self.send(Method::DELETE, &format!("/{}", old.name), Body::None).await?;
        Ok(())
    }

    /// Writes documents into the index of this name.
    ///
    /// # Errors
    /// When the server does not answer, or could not write some of them now. Writing all of them again does no harm.
    pub async fn write(&self, index: &str, documents: &[&Document]) -> Result<Vec<Written>> {
        let mut lines = String::new();
        for Document { id, routing, version, source } in documents {
            let action = json!({"index": {"_id": id, "routing": routing, "version": version, "version_type": "external"}});
            push_lines(&mut lines, &action, source);
        }
        self.bulk(index, lines).await?.iter().map(written).collect()
    }

    /// Keeps messages that cannot be indexed. Parking a message twice changes nothing.
    ///
    /// # Errors
    /// When the server does not answer, or could not write some of them now.
    pub async fn park(&self, parked: &[Parked]) -> Result<()> {
        let mut lines = String::new();
        for message in parked {
            let Parked { parked_id, source, message_key, event_type, headers, body, reason } = message;
            let content = json!({
                "source": source, "message_key": message_key, "type": event_type, "headers": headers,
                "body": String::from_utf8_lossy(body), "reason": reason,
            });
            push_lines(&mut lines, &json!({"index": {"_id": parked_id}}), &content.to_string());
        }
        for item in self.bulk(&self.parked_index(), lines).await? {
            let written = written(&item)?;
            ensure!(written == Written::Applied, "a message cannot be parked: {written:?}");
        }
        for message in parked {
            tracing::error!(
                id = message.parked_id,
                reason = message.reason,
                "a message cannot be indexed and is parked; see the index of parked messages"
            );
        }
        Ok(())
    }

    fn parked_index(&self) -> String {
        format!("{}-parked", self.index.alias)
    }

    /// The results of a bulk request, in the order of its lines.
    async fn bulk(&self, index: &str, lines: String) -> Result<Vec<Value>> {
        if lines.is_empty() {
            return Ok(Vec::new());
        }
        let path = format!("/{index}/_bulk?filter_path=items.*.status,items.*.error.type");
        let mut answer = self.send(Method::POST, &path, Body::Lines(lines)).await?;
        match answer["items"].take() {
            Value::Array(items) => Ok(items.into_iter().map(|mut item| item["index"].take()).collect()),
            other => anyhow::bail!("the answer to a bulk request has no items: {other}"),
        }
    }

    /// Name and id of the index of this name or alias.
    async fn named(&self, name: &str) -> Result<Option<Index>> {
        let path = format!("/{name}/_settings/index.uuid");
        match self.index.send(Method::GET, &path, Body::None).await {
            Ok(answer) => index_of(&answer, name).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn alias(&self, actions: Value) -> Result<()> {
        self.send(Method::POST, "/_aliases", Body::Json(json!({ "actions": actions }))).await?;
        Ok(())
    }

    /// Makes an index, unless it is there.
    async fn put(&self, name: &str, content: Value) -> Result<()> {
        match self.index.send(Method::PUT, &format!("/{name}"), Body::Json(content)).await {
            Ok(_) => {
                tracing::info!(index = name, "an index was made");
                Ok(())
            }
            Err(error) if error.is_refusal(EXISTS) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot make the index {name}")),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Body) -> Result<Value, SearchError> {
        self.index.send(method, path, body).await
    }
}

fn push_lines(lines: &mut String, action: &Value, content: &str) {
    lines.push_str(&action.to_string());
    lines.push('\n');
    lines.push_str(content);
    lines.push('\n');
}

/// `{"coro-1":{"settings":{"index":{"uuid":"…"}}}}`.
fn index_of(answer: &Value, asked: &str) -> Result<Index> {
    let indices = answer.as_object().context("the settings of an index are an object")?;
    ensure!(indices.len() == 1, "{asked} leads to {} indices: let it lead to one", indices.len());
    let (name, settings) = indices.iter().next().context("the settings of an index name it")?;
    let uuid = settings.pointer("/settings/index/uuid").and_then(Value::as_str);
    let uuid = uuid.with_context(|| format!("the index {name} has no uuid"))?;
    Ok(Index { name: name.clone(), uuid: uuid.to_owned() })
}

/// The names of indices are numbered.
fn next_name(alias: &str, live: &str) -> Result<String> {
    let number = live.strip_prefix(alias).and_then(|rest| rest.strip_prefix('-')?.parse::<u32>().ok());
    let number = number.with_context(|| {
        format!("the alias {alias} leads to {live}, which search-indexer did not make: name another alias")
    })?;
    Ok(format!("{alias}-{}", number + 1))
}

/// # Errors
/// When the server could not write the document now.
fn written(item: &Value) -> Result<Written> {
    let kind = item.pointer("/error/type").and_then(Value::as_str).unwrap_or("no error named");
    match item["status"].as_u64() {
        Some(200 | 201) => Ok(Written::Applied),
        Some(409) => Ok(Written::Already),
        Some(400) if DOCUMENT_ERRORS.contains(&kind) => Ok(Written::Refused(kind.to_owned())),
        status => anyhow::bail!("the search index did not write a document, {status:?}: {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_done_a_bad_document_is_refused_and_everything_else_is_tried_again() {
        let item = |status: u64, kind: &str| json!({"status": status, "error": {"type": kind}});
        assert_eq!(written(&json!({"status": 201})).unwrap(), Written::Applied);
        assert_eq!(written(&json!({"status": 200})).unwrap(), Written::Applied);
        assert_eq!(written(&item(409, "version_conflict_engine_exception")).unwrap(), Written::Already);
        let refused = Written::Refused("mapper_parsing_exception".to_owned());
        assert_eq!(written(&item(400, "mapper_parsing_exception")).unwrap(), refused);
        for (status, kind) in [
            (400, "index_closed_exception"),
            (403, "cluster_block_exception"),
            (404, "index_not_found_exception"),
            (429, "rejected_execution_exception"),
            (503, "unavailable_shards_exception"),
        ] {
            assert!(written(&item(status, kind)).is_err(), "{status} {kind}");
        }
        assert!(written(&json!({})).is_err());
    }

    #[test]
    fn indices_are_numbered() {
        assert_eq!(next_name("coro", "coro-1").unwrap(), "coro-2");
        assert_eq!(next_name("a-b", "a-b-41").unwrap(), "a-b-42");
        for other in ["coro", "coro-x", "coro1", "mine"] {
            assert!(next_name("coro", other).is_err(), "{other}");
        }
    }

    #[test]
    fn an_alias_of_two_indices_is_none_of_ours() {
        let index = |uuid: &str| json!({"settings": {"index": {"uuid": uuid}}});
        let one = json!({"coro-1": index("a")});
        assert_eq!(index_of(&one, "coro").unwrap(), Index { name: "coro-1".into(), uuid: "a".into() });
        assert!(index_of(&json!({"coro-1": index("a"), "coro-2": index("b")}), "coro").is_err());
        assert!(index_of(&json!({}), "coro").is_err());
    }

    #[test]
    fn the_settings_of_the_indices_are_json() {
        for text in [INDEX, PARKED_INDEX] {
            assert!(serde_json::from_str::<Value>(text).unwrap()["mappings"]["dynamic"] == json!(false));
        }
    }
}
