//! Binds a route to the columns that its table has now.

use super::{BoundRoute, CompiledRoute, Destination, Emission, Target};
use crate::routes::body::Body;
use crate::routes::template::{BoundTemplate, Problem, Scope, Template};
use crate::routes::when::Filter;
use crate::routes::{Deletes, Route, Routes, Table, Text};

pub(super) fn compile(
    routes: &Routes,
    (table, route): (&Table, &Route),
    scope: Scope<'_>,
    header_names: &mut Vec<String>,
) -> CompiledRoute {
    let leads_to = match (&route.topic, &route.queue) {
        (Some(topic), _) => format!("topic:{}", topic.get_ref()),
        (None, Some(queue)) => format!("queue:{}", queue.get_ref()),
        (None, None) => String::new(),
    };
    let fixed = fixed_destination(routes, route);
    let mut fit = |emission, scope| fit((table, route), emission, (fixed, scope), header_names);
    let fitted = fit(Emission::Event, scope);
    let mut on_delete = |emission| fit(emission, Scope { deleted: true, ..scope });
    let deletes = route.deletes;
    let event = matches!(deletes, Some(Deletes::Event | Deletes::Both)).then(|| on_delete(Emission::Event));
    let tombstone =
        matches!(deletes, Some(Deletes::Tombstone | Deletes::Both)).then(|| on_delete(Emission::Tombstone));
    let whole = Scope { deleted: event.is_some() || tombstone.is_some(), ..scope };
    let key = bind_key((table, route), scope).ok();
    CompiledRoute { filter: Filter::bind(route, whole), fitted, deletes, event, tombstone, key, leads_to }
}

fn fixed_destination(routes: &Routes, route: &Route) -> Option<Destination> {
    if let Some(queue) = &route.queue {
        return routes.queue_index(queue.get_ref()).map(Destination::Queue);
    }
    let template = Template::parse(route.topic.as_ref()?.get_ref()).ok()?;
    routes.topic_index(template.constant()?).map(Destination::Topic)
}

fn bind(text: &Text, scope: Scope<'_>) -> Result<BoundTemplate, Problem> {
    Template::parse(text.get_ref()).map_err(Problem)?.bind(&scope)
}

fn bind_key((table, route): (&Table, &Route), scope: Scope<'_>) -> Result<BoundTemplate, Problem> {
    match route.key.as_ref().or(table.key.as_ref()) {
        Some(key) => bind(key, scope),
        None => {
            let key = BoundTemplate::identity(scope.relation)?;
            let columns = scope.relation.columns.iter().filter(|column| column.key);
            columns.map(|column| scope.column(&column.name)).collect::<Result<Vec<_>, _>>()?;
            Ok(key)
        }
    }
}

fn fit(
    (table, route): (&Table, &Route),
    emission: Emission,
    (fixed, scope): (Option<Destination>, Scope<'_>),
    header_names: &mut Vec<String>,
) -> Result<BoundRoute, Problem> {
    let bind = |text: &Text| bind(text, scope);
    // What only describes the row may be missing of a deleted one; what decides where it goes may not.
    let optional = |text: &Text| match bind(text) {
        Err(_) if scope.deleted => Ok(None),
        bound => bound.map(Some),
    };
    let target = match (fixed, &route.topic) {
        (Some(destination), _) => Target::Fixed(destination),
        (None, Some(topic)) => Target::ByRow(bind(topic)?),
        (None, None) => return Err(Problem("the route leads nowhere".to_owned())),
    };
    let mut headers = Vec::new();
    for (name, text) in table.headers.iter().chain(&route.headers) {
        let index = header_names.iter().position(|known| known == name).unwrap_or_else(|| {
            header_names.push(name.clone());
            header_names.len() - 1
        });
        if let Some(value) = optional(text)? {
            headers.push((index, value));
        }
    }
    let id_end: &[u8] = match (scope.deleted, emission) {
        (false, _) => b"",
        (true, Emission::Event) => b"/delete",
        (true, Emission::Tombstone) => b"/tombstone",
    };
    Ok(BoundRoute {
        target,
        key: bind_key((table, route), scope)?,
        id: table.id.as_ref().map_or(Ok(None), optional)?,
        id_end,
        kind: bind(&route.kind)?,
        subject: table.subject.as_ref().map_or(Ok(None), optional)?,
        headers,
        body: (emission == Emission::Event).then(|| Body::bind(route, &scope)).transpose()?,
    })
}
