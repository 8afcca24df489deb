//! Finds the topics that routes lead to, for all commands that read or delete topics.
//!
//! * A topic is certain if a route of an existing or named table leads there, whatever the row is.
//! * A topic is only resembled if its name depends on the row, or on a table of a pattern that does not exist now. Kafka alone
//!   knows which of those exist, and one of them may belong to somebody else.

use std::collections::BTreeSet;

use super::selection::plain;
use super::{Glob, Routes, Source, Table, TableName, TablePattern, Text};
use crate::routes::template::{TableOfSource, Template};

/// Stands for an unknown part of a name; no name contains it.
const UNKNOWN: &str = "\0";

/// The topics of routes, without the relay's own.
#[derive(Debug, Clone, Default)]
pub struct Destinations {
    pub certain: BTreeSet<String>,
    resembled: Vec<Glob>,
    /// The listed topics. If there are any, a row leads to one of them or becomes a dead letter.
    listed: Option<BTreeSet<String>>,
    own: [String; 2],
}

impl Destinations {
    /// The topics of all sources. A source with resolved patterns has more certain ones.
    pub fn of(routes: &Routes) -> Destinations {
        let relay = &routes.relay;
        let listed = || routes.topics.iter().map(|topic| topic.name.get_ref().clone()).collect();
        let mut found = Destinations {
            listed: routes.lists_topics.then(listed),
            own: [&relay.state_topic, &relay.dead_letter_topic].map(|topic| topic.get_ref().clone()),
            ..Destinations::default()
        };
        for source in &routes.sources {
            for table in &source.tables {
                found.add(source, table, &of_table(table));
            }
            for pattern in &source.patterns {
                found.add(source, &pattern.table, &of_pattern(&pattern.which));
            }
        }
        found
    }

    fn add(&mut self, source: &Source, table: &Table, of: &TableName) {
        for topic in table.routes.iter().filter_map(|route| route.topic.as_ref()) {
            let name = named(topic, source.kind.get_ref(), of);
            if name.contains(UNKNOWN) {
                self.resembled.push(Glob::new(&name, UNKNOWN));
            } else if !self.own.contains(&name) {
                self.certain.insert(name);
            }
        }
    }

    /// Whether a row may lead to this topic, which is not certain.
    pub fn resembles(&self, topic: &str) -> bool {
        let may_be = |listed: &BTreeSet<String>| listed.contains(topic);
        !self.certain.contains(topic)
            && !self.own.iter().any(|own| own == topic)
            && self.listed.as_ref().is_none_or(may_be)
            && self.resembled.iter().any(|glob| glob.matches(topic))
    }

    /// The topics among these that a row may lead to.
    pub fn among<'t>(&self, topics: impl Iterator<Item = &'t str>) -> BTreeSet<String> {
        let leads = |topic: &&str| self.certain.contains(*topic) || self.resembles(topic);
        topics.filter(leads).map(str::to_owned).collect()
    }
}

/// A part of a pattern as Kafka accepts it, with its stars.
fn starred(part: &str) -> String {
    part.split(UNKNOWN).map(plain).collect::<Vec<_>>().join(UNKNOWN)
}

/// The parts of a table's name, as Kafka accepts them.
pub fn of_table(table: &Table) -> TableName {
    let (schema, name) = table.qualified();
    TableName::new(&plain(schema), &plain(name))
}

/// The same of a pattern, with what is unknown of it.
pub fn of_pattern(which: &TablePattern) -> TableName {
    let (schema, name) = which.parts(UNKNOWN);
    TableName::new(&starred(&schema), &starred(&name))
}

/// Whether a route of this table with this topic may lead to the topic `to`.
pub fn may_lead(topic: &Text, source: &str, of: &TableName, to: &str) -> bool {
    let name = named(topic, source, of);
    if name.contains(UNKNOWN) { Glob::new(&name, UNKNOWN).matches(to) } else { name == to }
}

fn named(topic: &Text, source: &str, of: &TableName) -> String {
    // A template that does not parse was refused with the file.
    let template = Template::parse(topic.get_ref());
    template.map_or_else(
        |_| topic.get_ref().clone(),
        |template| {
            let source = &plain(source);
            template.resembling(TableOfSource { source, schema: &of.schema, table: &of.name }, UNKNOWN)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(tables: &str) -> Routes {
        let listed = "[[topics]]\nname = \"north.orders\"\n[[topics]]\nname = \"all\"\n[[topics]]\nname = \"s.orders\"\n";
        let topics = if tables.contains('{') && tables.contains("region") { listed } else { "" };
        let text = format!(
            "{topics}[[sources]]\nname = \"s\"\nurl = \"u\"\npublication = \"p\"\ntables = [{tables}]"
        );
        Routes::parse(&text, |_| None).unwrap()
    }

    fn certain(destinations: &Destinations) -> Vec<&str> {
        destinations.certain.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_table_leads_where_its_route_says() {
        let routes = routes("{ name = \"orders\" }, { name = \"a b.c d\" }");
        let found = Destinations::of(&routes);
        assert_eq!(certain(&found), ["s.a_b.c_d", "s.orders"]);
        assert!(!found.resembles("s.orders") && !found.resembles("s.other"));
    }

    #[test]
    fn a_value_of_the_row_makes_a_topic_that_is_only_resembled() {
        let routes = routes("{ name = \"orders\", topic = \"{region}.orders\" }");
        let found = Destinations::of(&routes);
        assert_eq!(certain(&found), [""; 0]);
        let topics = ["north.orders", "all", "s.orders"];
        assert_eq!(
            found.among(topics.into_iter()),
            ["north.orders".to_owned(), "s.orders".to_owned()].into()
        );
    }

    #[test]
    fn a_pattern_leads_for_certain_to_the_topics_of_tables_that_are_there() {
        let routes = routes("{ name = \"audit.log_*\" }, { name = \"orders\" }");
        let unresolved = Destinations::of(&routes);
        assert_eq!(certain(&unresolved), ["s.orders"]);
        let resolved =
            routes.resolved(&routes.sources[0], &[TableName::new("audit", "log_1")], &BTreeSet::new());
        let found = Destinations::of(&resolved);
        assert_eq!(certain(&found), ["s.audit.log_1", "s.orders"]);
        for (topic, resembled) in [
            ("s.audit.log_1", false),
            ("s.audit.log_2", true),
            ("s.audit.other", false),
            ("s.log_2", false),
            ("other.audit.log_2", false),
            ("cdc-relay.state", false),
        ] {
            assert_eq!(found.resembles(topic), resembled, "{topic}");
        }
    }
}
