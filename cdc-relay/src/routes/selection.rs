//! Finds the entry of a source for each table, and expands patterns to published tables.
//!
//! * A name precedes a pattern; among patterns `ignore` precedes `tables`. Two patterns of `tables` must not match one table.
//! * A pattern of `tables` that routes no published table is a mistake.
//! * An entry of `ignore` may be for tables that come and go. It is a mistake if its schema does not exist. With patterns it is
//!   also one if its table does not exist, because a pattern would emit the table that it misspells.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use super::{IgnoredTables, Routes, Source, Table, TableName, TablePattern, Text, Topic};
use crate::nearest::hint;
use crate::postgres::facts::Question;
use crate::routes::template::{TableOfSource, Template};

/// Tables that are routed alike.
#[derive(Debug, Clone)]
pub struct Pattern {
    pub which: TablePattern,
    /// The entry of each of them; its `table_name` is a placeholder.
    pub table: Table,
}

/// The entry of a published table.
#[derive(Debug, Clone, Copy)]
pub enum Routing<'s> {
    Named(&'s Table),
    Pattern(&'s Pattern),
    Ignored,
    Unknown,
}

/// The tables of a database that patterns may match.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DatabaseTables {
    /// The published tables; before the publication exists, those that could be.
    pub published: Vec<TableName>,
    /// All tables.
    pub existing: Vec<TableName>,
    /// All schemas, empty ones too.
    pub schemas: Vec<String>,
}

/// A pattern matches a table that is newer than the session: its topic must exist before its rows are emitted.
#[derive(Debug)]
pub struct NewTable(pub TableName);

impl fmt::Display for NewTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} is new: the session restarts with a topic for it", self.0)
    }
}

impl std::error::Error for NewTable {}

impl Pattern {
    /// The entry of a table that matches.
    pub fn table(&self, source: &str, of: &TableName) -> Table {
        let mut table = Table { table_name: of.clone(), ..self.table.clone() };
        for topic in table.routes.iter_mut().filter_map(|route| route.topic.as_mut()) {
            of_table(topic, source, of);
        }
        table
    }
}

/// Replaces a topic's placeholders of source and table. A character that a topic's name cannot have becomes `_`.
pub fn of_table(topic: &mut Text, source: &str, table: &TableName) {
    let (source, table) = (plain(source), TableName::new(&plain(&table.schema), &plain(&table.name)));
    if let Some(text) = topic_of(topic, &source, &table) {
        *topic = Text::new(topic.span(), text.replace('{', "{{").replace('}', "}}"));
    }
}

/// The name with `_` for each character that a topic's name cannot have.
pub fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    name.chars().map(plain).collect()
}

/// None: the topic has no placeholder, or depends on the row.
fn topic_of(topic: &Text, source: &str, table: &TableName) -> Option<String> {
    let template = Template::parse(topic.get_ref()).ok()?;
    if template.constant().is_some() {
        None
    } else {
        template.of_table(TableOfSource { source, schema: &table.schema, table: &table.name })
    }
}

impl Source {
    /// The key of its checkpoint in the state topic; the keys of its other records there begin with it.
    pub fn checkpoint_key(&self) -> String {
        format!("{}/{}", self.name.get_ref(), self.slot.get_ref())
    }

    /// The question about its tables: those of its publication, or of the one that its routes would have.
    pub fn question(&self) -> Question<'_> {
        let named = self.tables.iter().map(|table| table.qualified()).collect();
        Question::of(self.publication.get_ref(), named)
    }

    /// Every entry of `tables`.
    pub fn entries(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().chain(self.patterns.iter().map(|pattern| &pattern.table))
    }

    /// The compacted topics that its rows may lead to, each once.
    pub fn compacted_topics(&self) -> BTreeSet<&str> {
        self.entries().flat_map(Table::compacted_topics).collect()
    }

    pub fn entries_mut(&mut self) -> impl Iterator<Item = &mut Table> {
        self.tables.iter_mut().chain(self.patterns.iter_mut().map(|pattern| &mut pattern.table))
    }

    pub fn routing(&self, table: &TableName) -> Routing<'_> {
        if let Some(named) = self.table(table) {
            return Routing::Named(named);
        }
        if self.ignore.iter().any(|ignored| ignored.which.matches(table)) {
            return Routing::Ignored;
        }
        let pattern = self.patterns.iter().find(|pattern| pattern.which.matches(table));
        pattern.map_or(Routing::Unknown, Routing::Pattern)
    }

    /// The named entry of a table, for a source whose patterns are resolved.
    pub fn table(&self, table: &TableName) -> Option<&Table> {
        self.tables.iter().find(|named| named.table_name == *table)
    }

    /// Whether the database must be asked for the tables of patterns.
    pub fn has_patterns(&self) -> bool {
        !self.patterns.is_empty() || !self.ignore.is_empty()
    }
}

impl Routes {
    /// Whether this topic is listed as compacted: compaction removes records, so none of its records is a link of a chain.
    pub fn is_compacted(&self, topic: &str) -> bool {
        self.topics.iter().any(|listed| listed.name.get_ref() == topic && listed.is_compacted())
    }

    /// The routes with an entry for each published table that a pattern of the source matches, and a topic for those and
    /// for the `further` tables.
    pub fn resolved(
        &self,
        source: &Source,
        published: &[TableName],
        further: &BTreeSet<TableName>,
    ) -> Routes {
        let mut routes = self.clone();
        let (name, kind) = (source.name.get_ref(), source.kind.get_ref());
        let found = |table: &TableName| match source.routing(table) {
            Routing::Pattern(pattern) => Some(pattern.table(kind, table)),
            Routing::Named(_) | Routing::Ignored | Routing::Unknown => None,
        };
        let tables: Vec<Table> = published.iter().filter_map(found).collect();
        let further: Vec<Table> = further.iter().filter_map(found).collect();
        if !self.lists_topics {
            for topic in constant_topics(tables.iter().chain(&further)) {
                if routes.topic_index(topic.get_ref()).is_none() {
                    routes.topics.push(Topic::unlisted(topic));
                }
            }
        }
        if let Some(source) = routes.sources.iter_mut().find(|source| source.name.get_ref() == name) {
            source.tables.extend(tables);
        }
        routes
    }
}

impl Routes {
    /// The routes with the topics of this source alone, if the file lists none: another source may be refused.
    pub fn topics_of(&self, source: &Source) -> Routes {
        let mut routes = self.clone();
        if !routes.lists_topics {
            let own = constant_topics(source.entries());
            routes.topics.retain(|topic| own.iter().any(|name| name.get_ref() == topic.name.get_ref()));
        }
        routes
    }
}

impl Table {
    /// The compacted topics that its rows may lead to.
    pub fn compacted_topics(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().flat_map(|route| route.compacted.iter().map(String::as_str))
    }
}

/// The topics that do not depend on the row.
pub fn constant_topics<'t>(tables: impl Iterator<Item = &'t Table>) -> Vec<Text> {
    let mut names: Vec<Text> = Vec::new();
    for topic in tables.flat_map(|table| &table.routes).filter_map(|route| route.topic.as_ref()) {
        if let Ok(template) = Template::parse(topic.get_ref())
            && let Some(name) = template.constant()
            && !names.iter().any(|known| known.get_ref() == name)
        {
            names.push(Text::new(topic.span(), name.to_owned()));
        }
    }
    names
}

impl DatabaseTables {
    /// The routes with the source's patterns expanded. The error describes their mistakes.
    pub fn resolve(
        &self,
        routes: &Routes,
        source: &Source,
        further: &BTreeSet<TableName>,
    ) -> Result<Routes, String> {
        let mut problems = self.problems(source);
        let resolved = routes.resolved(source, &self.published, further);
        if routes.lists_topics {
            let tables = resolved.source(source.name.get_ref()).into_iter().flat_map(|source| &source.tables);
            let topics = constant_topics(tables);
            let unlisted = topics.iter().filter(|topic| resolved.topic_index(topic.get_ref()).is_none());
            problems.extend(unlisted.map(|topic| {
                format!("a pattern leads to topic `{}`, which is not one of [[topics]]", topic.get_ref())
            }));
        }
        let tables = resolved.source(source.name.get_ref()).into_iter().flat_map(|source| &source.tables);
        let own = [&routes.relay.state_topic, &routes.relay.dead_letter_topic].map(|topic| topic.get_ref());
        let taken = constant_topics(tables).into_iter().filter(|topic| own.contains(&topic.get_ref()));
        problems.extend(taken.map(|topic| {
            format!("a pattern leads to topic `{}`, which is the relay's own", topic.get_ref())
        }));
        if problems.is_empty() { Ok(resolved) } else { Err(problems.join("; ")) }
    }

    /// The mistakes of the patterns and of `ignore`.
    pub fn problems(&self, source: &Source) -> Vec<String> {
        let mut problems: Vec<String> =
            source.patterns.iter().filter_map(|pattern| self.nothing(source, pattern)).collect();
        problems.extend(self.twice(source));
        problems.extend(source.ignore.iter().filter_map(|ignored| self.misspelt(source, ignored)));
        problems
    }

    /// Entries of `ignore` that match no published table, though they may one day.
    pub fn idle<'s>(&self, source: &'s Source) -> Vec<&'s str> {
        let matches =
            |ignored: &IgnoredTables| self.published.iter().any(|table| ignored.which.matches(table));
        let idle = source.ignore.iter().filter(|ignored| !matches(ignored));
        idle.map(|ignored| ignored.text.get_ref().as_str()).collect()
    }

    fn nothing(&self, source: &Source, pattern: &Pattern) -> Option<String> {
        let text = pattern.table.name.get_ref();
        let mut matched = self.published.iter().filter(|table| pattern.which.matches(table)).peekable();
        if matched.peek().is_none() {
            return Some(format!("`{text}` matches no published table{}", self.near(&pattern.which, text)));
        }
        let mut routed = matched.filter(|table| matches!(source.routing(table), Routing::Pattern(_)));
        routed.next().is_none().then(|| {
            format!("`{text}` routes no table: each that it matches has an entry of its own or is ignored")
        })
    }

    fn twice(&self, source: &Source) -> Option<String> {
        let patterns = self.published.iter().filter_map(|table| {
            let Routing::Pattern(_) = source.routing(table) else { return None };
            let all = source.patterns.iter().filter(|pattern| pattern.which.matches(table));
            let names: Vec<&str> = all.map(|pattern| pattern.table.name.get_ref().as_str()).collect();
            (names.len() > 1).then(|| (names.join("` and `"), table))
        });
        // One table for each pair says enough.
        let (names, table) = patterns.collect::<BTreeMap<_, _>>().into_iter().next()?;
        Some(format!(
            "{table} matches two patterns, `{names}`: give it an entry of its own, or make them narrower"
        ))
    }

    fn misspelt(&self, source: &Source, ignored: &IgnoredTables) -> Option<String> {
        let text = ignored.text.get_ref();
        if let Some(schema) = ignored.which.schema()
            && !self.schemas.iter().any(|known| known == schema)
        {
            let near = hint(schema, self.schemas.iter().map(String::as_str));
            return Some(format!("`ignore` has `{text}`, and there is no schema `{schema}`{near}"));
        }
        let table = ignored.which.exact()?;
        if source.patterns.is_empty() || self.existing.contains(&table) {
            return None;
        }
        Some(format!(
            "`ignore` has `{text}`, and there is no such table{}; a pattern would emit the table that it misspells",
            self.near(&ignored.which, text)
        ))
    }

    /// The nearest schema that exists, or the nearest table.
    fn near(&self, which: &TablePattern, text: &str) -> String {
        if let Some(schema) =
            which.schema().filter(|schema| !self.schemas.iter().any(|known| known == schema))
        {
            return hint(schema, self.schemas.iter().map(String::as_str));
        }
        let names: Vec<String> = self.existing.iter().map(TableName::short).collect();
        hint(text, names.iter().map(String::as_str))
    }
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
