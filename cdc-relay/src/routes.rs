//! The routes file: what is emitted, and where (schema in `relay.toml`).
//!
//! Reading it promises that every name leads somewhere and every template parses. A file that does not hold that is
//! refused with everything that is wrong with it, each with its line.

pub(crate) mod array;
pub mod body;
pub mod catalog;
pub(crate) mod check;
pub mod json;
pub mod route;
pub(crate) mod strict;
pub mod template;
pub mod when;

mod decode;
#[cfg(feature = "sinks")]
pub mod destinations;
mod fields;
mod findings;
#[cfg(feature = "sinks")]
mod fingerprint;
pub mod selection;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use toml::Spanned;
use toml::de::DeTable;

pub use self::findings::{Finding, Findings, InvalidRoutes};
pub use self::selection::{DatabaseTables, NewTable, Pattern, Routing};
pub use crate::postgres::name::{Glob, TableName, TablePattern, unquote};
use crate::routes::template::Op;

pub type Text = Spanned<String>;

/// The whole file, checked.
#[derive(Debug, Clone)]
pub struct Routes {
    pub relay: Relay,
    pub kafka: BTreeMap<String, Text>,
    /// Also those that only routes name, if the file lists none.
    pub topics: Vec<Topic>,
    /// The file lists the topics; otherwise those that its routes name are made.
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
    /// `DEFAULT_PARTITIONS`: as many as the broker gives.
    pub partitions: i32,
    pub config: BTreeMap<String, Text>,
}

impl Topic {
    pub const DEFAULT_PARTITIONS: i32 = -1;

    /// One that only routes name.
    pub fn unlisted(name: Text) -> Topic {
        Topic { name, partitions: Topic::DEFAULT_PARTITIONS, config: BTreeMap::new() }
    }
}

#[derive(Debug, Clone)]
pub struct Queue {
    pub name: Text,
}

#[derive(Debug, Clone)]
pub struct Source {
    pub name: Text,
    pub url: Text,
    pub slot: Text,
    pub publication: Text,
    /// The file names no publication: this one is the relay's, which makes it together with the slot.
    pub own_publication: bool,
    pub event_source: Text,
    pub ignore: Vec<IgnoredTables>,
    /// Tables with a name of their own.
    pub tables: Vec<Table>,
    /// What is routed by a pattern of names.
    pub patterns: Vec<Pattern>,
}

/// Published tables that are not emitted.
#[derive(Debug, Clone)]
pub struct IgnoredTables {
    /// As it is written.
    pub text: Text,
    pub which: TablePattern,
}

#[derive(Debug, Clone)]
pub struct Table {
    /// As it is written.
    pub name: Text,
    pub table_name: TableName,
    /// None: the columns that identify a row.
    pub key: Option<Text>,
    pub id: Option<Text>,
    pub subject: Option<Text>,
    pub headers: BTreeMap<String, Text>,
    pub names: BTreeMap<String, BTreeMap<String, Text>>,
    /// Rows that exist before the slot does are emitted too.
    pub snapshot: bool,
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone)]
pub struct Route {
    /// Where it stands in the file.
    pub at: Range<usize>,
    pub topic: Option<Text>,
    pub queue: Option<Text>,
    pub kind: Text,
    /// Instead of the table's.
    pub key: Option<Text>,
    pub when: BTreeMap<String, Condition>,
    /// Empty: all of them.
    pub op: Vec<Spanned<Op>>,
    pub changed: Vec<Text>,
    /// None: not said, so that a deleted row cannot be emitted.
    pub deletes: Option<Deletes>,
    pub before: bool,
    pub toast: Toast,
    pub headers: BTreeMap<String, Text>,
    pub omit: Vec<Text>,
    pub rename: BTreeMap<String, Text>,
    pub cast: BTreeMap<String, Spanned<Cast>>,
    pub body: Option<Object>,
}

/// What a column has to be.
#[derive(Debug, Clone)]
pub enum Condition {
    In(Vec<Text>),
    /// None of `not`, which null is not either, and null or not.
    Is {
        not: Vec<Text>,
        null: Option<bool>,
    },
}

/// What becomes of deleted rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletes {
    /// An event with what is known of the row.
    Event,
    /// A null value under the row's key.
    Tombstone,
    /// The event, then the tombstone.
    Both,
    Ignore,
}

/// What becomes of a large value that an update left out of the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toast {
    /// The row is a dead letter.
    Refuse,
    /// The member is left out of the object.
    Omit,
}

/// How a column is written other than its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cast {
    /// JSON text, whatever the type.
    Text,
    /// A JSON number; a value that is none cannot be emitted.
    Number,
    /// Nested JSON; a value that is none cannot be emitted.
    Json,
    /// A date or timestamp as milliseconds since 1970-01-01 UTC.
    EpochMs,
    /// The same in microseconds.
    EpochUs,
    /// Bytea as hexadecimal digits.
    Hex,
}

/// A message body, in the order it is written in.
pub type Object = Vec<(String, Leaf)>;

#[derive(Debug, Clone)]
pub enum Leaf {
    Template(Text),
    /// JSON as it is.
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
        let env = |name: &str| std::env::var(name).ok();
        Ok(Routes::parse_named(&path.display().to_string(), &text, &env)?)
    }

    /// Parses, fills in the variables that `env` knows, and checks.
    pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Routes> {
        Ok(Routes::parse_named("routes", text, &env)?)
    }

    /// As `parse`; `file` is what problems name.
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
        let reading = fields::Reading { env, findings: &findings, asked: RefCell::default() };
        let mut routes = decode::routes(fields::Fields::new(&reading, "", &table));
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
