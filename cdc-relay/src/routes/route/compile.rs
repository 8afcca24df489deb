//! Binds a route to the columns that its table has now.

use super::{BoundHeader, BoundRoute, CompiledRoute, Destination, Emission, Target};
use crate::routes::body::Body;
use crate::routes::problem::Problem;
use crate::routes::scope::Scope;
use crate::routes::template::{BoundTemplate, Template};
use crate::routes::when::Filter;
use crate::routes::{Deletes, Route, Routes, Table, Text};

/// A route, and the table that it belongs to.
#[derive(Clone, Copy)]
pub(super) struct TableRoute<'a> {
    pub table: &'a Table,
    pub route: &'a Route,
}

pub(super) fn compile(
    routes: &Routes,
    of: TableRoute<'_>,
    scope: Scope<'_>,
    header_names: &mut Vec<String>,
) -> CompiledRoute {
    let route = of.route;
    let leads_to = match (&route.topic, &route.queue) {
        (Some(topic), _) => format!("topic:{}", topic.get_ref()),
        (None, Some(queue)) => format!("queue:{}", queue.get_ref()),
        (None, None) => String::new(),
    };
    let fixed = fixed_destination(routes, route);
    let mut fit = |emission, scope| fit(of, emission, fixed, scope, header_names);
    let upsert = fit(Emission::Event, scope);
    let mut on_delete = |emission| fit(emission, Scope { deleted: true, ..scope });
    let deletes = route.deletes;
    let delete_event =
        matches!(deletes, Some(Deletes::Event | Deletes::Both)).then(|| on_delete(Emission::Event));
    let tombstone =
        matches!(deletes, Some(Deletes::Tombstone | Deletes::Both)).then(|| on_delete(Emission::Tombstone));
    let whole = Scope { deleted: delete_event.is_some() || tombstone.is_some(), ..scope };
    let key = bind_key(of, scope).ok();
    CompiledRoute {
        filter: Filter::bind(route, whole),
        upsert,
        deletes,
        delete_event,
        tombstone,
        key,
        leads_to,
    }
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

fn bind_key(TableRoute { table, route }: TableRoute<'_>, scope: Scope<'_>) -> Result<BoundTemplate, Problem> {
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
    of: TableRoute<'_>,
    emission: Emission,
    fixed: Option<Destination>,
    scope: Scope<'_>,
    header_names: &mut Vec<String>,
) -> Result<BoundRoute, Problem> {
    let TableRoute { table, route } = of;
    let bind = |text: &Text| bind(text, scope);
    // A deleted row may lack columns that only describe it, never those that decide its destination.
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
    for (header, text) in table.headers.iter().chain(&route.headers) {
        let name = header_names.iter().position(|known| known == header).unwrap_or_else(|| {
            header_names.push(header.clone());
            header_names.len() - 1
        });
        if let Some(value) = optional(text)? {
            headers.push(BoundHeader { name, value });
        }
    }
    let id_end: &[u8] = match (scope.deleted, emission) {
        (false, _) => b"",
        (true, Emission::Event) => b"/delete",
        (true, Emission::Tombstone) => b"/tombstone",
    };
    Ok(BoundRoute {
        target,
        key: bind_key(of, scope)?,
        id: table.id.as_ref().map_or(Ok(None), optional)?,
        id_end,
        kind: bind(&route.kind)?,
        subject: table.subject.as_ref().map_or(Ok(None), optional)?,
        headers,
        body: (emission == Emission::Event).then(|| Body::bind(route, &scope)).transpose()?,
    })
}
