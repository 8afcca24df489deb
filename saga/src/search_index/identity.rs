//! The names of the indices behind an alias, and the ids by which one life of an index differs from another.
//!
//! * An index that is made anew has another unique id. One that a snapshot was restored into keeps its unique id and gets
//!   another history.
//! * Both are in the name of the consumer group that fills the index. So the offsets of a group are always those of one
//!   state of one index: whoever makes an index anew, for whatever reason, begins at the first event.
//! * An index is written through an alias of its own, which goes with it: what is late for a deleted index is an error, and
//!   makes no index without a mapping.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Body, Method, SearchIndex};

/// The beginning of the names of the consumer groups that fill an index, where nobody names another.
pub const GROUP: &str = "search-indexer";

/// The settings of an index that [`Index`] is read from.
const SETTINGS: &str = "index.uuid,index.history.uuid";

/// An index, by its name and by the ids that no other state of an index ever has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    pub uuid: String,
    /// Only an index that was restored has one.
    pub history: Option<String>,
}

impl Index {
    /// The consumer group that fills the index; `prefix` is [`GROUP`] or what the configuration says instead.
    pub fn group(&self, prefix: &str) -> String {
        let Self { name: _, uuid, history } = self;
        history
            .as_ref()
            .map_or_else(|| format!("{prefix}-{uuid}"), |history| format!("{prefix}-{uuid}-{history}"))
    }
}

/// The alias by which the index of this name is written.
pub fn write_alias(index: &str) -> String {
    format!("{index}-write")
}

impl SearchIndex {
    /// The index behind the alias; `None` if there is none.
    ///
    /// # Errors
    /// When the server does not answer, or the alias leads to several indices.
    pub async fn live(&self) -> Result<Option<Index>> {
        self.named(&self.alias).await
    }

    /// The index of this name or alias; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::live`].
    pub async fn named(&self, name: &str) -> Result<Option<Index>> {
        match self.send(Method::GET, &format!("/{name}/_settings/{SETTINGS}"), Body::None).await {
            Ok(answer) => index_of(&answer, name).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The name of the index of parked messages, which no rebuild touches.
    pub fn parked_index(&self) -> String {
        format!("{}-parked", self.alias)
    }
}

/// `{"coro-1":{"settings":{"index":{"uuid":"…"}}}}`.
fn index_of(answer: &Value, asked: &str) -> Result<Index> {
    let indices = answer.as_object().context("the settings of an index are an object")?;
    ensure!(indices.len() == 1, "{asked} leads to {} indices: let it lead to one", indices.len());
    let (name, settings) = indices.iter().next().context("the settings of an index name it")?;
    let id = |pointer| settings.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let uuid = id("/settings/index/uuid").with_context(|| format!("the index {name} has no uuid"))?;
    Ok(Index { name: name.clone(), uuid, history: id("/settings/index/history/uuid") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(uuid: &str, history: Option<&str>) -> Index {
        Index { name: "coro-1".into(), uuid: uuid.into(), history: history.map(Into::into) }
    }

    #[test]
    fn an_alias_of_two_indices_is_none_of_ours() {
        let settings = |uuid: &str| json!({"settings": {"index": {"uuid": uuid}}});
        let one = json!({"coro-1": settings("a")});
        assert_eq!(index_of(&one, "coro").unwrap(), index("a", None));
        assert!(index_of(&json!({"coro-1": settings("a"), "coro-2": settings("b")}), "coro").is_err());
        assert!(index_of(&json!({}), "coro").is_err());
        assert!(index_of(&json!({"coro-1": {}}), "coro").is_err());
    }

    #[test]
    fn an_index_that_was_restored_has_another_group() {
        let restored = json!({"coro-1": {"settings": {"index": {"uuid": "a", "history": {"uuid": "h"}}}}});
        let restored = index_of(&restored, "coro").unwrap();
        assert_eq!(restored, index("a", Some("h")));
        assert_eq!(restored.group(GROUP), "search-indexer-a-h");
        assert_eq!(index("a", None).group(GROUP), "search-indexer-a");
    }
}
