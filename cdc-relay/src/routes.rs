//! The routes file: what is told, and where (schema in `relay.toml`).
//!
//! Reading it promises that every name leads somewhere and every template parses; each error names line and key.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::Spanned;

use crate::check::Check;

pub type Text = Spanned<String>;

/// The whole file, checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routes {
    #[serde(default)]
    pub relay: Relay,
    #[serde(default)]
    pub kafka: BTreeMap<String, Text>,
    #[serde(default)]
    pub topics: Vec<Topic>,
    #[serde(default)]
    pub queues: Vec<Queue>,
    pub sources: Vec<Source>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    pub state_topic: Text,
    pub dead_letter_topic: Text,
    pub replication_factor: Option<i32>,
    pub in_flight_bytes: usize,
    pub max_record_bytes: usize,
}

impl Default for Relay {
    fn default() -> Relay {
        let text = |name: &str| Spanned::new(0..0, name.to_owned());
        Relay {
            state_topic: text("cdc-relay.state"),
            dead_letter_topic: text("cdc-relay.dead-letter"),
            replication_factor: None,
            in_flight_bytes: 8 << 20,
            max_record_bytes: 1_000_000,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    pub name: Text,
    pub partitions: i32,
    #[serde(default)]
    pub config: BTreeMap<String, Text>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    pub name: Text,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: Text,
    pub url: Text,
    pub slot: Text,
    pub publication: Text,
    pub event_source: Text,
    #[serde(default)]
    pub ignore: Vec<Text>,
    #[serde(default)]
    pub tables: Vec<Table>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub name: Text,
    pub key: Text,
    pub id: Option<Text>,
    pub subject: Option<Text>,
    #[serde(default)]
    pub headers: BTreeMap<String, Text>,
    #[serde(default)]
    pub names: BTreeMap<String, BTreeMap<String, Text>>,
    /// Rows that exist before the slot does are told too.
    #[serde(default)]
    pub snapshot: bool,
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub topic: Option<Text>,
    pub queue: Option<Text>,
    #[serde(rename = "type")]
    pub kind: Text,
    #[serde(default)]
    pub when: BTreeMap<String, Vec<Text>>,
    #[serde(default)]
    pub headers: BTreeMap<String, Text>,
    #[serde(default)]
    pub omit: Vec<Text>,
    #[serde(default)]
    pub rename: BTreeMap<String, Text>,
    #[serde(default)]
    pub cast: BTreeMap<String, Spanned<Cast>>,
    pub body: Option<toml::Table>,
}

/// How a column is written other than its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cast {
    /// JSON text, whatever the type.
    Text,
    /// A JSON number; a value that is none cannot be told.
    Number,
    /// Nested JSON; a value that is none cannot be told.
    Json,
}

impl Table {
    /// Schema and name; without a schema it is `public`.
    pub fn qualified(&self) -> (&str, &str) {
        qualified(self.name.get_ref())
    }
}

/// Splits `schema.table`; `public` is the schema of a bare name.
pub fn qualified(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

impl Routes {
    pub fn read(path: &Path) -> Result<Routes> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Routes::parse(&text, |name| std::env::var(name).ok())
            .with_context(|| format!("{} is not usable", path.display()))
    }

    /// Parses, fills in the variables that `env` knows, and checks.
    pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Routes> {
        let mut routes: Routes = toml::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        Check { text, env: &env }.all(&mut routes)?;
        Ok(routes)
    }

    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name.get_ref() == name)
    }

    pub fn topic_index(&self, name: &str) -> Option<usize> {
        self.topics.iter().position(|topic| topic.name.get_ref() == name)
    }

    pub fn queue_index(&self, name: &str) -> Option<usize> {
        self.queues.iter().position(|queue| queue.name.get_ref() == name)
    }
}

/// librdkafka properties that the promises rest on.
pub const FIXED_PROPERTIES: [&str; 8] = [
    "bootstrap.servers",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "partitioner",
];

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
