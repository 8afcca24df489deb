//! All requests to the search index.
//!
//! * The index that searches use is the one behind the alias. Its ids name its consumer group ([`Index`]).
//! * The indices behind an alias are numbered: `coro-2` follows `coro-1`.
//! * An index says with which settings and mapping it was made, so that none is filled by a version that wants others.
//! * Parked messages have an index of their own, `<alias>-parked`, which no rebuild touches.
//! * Documents are written in [`bulk`].

mod bulk;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saga::search_index::{Body, Index, Method, SEARCH_TIMEOUT, SearchIndex, Settings, write_alias};
use serde_json::{Value, json};

pub use self::bulk::WriteOutcome;

/// A bulk request of a thousand documents takes tens of milliseconds; on a busy server, seconds. The end of an instance waits
/// for one that is under way.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Which index the alias leads to is known at once, or not at all.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Settings and mapping of an index.
const INDEX: &str = include_str!("index.json");
/// A text that is longer than a term may be is kept, and not indexed.
const PARKED_INDEX: &str = r#"{
    "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
    "mappings": {"dynamic": false, "properties": {
        "source": {"type": "keyword", "ignore_above": 1000},
        "type": {"type": "keyword", "ignore_above": 1000},
        "reason": {"type": "keyword", "ignore_above": 1000}}}
}"#;
/// Where the mapping of an index keeps the text that the index was made from.
const MADE_FROM: &str = "made_from";
/// The server's name of the error when an index is there already.
const EXISTS: &str = "resource_already_exists_exception";

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
    /// When the server does not answer within two seconds.
    pub async fn live(&self) -> Result<Option<Index>> {
        self.index.within(LIVE_TIMEOUT).live().await
    }

    /// The index behind the alias, made if there is none, and the index of parked messages.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn ensure(&self) -> Result<Index> {
        self.make_parked_index().await?;
        if let Some(live) = self.index.live().await? {
            self.add_aliases(&live.name, &[&write_alias(&live.name)]).await?;
            return Ok(live);
        }
        let alias = self.index.alias.as_str();
        self.make(&format!("{alias}-1"), INDEX, &[alias]).await?;
        self.index.live().await?.context("the alias was made, and is not there: does somebody remove it?")
    }

    /// The index that follows `live`, made if it is not there: a rebuild that was interrupted goes on.
    ///
    /// # Errors
    /// When the server does not answer, or refuses, or when the interrupted rebuild wanted other settings or another mapping.
    pub async fn next(&self, live: &Index) -> Result<Index> {
        let name = next_name(&self.index.alias, &live.name)?;
        self.make(&name, INDEX, &[]).await?;
        let mapping = self.index.send(Method::GET, &format!("/{name}/_mapping"), Body::None).await?;
        ensure!(
            mapping.pointer(&format!("/{name}/mappings/_meta/{MADE_FROM}")) == Some(&json!(INDEX)),
            "the index {name} was begun by a version with other settings or another mapping: delete it, and rebuild again"
        );
        self.index.named(&name).await?.with_context(|| format!("the index {name} was made, and is not there"))
    }

    /// Lets searches use `new` instead of `old`, at one moment. Then it deletes `old`, when no search that began before is
    /// under way any more: one that loses its index meanwhile finds nothing, and says that it has found nothing.
    ///
    /// # Errors
    /// When the server does not answer, or refuses. The error says which index searches use then.
    pub async fn switch(&self, old: &Index, new: &Index) -> Result<()> {
        self.index.send(Method::POST, &format!("/{}/_refresh", new.name), Body::None).await?;
        let add = json!({"add": {"index": new.name, "alias": self.index.alias}});
        let remove = json!({"remove": {"index": old.name, "alias": self.index.alias}});
        if let Err(error) = self.change_aliases(json!([add, remove])).await {
            match self.live().await {
                // The answer was lost, or another rebuild was first.
                Ok(Some(live)) if live == *new => {}
                Ok(Some(live)) if live == *old => {
                    return Err(error).context("searches use the old index as before");
                }
                Ok(Some(live)) => {
                    return Err(error).with_context(|| format!("searches use the index {}", live.name));
                }
                Ok(None) | Err(_) => return Err(error).context("it is not known which index searches use"),
            }
        }
        tokio::time::sleep(SEARCH_TIMEOUT).await;
        let deleted = self.delete_before(new).await;
        deleted.context("searches use the new index; the next rebuild deletes the old one")
    }

    /// Deletes the indices that `live` follows: the one before it, and those that an interrupted rebuild left.
    async fn delete_before(&self, live: &Index) -> Result<()> {
        let alias = &self.index.alias;
        let of_live = number(alias, &live.name)?;
        let indices =
            self.index.send(Method::GET, &format!("/{alias}-*/_settings/index.uuid"), Body::None).await?;
        let indices = indices.as_object().context("the settings of indices are an object")?;
        let is_before = |name: &&String| number(alias, name).is_ok_and(|number| number < of_live);
        for name in indices.keys().filter(is_before) {
            match self.index.send(Method::DELETE, &format!("/{name}"), Body::None).await {
                Ok(_) => tracing::info!(index = name, "an index that nobody searches any more was deleted"),
                // Another rebuild was first.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error).with_context(|| format!("cannot delete the index {name}")),
            }
        }
        Ok(())
    }

    async fn make_parked_index(&self) -> Result<()> {
        self.make(&self.index.parked_index(), PARKED_INDEX, &[]).await
    }

    /// Makes an index with its write alias and `aliases`. One that is there gets the aliases that it lacks.
    async fn make(&self, name: &str, text: &str, aliases: &[&str]) -> Result<()> {
        let write = write_alias(name);
        let aliases: Vec<&str> = aliases.iter().copied().chain([write.as_str()]).collect();
        let mut content: Value = serde_json::from_str(text)?;
        content["mappings"]["_meta"] = json!({ MADE_FROM: text });
        content["aliases"] = aliases.iter().map(|alias| ((*alias).to_owned(), json!({}))).collect();
        match self.index.send(Method::PUT, &format!("/{name}"), Body::Json(content)).await {
            Ok(_) => {
                tracing::info!(index = name, "an index was made");
                Ok(())
            }
            Err(error) if error.is_refusal(EXISTS) => self.add_aliases(name, &aliases).await,
            Err(error) => Err(error).with_context(|| format!("cannot make the index {name}")),
        }
    }

    async fn add_aliases(&self, index: &str, aliases: &[&str]) -> Result<()> {
        let add = |alias: &&str| json!({"add": {"index": index, "alias": alias}});
        self.change_aliases(aliases.iter().map(add).collect()).await
    }

    async fn change_aliases(&self, actions: Value) -> Result<()> {
        let body = Body::Json(json!({ "actions": actions }));
        self.index.send(Method::POST, "/_aliases", body).await.context("cannot change the aliases")?;
        Ok(())
    }
}

/// The names of indices are numbered.
fn next_name(alias: &str, live: &str) -> Result<String> {
    Ok(format!("{alias}-{}", number(alias, live)? + 1))
}

fn number(alias: &str, name: &str) -> Result<u32> {
    let number = name.strip_prefix(alias).and_then(|rest| rest.strip_prefix('-')?.parse().ok());
    number.with_context(|| {
        format!("the alias {alias} leads to {name}, which search-indexer did not make: name another alias")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_numbered() {
        assert_eq!(next_name("coro", "coro-1").unwrap(), "coro-2");
        assert_eq!(next_name("a-b", "a-b-41").unwrap(), "a-b-42");
        for other in ["coro", "coro-x", "coro1", "mine"] {
            assert!(next_name("coro", other).is_err(), "{other}");
        }
    }

    #[test]
    fn the_settings_of_the_indices_are_json() {
        for text in [INDEX, PARKED_INDEX] {
            assert!(serde_json::from_str::<Value>(text).unwrap()["mappings"]["dynamic"] == json!(false));
        }
    }
}
