//! Builds `Routes` from the tables of a TOML file.
//!
//! * Defaults are filled in here.
//! * Whether keys fit each other is for `check`.

mod source;
mod table;

use toml::Spanned;

use super::destinations;
use super::fields::Fields;
use super::{Queue, Relay, Routes, Source, Topic};

pub fn routes(mut fields: Fields<'_, '_>) -> Routes {
    let relay = relay(fields.table("relay", "relay"));
    let kafka = fields.by_name("kafka");
    let topics: Vec<Topic> =
        fields.tables("topics", "topics").unwrap_or_default().into_iter().map(topic).collect();
    let queues = fields.tables("queues", "queues").unwrap_or_default().into_iter().map(queue).collect();
    let kinds: Vec<source::Kind> =
        fields.tables("kinds", "kinds").unwrap_or_default().into_iter().map(source::kind).collect();
    let sources = fields.tables("sources", "sources").unwrap_or_default().into_iter();
    let mut sources: Vec<Source> = sources.map(|fields| source::source(fields, &kinds)).collect();
    source::check_kinds(&fields, &kinds, &sources);
    mark_compacted(&topics, &mut sources);
    if sources.is_empty() {
        fields.note(&fields.at(), "sources", "none is given: a relay reads at least one [[sources]]");
    }
    fields.finish();
    Routes { relay, kafka, lists_topics: !topics.is_empty(), topics, queues, sources }
}

/// Gives each route the compacted topics that it may lead to.
fn mark_compacted(topics: &[Topic], sources: &mut [Source]) {
    let compacted = topics.iter().filter(|topic| topic.is_compacted()).map(|topic| topic.name.get_ref());
    let compacted: Vec<&String> = compacted.collect();
    for source in sources {
        let name = source.kind.get_ref();
        let tables = source.tables.iter_mut().map(|table| (destinations::of_table(table), table));
        let patterns = source.patterns.iter_mut();
        let patterns = patterns.map(|pattern| (destinations::of_pattern(&pattern.which), &mut pattern.table));
        for (of, table) in tables.chain(patterns) {
            for route in &mut table.routes {
                let leads = |to: &&&String| {
                    route.topic.as_ref().is_some_and(|topic| destinations::may_lead(topic, name, &of, to))
                };
                route.compacted = compacted.iter().filter(leads).map(|to| (*to).clone()).collect();
            }
        }
    }
}

fn relay(fields: Option<Fields<'_, '_>>) -> Relay {
    let mut relay = Relay::default();
    let Some(mut fields) = fields else { return relay };
    for (key, topic) in
        [("state_topic", &mut relay.state_topic), ("dead_letter_topic", &mut relay.dead_letter_topic)]
    {
        if let Some(name) = fields.text(key) {
            *topic = name;
        }
    }
    let positive = |fields: &Fields<'_, '_>, key: &str, number: Spanned<usize>| {
        if *number.get_ref() == 0 {
            fields.note(&number.span(), key, "must be at least 1");
        }
        number.into_inner()
    };
    if let Some(factor) = fields.number::<i32>("replication_factor") {
        if *factor.get_ref() < 1 {
            fields.note(&factor.span(), "replication_factor", "must be at least 1");
        }
        relay.replication_factor = Some(factor.into_inner());
    }
    if let Some(bytes) = fields.number::<usize>("in_flight_bytes") {
        relay.in_flight_bytes = positive(&fields, "in_flight_bytes", bytes);
    }
    if let Some(bytes) = fields.number::<usize>("max_record_bytes") {
        relay.max_record_bytes = positive(&fields, "max_record_bytes", bytes);
    }
    fields.finish();
    relay
}

fn topic(mut fields: Fields<'_, '_>) -> Topic {
    let name = fields.required("name");
    let partitions = fields.number::<i32>("partitions");
    if let Some(partitions) = partitions.as_ref().filter(|partitions| *partitions.get_ref() < 1) {
        fields.note(&partitions.span(), "partitions", "must be at least 1");
    }
    let config = fields.by_name("config");
    fields.finish();
    Topic { name, partitions: partitions.map_or(Topic::DEFAULT_PARTITIONS, Spanned::into_inner), config }
}

fn queue(mut fields: Fields<'_, '_>) -> Queue {
    let name = fields.required("name");
    fields.finish();
    Queue { name }
}
