//! The routes file: which rows are emitted, where, and in which form (schema in `relay.toml`).
//!
//! * In a file that was read, every name leads somewhere and every template parses.
//! * Any other file is refused with all its mistakes at once, each with line, column and suggestion.

pub mod body;
pub mod cast;
pub mod catalog;
pub(crate) mod check;
pub mod json;
pub mod problem;
pub mod route;
pub mod row;
pub mod scope;
pub mod template;
pub(crate) mod text_form;
pub mod when;

mod decode;
pub mod destinations;
mod fields;
mod findings;
#[cfg(feature = "sinks")]
mod fingerprint;
pub mod selection;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use strum::{EnumString, VariantNames};
use toml::Spanned;
use toml::de::DeTable;

use self::cast::Cast;
pub use self::findings::{Finding, Findings, InvalidRoutes};
use self::row::Op;
pub use self::selection::{DatabaseTables, NewTable, Pattern, Routing};
pub use crate::postgres::name::{Glob, TableName, TablePattern};

pub type Text = Spanned<String>;

/// A checked routes file.
#[derive(Debug, Clone)]
pub struct Routes {
    pub relay: Relay,
    pub kafka: BTreeMap<String, Text>,
    /// The listed topics, or those that the routes name if the file lists none.
    pub topics: Vec<Topic>,
    /// The file lists the topics. Otherwise the relay creates those that the routes name.
    pub lists_topics: bool,
    pub queues: Vec<Queue>,
    pub sources: Vec<Source>,
}

#[derive(Debug, Clone)]
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

#[derive(Debug, Clone)]
pub struct Topic {
    pub name: Text,
    /// `DEFAULT_PARTITIONS`: the broker decides.
    pub partitions: i32,
    pub config: BTreeMap<String, Text>,
}

impl Topic {
    pub const DEFAULT_PARTITIONS: i32 = -1;

    /// A topic that only routes name.
    pub fn unlisted(name: Text) -> Topic {
        Topic { name, partitions: Topic::DEFAULT_PARTITIONS, config: BTreeMap::new() }
    }

    /// The file says that only the last record of a key stays. A record that may go is no link of the chain.
    pub fn is_compacted(&self) -> bool {
        self.config.get("cleanup.policy").is_some_and(|policy| policy.get_ref().contains("compact"))
    }
}

#[derive(Debug, Clone)]
pub struct Queue {
    pub name: Text,
}

#[derive(Debug, Clone)]
pub struct Source {
    pub name: Text,
    /// Its name for templates: that of its kind, or its own.
    pub kind: Text,
    pub url: Text,
    pub slot: Text,
    pub publication: Text,
    /// The file names no publication. The relay creates its own together with the slot.
    pub own_publication: bool,
    pub event_source: Text,
    pub synchronous: SynchronousRule,
    pub origin: OriginRule,
    pub ignore: Vec<IgnoredTables>,
    /// Tables that are named.
    pub tables: Vec<Table>,
    /// Tables that are routed by a pattern of names.
    pub patterns: Vec<Pattern>,
}

/// Whether a transaction is emitted before synchronous standbys have flushed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum SynchronousRule {
    /// As soon as the primary has flushed it.
    Off,
    /// Never.
    Require,
}

/// Whether transactions are emitted that logical replication copied from another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum OriginRule {
    /// As all others.
    Any,
    /// Never: the source that they come from emits them.
    None,
}

/// Published tables that are not emitted.
#[derive(Debug, Clone)]
pub struct IgnoredTables {
    /// As the file writes it.
    pub text: Text,
    pub which: TablePattern,
}

#[derive(Debug, Clone)]
pub struct Table {
    /// As the file writes it.
    pub name: Text,
    pub table_name: TableName,
    /// None: the columns that identify a row are the key.
    pub key: Option<Text>,
    pub id: Option<Text>,
    pub subject: Option<Text>,
    pub headers: BTreeMap<String, Text>,
    pub names: BTreeMap<String, BTreeMap<String, Text>>,
    /// Rows older than the slot are emitted too.
    pub snapshot: bool,
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone)]
pub struct Route {
    /// Its range in the file.
    pub at: Range<usize>,
    pub topic: Option<Text>,
    /// The topics that are listed as compacted and that it may lead to.
    pub compacted: Vec<String>,
    pub queue: Option<Text>,
    pub kind: Text,
    /// Replaces the table's key.
    pub key: Option<Text>,
    pub when: BTreeMap<String, Condition>,
    /// Empty: all operations.
    pub op: Vec<Spanned<Op>>,
    pub changed: Vec<Text>,
    /// None: a deleted row cannot be emitted.
    pub deletes: Option<Deletes>,
    pub before: bool,
    pub toast: Toast,
    pub headers: BTreeMap<String, Text>,
    pub omit: Vec<Text>,
    pub rename: BTreeMap<String, Text>,
    pub cast: BTreeMap<String, Spanned<Cast>>,
    pub body: Option<Object>,
}

/// A condition on a column.
#[derive(Debug, Clone)]
pub enum Condition {
    In(Vec<Text>),
    /// The value is not in `not`, and is null or not as `null` says. Null passes `not`.
    Is {
        not: Vec<Text>,
        null: Option<bool>,
    },
}

/// The treatment of deleted rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Deletes {
    /// An event with the known columns of the row.
    Event,
    /// A null value under the row's key.
    Tombstone,
    /// The event, then the tombstone.
    Both,
    Ignore,
}

/// The treatment of a large value that an update left out of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Toast {
    /// The row becomes a dead letter.
    Refuse,
    /// The object has no such member.
    Omit,
}

/// A message body, in the order of the file.
pub type Object = Vec<(String, Leaf)>;

#[derive(Debug, Clone)]
pub enum Leaf {
    Template(Text),
    /// Literal JSON.
    Fixed(String),
    Object(Object),
}

impl Table {
    /// Schema and name.
    pub fn qualified(&self) -> (&str, &str) {
        self.table_name.parts()
    }
}

impl Routes {
    pub fn read(path: &Path) -> Result<Routes> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Routes::of_file(path, &text)
    }

    /// As `read`, of a file that was read.
    pub fn of_file(path: &Path, text: &str) -> Result<Routes> {
        // A variable may hold a secret, such as the URL of a database; so each may be in a file instead.
        let refused = Cell::new(None);
        let env = |name: &str| {
            secret_files::value(name).unwrap_or_else(|why| {
                refused.set(Some(why));
                None
            })
        };
        let parsed = Routes::parse_named(&path.display().to_string(), text, &env);
        match refused.take() {
            Some(why) => Err(why),
            None => Ok(parsed?),
        }
    }

    /// Parses and checks a routes file. `env` has the values of its variables.
    pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Routes> {
        Ok(Routes::parse_named("routes", text, &env)?)
    }

    /// As `parse`; mistakes name `file`.
    pub fn parse_named(
        file: &str,
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Routes, InvalidRoutes> {
        let findings = Findings::default();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            findings.add(&error.span().unwrap_or(0..0), "syntax", error.message());
        }
        if !errors.is_empty() {
            findings.result(file, text)?;
        }
        let context = fields::FileContext { env, findings: &findings, known: RefCell::default() };
        let mut routes = decode::routes(fields::Fields::new(&context, "", &table));
        check::all(&mut routes, &findings);
        findings.result(file, text)?;
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

/// librdkafka properties that the relay's guarantees rest on.
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
