//! Checks a routes file.
//!
//! * Every name leads somewhere, every template parses, and no two keys contradict each other.
//! * A mistake never ends the check: all are found at once.

mod route;

use std::collections::{BTreeMap, BTreeSet};

use crate::routes::row::Op;
use crate::routes::template::Template;
use crate::routes::{
    Deletes, FIXED_PROPERTIES, Findings, Route, Routes, Source, Table, Text, Topic, selection,
};

/// Notes all mistakes. Also fills in values that depend on several keys: the topics of a file that lists none, and that a
/// route of other operations ignores deletes.
pub fn all(routes: &mut Routes, findings: &Findings) {
    if !routes.lists_topics {
        let named = selection::constant_topics(routes.sources.iter().flat_map(Source::entries));
        routes.topics.extend(named.into_iter().map(Topic::unlisted));
    }
    for route in routes.sources.iter_mut().flat_map(Source::entries_mut).flat_map(|table| &mut table.routes) {
        if route.deletes.is_none() && !route.op.is_empty() && !lists(route, Op::Delete) {
            route.deletes = Some(Deletes::Ignore);
        }
    }
    Check { routes, findings }.all();
}

fn lists(route: &Route, op: Op) -> bool {
    route.op.iter().any(|listed| *listed.get_ref() == op)
}

struct Check<'a> {
    routes: &'a Routes,
    findings: &'a Findings,
}

impl Check<'_> {
    fn note(&self, at: &Text, key: &str, problem: impl Into<String>) {
        self.findings.add(&at.span(), key, problem);
    }

    fn all(&self) {
        let Routes { relay, kafka, topics, queues, sources, .. } = self.routes;
        self.unique(topics.iter().map(|topic| &topic.name), "name", str::to_owned);
        self.unique(queues.iter().map(|queue| &queue.name), "name", str::to_owned);
        self.unique(sources.iter().map(|source| &source.name), "name", str::to_owned);
        self.slots(sources);
        let own = [("state_topic", &relay.state_topic), ("dead_letter_topic", &relay.dead_letter_topic)];
        for (key, name) in own {
            self.topic_name(name, key);
            if let Some(topic) = topics.iter().find(|topic| topic.name.get_ref() == name.get_ref()) {
                self.note(&topic.name, "name", format!("`{}` is the relay's own {key}", name.get_ref()));
            }
        }
        if relay.state_topic.get_ref() == relay.dead_letter_topic.get_ref() {
            self.note(
                &relay.dead_letter_topic,
                "dead_letter_topic",
                "is the state_topic too: it needs its own",
            );
        }
        if self.routes.lists_topics {
            topics.iter().for_each(|topic| self.topic_name(&topic.name, "name"));
        }
        for (key, value) in kafka {
            if FIXED_PROPERTIES.contains(&key.as_str()) {
                self.note(value, key, "is fixed: order and safety rest on it");
            }
        }
        sources.iter().for_each(|source| self.source(source));
    }

    fn unique<'t>(
        &self,
        names: impl Iterator<Item = &'t Text>,
        key: &str,
        identity: impl Fn(&str) -> String,
    ) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(identity(name.get_ref())) {
                self.note(name, key, format!("`{}` is there twice", name.get_ref()));
            }
        }
    }

    /// Two sources must not take turns at one slot. Only the same `url` shows that the database is the same.
    fn slots(&self, sources: &[Source]) {
        let mut seen = BTreeMap::new();
        for source in sources {
            let (name, slot) = (source.name.get_ref(), source.slot.get_ref());
            if let Some(other) = seen.insert((source.url.get_ref(), slot), name)
                && !slot.is_empty()
                && other != name
            {
                self.note(
                    &source.slot,
                    "slot",
                    format!("source `{other}` reads slot `{slot}` of the same url"),
                );
            }
        }
    }

    fn topic_name(&self, name: &Text, key: &str) {
        let text = name.get_ref().as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > 249 || matches!(text, "." | "..") || !text.chars().all(plain) {
            let problem = format!(
                "`{text}` is no topic name: up to 249 letters, digits, `.`, `_` and `-`{}",
                if text.contains('{') { "; a template belongs to a route's `topic`" } else { "" }
            );
            self.note(name, key, problem);
        }
    }

    fn template(&self, text: &Text, key: &str) -> Option<Template> {
        Template::parse(text.get_ref()).map_err(|problem| self.note(text, key, problem)).ok()
    }

    fn source(&self, source: &Source) {
        let slot = source.slot.get_ref();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if slot.is_empty() || slot.len() > 63 || !slot.chars().all(plain) {
            let problem = format!("`{slot}` is no slot name: up to 63 lower-case letters, digits and `_`");
            self.note(&source.slot, "slot", problem);
        }
        let mut seen = BTreeSet::new();
        for table in &source.tables {
            if !seen.insert(&table.table_name) {
                self.note(&table.name, "name", format!("`{}` is there twice", table.name.get_ref()));
            }
        }
        self.unique(source.patterns.iter().map(|pattern| &pattern.table.name), "name", str::to_owned);
        for pattern in source.patterns.iter().filter(|_| source.own_publication) {
            let problem = "is a pattern, and the relay's own publication has only the tables that exist when it is made: \
                           name a `publication` (for all tables, or for tables in schema …)";
            self.note(&pattern.table.name, "name", problem);
        }
        for ignored in &source.ignore {
            let exact = ignored.which.exact();
            if source.tables.iter().any(|table| Some(&table.table_name) == exact.as_ref()) {
                let problem = format!("`{}` is also emitted, under `tables`", ignored.text.get_ref());
                self.note(&ignored.text, "ignore", problem);
            }
            if source.patterns.iter().any(|pattern| pattern.which == ignored.which) {
                let problem = format!("`{}` is a pattern of `tables` as well", ignored.text.get_ref());
                self.note(&ignored.text, "ignore", problem);
            }
        }
        source.entries().for_each(|table| self.table(table));
    }

    fn key(&self, key: &Text) {
        if self.template(key, "key").is_some_and(|template| !template.names_a_column()) {
            self.note(key, "key", "names no column");
        }
    }

    fn table(&self, table: &Table) {
        table
            .key
            .iter()
            .chain(table.routes.iter().flat_map(|route| &route.key))
            .for_each(|key| self.key(key));
        for (text, key) in [(&table.id, "id"), (&table.subject, "subject")] {
            if let Some(text) = text {
                self.template(text, key);
            }
        }
        if table.routes.is_empty() {
            self.note(&table.name, "routes", "the table has none; if it is not emitted, list it in `ignore`");
        }
        self.headers(&table.headers);
        for route in &table.routes {
            self.headers(&route.headers);
            for (name, value) in &route.headers {
                if table.headers.contains_key(name) {
                    self.note(value, name, "is a header of the table already");
                }
            }
            self.route(route);
        }
    }

    fn headers(&self, headers: &BTreeMap<String, Text>) {
        for (name, value) in headers {
            self.template(value, name);
            let lower = name.to_lowercase();
            let is_own = matches!(lower.as_str(), "pg_chain" | "pg_position" | "content-type");
            if lower.starts_with("ce_") || is_own || name.is_empty() {
                self.note(value, name, "is a header that the relay writes itself");
            }
        }
    }
}
