//! Builds `Routes` from the tables of a TOML file.
//!
//! * Defaults are filled in here.
//! * Whether keys fit each other is for `check`.

use std::collections::BTreeMap;

use strum::VariantNames as _;
use toml::Spanned;

use super::fields::{Fields, Kind};
use super::findings::NOWHERE;
use super::{
    Cast, Condition, IgnoredTables, Pattern, Queue, Relay, Route, Routes, Source, Table, TableName,
    TablePattern, Text, Toast, Topic,
};
use super::{destinations, selection};

/// The keys of a route. A table with one route has them too.
const ROUTE_KEYS: [&str; 14] = [
    "topic", "queue", "type", "when", "op", "changed", "deletes", "before", "toast", "omit", "rename",
    "cast", "body", "routes",
];

pub fn routes(mut fields: Fields<'_, '_>) -> Routes {
    let relay = relay(fields.table("relay", "relay"));
    let kafka = fields.by_name("kafka");
    let topics: Vec<Topic> =
        fields.tables("topics", "topics").unwrap_or_default().into_iter().map(topic).collect();
    let queues = fields.tables("queues", "queues").unwrap_or_default().into_iter().map(queue).collect();
    let mut sources: Vec<Source> =
        fields.tables("sources", "sources").unwrap_or_default().into_iter().map(source).collect();
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
        let name = source.name.get_ref();
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

fn source(mut fields: Fields<'_, '_>) -> Source {
    let name = fields.required("name");
    let url = fields.required("url");
    let (slot, publication) = (fields.text("slot"), fields.text("publication"));
    let event_source = fields.text("event_source");
    let ignore = fields.texts("ignore").into_iter().filter_map(|text| ignored(&fields, text)).collect();
    let own_publication = publication.is_none();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let own: String = format!("cdc_relay_{}", name.get_ref().chars().map(plain).collect::<String>());
    let default = |text: String| Text::new(name.span(), text);
    let (mut tables, mut patterns) = (Vec::new(), Vec::new());
    for fields in fields.tables("tables", "sources.tables").unwrap_or_default() {
        let (table, which) = table(fields, &name);
        match which {
            Some(which) => patterns.push(Pattern { which, table }),
            None => tables.push(table),
        }
    }
    let source = Source {
        slot: slot.unwrap_or_else(|| default(own.clone())),
        publication: publication.unwrap_or_else(|| default(own.clone())),
        own_publication,
        event_source: event_source.unwrap_or_else(|| default(format!("/{}", name.get_ref()))),
        ignore,
        tables,
        patterns,
        url,
        name,
    };
    fields.finish();
    source
}

fn ignored(fields: &Fields<'_, '_>, text: Text) -> Option<IgnoredTables> {
    let which =
        text.get_ref().parse().map_err(|problem: String| fields.note(&text.span(), "ignore", problem));
    Some(IgnoredTables { which: which.ok()?, text })
}

/// Parses the name of a table. With a pattern, the name is a placeholder.
fn named(fields: &Fields<'_, '_>, name: &Text) -> (TableName, Option<TablePattern>) {
    let placeholder = || TableName::new("", name.get_ref());
    match name.get_ref().parse::<TablePattern>() {
        Ok(which) => match which.exact() {
            Some(table) => (table, None),
            None => (placeholder(), Some(which)),
        },
        // The missing name is noted already.
        Err(_) if name.span() == NOWHERE => (placeholder(), None),
        Err(problem) => {
            fields.note(&name.span(), "name", problem);
            (placeholder(), None)
        }
    }
}

/// Reads a table. The pattern is set if its name is one.
fn table(mut fields: Fields<'_, '_>, source: &Text) -> (Table, Option<TablePattern>) {
    let name = fields.required("name");
    let (table_name, which) = named(&fields, &name);
    let (key, id, subject) = (fields.text("key"), fields.text("id"), fields.text("subject"));
    let headers = fields.by_name("headers");
    let names = fields.names("names");
    let snapshot = fields.flag("snapshot");
    let has_routes = fields.key("routes").is_some();
    let context = TableContext { source, name: &name, table_name: &table_name, which: which.as_ref() };
    let inline = route(&mut fields, context);
    let routes = match fields.tables("routes", "sources.tables.routes") {
        None => vec![inline],
        Some(routes) => routes.into_iter().map(|fields| listed(fields, context)).collect(),
    };
    if has_routes {
        for key in ROUTE_KEYS.iter().filter(|key| **key != "routes") {
            if let Some(at) = fields.key(key) {
                let problem = "the table has `routes`: this belongs to one of them, or `routes` is left out";
                fields.note(&at, key, problem);
            }
        }
    }
    fields.finish();
    (Table { name, table_name, key, id, subject, headers, names, snapshot, routes }, which)
}

/// The table that a route belongs to.
#[derive(Clone, Copy)]
struct TableContext<'a> {
    source: &'a Text,
    name: &'a Text,
    table_name: &'a TableName,
    which: Option<&'a TablePattern>,
}

/// Reads one of `[[sources.tables.routes]]`.
fn listed(mut fields: Fields<'_, '_>, context: TableContext<'_>) -> Route {
    let mut route = route(&mut fields, context);
    route.key = fields.text("key");
    route.headers = fields.by_name("headers");
    fields.finish();
    route
}

/// Reads the keys of a route, which a table with one route has itself.
fn route(fields: &mut Fields<'_, '_>, context: TableContext<'_>) -> Route {
    let (mut topic, queue) = (fields.text("topic"), fields.text("queue"));
    if topic.is_none() && queue.is_none() {
        topic = Some(Text::new(context.name.span(), default_topic(context)));
    }
    if let Some(topic) = &mut topic
        && context.which.is_none()
    {
        selection::of_table(topic, context.source.get_ref(), context.table_name);
    }
    let kind =
        fields.text("type").unwrap_or_else(|| Text::new(context.name.span(), "{@table}.{@op}".to_owned()));
    Route {
        at: fields.at(),
        topic,
        compacted: Vec::new(),
        queue,
        kind,
        key: None,
        when: when(fields),
        op: fields.many_of("op"),
        changed: fields.texts("changed"),
        deletes: fields.one_of("deletes").map(Spanned::into_inner),
        before: fields.flag("before"),
        toast: fields.one_of("toast").map_or(Toast::Refuse, Spanned::into_inner),
        headers: BTreeMap::new(),
        omit: fields.texts("omit"),
        rename: fields.by_name("rename"),
        cast: fields.one_of_by_name("cast", &Kind::OneOf(Cast::VARIANTS)),
        body: fields.object("body").map(Spanned::into_inner),
    }
}

/// `<source>.<table>`, with the schema if the name has it.
fn default_topic(context: TableContext<'_>) -> String {
    let schema = match context.which {
        None => context.table_name.schema != "public" || context.name.get_ref().starts_with("public."),
        Some(which) => which.schema() != Some("public"),
    };
    if schema { "{@source}.{@schema}.{@table}".to_owned() } else { "{@source}.{@table}".to_owned() }
}

fn when(fields: &mut Fields<'_, '_>) -> BTreeMap<String, Condition> {
    let values = fields.values("when", Kind::ByName(&Kind::Condition));
    let condition = |(column, value): (String, &Spanned<toml::de::DeValue<'_>>)| {
        let key = format!("when.{column}");
        if !value.get_ref().is_table() {
            let values = fields.as_values(value, &key);
            return Some((column, Condition::In(values)));
        }
        let mut inner = fields.as_fields(value, &key, "when.column")?;
        let not = inner.values_of("not");
        let null = inner.key("null").map(|_| inner.flag("null"));
        if not.is_empty() && null.is_none() {
            inner.note(&value.span(), &key, "has neither `not` nor `null`");
        }
        inner.finish();
        Some((column, Condition::Is { not, null }))
    };
    values.into_iter().filter_map(condition).collect()
}
