//! The routes file: what is told, and where (schema in `relay.toml`).
//!
//! Reading it promises that every name leads somewhere and every template parses; each error names line and key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use toml::Spanned;

use crate::template::Template;

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
        let mut check = Check { text, env: &env };
        check.substitute(&mut routes)?;
        check.routes(&routes)?;
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

struct Check<'a> {
    text: &'a str,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl Check<'_> {
    fn line(&self, at: &Text) -> usize {
        self.text.get(..at.span().start).unwrap_or_default().bytes().filter(|&b| b == b'\n').count() + 1
    }

    fn fail<T>(&self, at: &Text, key: &str, problem: &str) -> Result<T> {
        bail!("line {}, `{key}`: {problem}", self.line(at))
    }

    fn substitute(&mut self, routes: &mut Routes) -> Result<()> {
        let Routes { relay, kafka, topics, queues, sources } = routes;
        self.expand(&mut relay.state_topic, "state_topic")?;
        self.expand(&mut relay.dead_letter_topic, "dead_letter_topic")?;
        for (key, value) in kafka {
            self.expand(value, key)?;
        }
        for topic in topics {
            self.expand(&mut topic.name, "name")?;
            for (key, value) in &mut topic.config {
                self.expand(value, key)?;
            }
        }
        for queue in queues {
            self.expand(&mut queue.name, "name")?;
        }
        for source in sources {
            let Source { name, url, slot, publication, event_source, ignore, tables } = source;
            for (text, key) in [(name, "name"), (url, "url"), (slot, "slot"), (publication, "publication")] {
                self.expand(text, key)?;
            }
            self.expand(event_source, "event_source")?;
            for name in ignore {
                self.expand(name, "ignore")?;
            }
            for table in tables {
                self.substitute_table(table)?;
            }
        }
        Ok(())
    }

    fn substitute_table(&self, table: &mut Table) -> Result<()> {
        let Table { name, key, id, subject, headers, names: _, routes } = table;
        self.expand(name, "name")?;
        self.expand(key, "key")?;
        for (text, key) in [(id, "id"), (subject, "subject")] {
            if let Some(text) = text {
                self.expand(text, key)?;
            }
        }
        for (key, value) in headers {
            self.expand(value, key)?;
        }
        for route in routes {
            self.expand(&mut route.kind, "type")?;
            for (text, key) in [(&mut route.topic, "topic"), (&mut route.queue, "queue")] {
                if let Some(text) = text {
                    self.expand(text, key)?;
                }
            }
            for (key, value) in &mut route.headers {
                self.expand(value, key)?;
            }
        }
        Ok(())
    }

    /// Replaces `${NAME}` and `${NAME:-default}`.
    fn expand(&self, text: &mut Text, key: &str) -> Result<()> {
        if !text.get_ref().contains("${") {
            return Ok(());
        }
        let mut out = String::new();
        let mut rest = text.get_ref().as_str();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((inside, tail)) = after.split_once('}') else {
                return self.fail(text, key, "`${` without `}`");
            };
            let (name, default) = match inside.split_once(":-") {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (inside, None),
            };
            let Some(value) = (self.env)(name).filter(|value| !value.is_empty()).or(default) else {
                return self.fail(text, key, &format!("the environment variable {name} is not set"));
            };
            out.push_str(before);
            out.push_str(&value);
            rest = tail;
        }
        out.push_str(rest);
        *text.get_mut() = out;
        Ok(())
    }

    fn routes(&self, routes: &Routes) -> Result<()> {
        self.unique(routes.topics.iter().map(|topic| &topic.name), "topics.name")?;
        self.unique(routes.queues.iter().map(|queue| &queue.name), "queues.name")?;
        self.unique(routes.sources.iter().map(|source| &source.name), "sources.name")?;
        if routes.sources.is_empty() {
            bail!("`sources`: none is given");
        }
        for topic in &routes.topics {
            if topic.partitions < 1 {
                return self.fail(&topic.name, "partitions", "must be at least 1");
            }
        }
        for (key, value) in &routes.kafka {
            if FIXED_PROPERTIES.contains(&key.as_str()) {
                return self.fail(value, key, "is fixed: order and safety rest on it");
            }
        }
        for source in &routes.sources {
            self.unique(source.tables.iter().map(|table| &table.name), "tables.name")?;
            for table in &source.tables {
                self.table(routes, table)?;
            }
        }
        Ok(())
    }

    fn unique<'t>(&self, names: impl Iterator<Item = &'t Text>, key: &str) -> Result<()> {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.get_ref()) {
                return self.fail(name, key, &format!("`{}` is there twice", name.get_ref()));
            }
        }
        Ok(())
    }

    fn template(&self, text: &Text, key: &str) -> Result<Template> {
        Template::parse(text.get_ref()).or_else(|problem| self.fail(text, key, &problem))
    }

    fn table(&self, routes: &Routes, table: &Table) -> Result<()> {
        if self.template(&table.key, "key")?.constant().is_some() {
            return self.fail(&table.key, "key", "names no column");
        }
        for (text, key) in [(&table.id, "id"), (&table.subject, "subject")] {
            if let Some(text) = text {
                self.template(text, key)?;
            }
        }
        if table.routes.is_empty() {
            return self.fail(
                &table.name,
                "routes",
                "the table has none; if it is not told, list it in `ignore`",
            );
        }
        for (key, value) in table.headers.iter().chain(table.routes.iter().flat_map(|route| &route.headers)) {
            self.template(value, key)?;
        }
        table.routes.iter().try_for_each(|route| self.route(routes, route))
    }

    fn route(&self, routes: &Routes, route: &Route) -> Result<()> {
        self.template(&route.kind, "type")?;
        match (&route.topic, &route.queue) {
            (Some(topic), None) => {
                if let Some(name) = self.template(topic, "topic")?.constant()
                    && routes.topic_index(name).is_none()
                {
                    return self.fail(topic, "topic", &format!("`{name}` is not one of [[topics]]"));
                }
            }
            (None, Some(queue)) => {
                if routes.queue_index(queue.get_ref()).is_none() {
                    let problem = format!("`{}` is not one of [[queues]]", queue.get_ref());
                    return self.fail(queue, "queue", &problem);
                }
            }
            _ => return self.fail(&route.kind, "topic", "a route has either `topic` or `queue`"),
        }
        for (column, values) in &route.when {
            if values.is_empty() {
                return self.fail(
                    &route.kind,
                    &format!("when.{column}"),
                    "no value is given: nothing matches",
                );
            }
        }
        if let Some(body) = &route.body {
            if !(route.omit.is_empty() && route.rename.is_empty() && route.cast.is_empty()) {
                return self.fail(&route.kind, "body", "excludes `omit`, `rename` and `cast`");
            }
            if let Err(problem) = crate::body::check(body) {
                return self.fail(&route.kind, "body", &problem);
            }
        }
        Ok(())
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
