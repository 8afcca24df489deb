//! Reads the tables of a source or a kind, and their routes.

use std::collections::BTreeMap;

use strum::VariantNames as _;
use toml::Spanned;

use crate::routes::fields::{Fields, Kind};
use crate::routes::findings::NOWHERE;
use crate::routes::selection;
use crate::routes::{Cast, Condition, Route, Table, TableName, TablePattern, Text, Toast};

/// The keys of a route. A table with one route has them too.
const ROUTE_KEYS: [&str; 14] = [
    "topic", "queue", "type", "when", "op", "changed", "deletes", "before", "toast", "omit", "rename",
    "cast", "body", "routes",
];

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

/// Reads a table. The pattern is set if its name is one. `source` is what templates call its source.
pub fn table(
    mut fields: Fields<'_, '_>,
    source: &Text,
    routes_label: &'static str,
) -> (Table, Option<TablePattern>) {
    let name = fields.required("name");
    let (table_name, which) = named(&fields, &name);
    let (key, id, subject) = (fields.text("key"), fields.text("id"), fields.text("subject"));
    let headers = fields.by_name("headers");
    let names = fields.names("names");
    let snapshot = fields.flag("snapshot");
    let has_routes = fields.key("routes").is_some();
    let context = TableContext { source, name: &name, table_name: &table_name, which: which.as_ref() };
    let inline = route(&mut fields, context);
    let routes = match fields.tables("routes", routes_label) {
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

/// Reads one of the `routes` of a table.
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
