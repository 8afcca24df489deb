//! The compiled routes of a table.

use super::compile::{TableRoute, compile};
use super::{CompiledRoute, Transaction};
use crate::postgres::decode::relation::Relation;
use crate::routes::problem::Problem;
use crate::routes::row::{Op, Row};
use crate::routes::scope::Scope;
use crate::routes::template::{BoundTemplate, Template};
use crate::routes::{Routes, Routing, Source, Table};

/// The routes of one table, compiled for its current columns.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub relation: String,
    pub columns: Vec<String>,
    pub shape: Relation,
    /// The name of a row, for dead letters of rows without a key.
    pub row_name: Option<BoundTemplate>,
    pub header_names: Vec<String>,
    pub routes: Vec<CompiledRoute>,
    /// A deleted row has all of its columns, not its key alone.
    pub whole_deletes: bool,
    /// The table is published, and the routes file neither routes nor ignores it.
    pub unknown: bool,
    /// A pattern matches the table, and the topic of its routes does not exist yet.
    pub without_topic: bool,
}

impl Plan {
    /// Compiles the routes of `source` for a relation.
    pub fn compile(routes: &Routes, source: &Source, relation: &Relation) -> Plan {
        let of = relation.table_name();
        let mut plan = Plan {
            relation: of.to_string(),
            columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
            whole_deletes: relation.is_full(),
            shape: relation.clone(),
            row_name: BoundTemplate::row_name(relation),
            ..Plan::default()
        };
        let name = source.kind.get_ref();
        match source.routing(&of) {
            Routing::Named(table) => plan.add(routes, name, table),
            // The table is newer than the session.
            Routing::Pattern(pattern) => plan.add(routes, name, &pattern.table(name, &of)),
            Routing::Ignored => {}
            Routing::Unknown => plan.unknown = true,
        }
        plan
    }

    /// The name of a row whose key cannot be emitted: by the table's key, or by its position in the WAL.
    pub fn row_name(&self, row: &Row<'_>, transaction: &Transaction) -> String {
        let mut name = Vec::new();
        match self.row_name.as_ref().map(|bound| bound.write(row, &mut name)) {
            Some(Ok(true)) => String::from_utf8_lossy(&name).into_owned(),
            _ => {
                let Transaction { cluster, commit_lsn, rows, .. } = transaction;
                format!("{} at {cluster}/{commit_lsn}/{rows}", self.relation)
            }
        }
    }

    fn add(&mut self, routes: &Routes, source: &str, table: &Table) {
        let relation = self.shape.clone();
        let scope = Scope { source, relation: &relation, names: &table.names, deleted: false };
        for route in &table.routes {
            let topic = route.topic.as_ref().and_then(|topic| Template::parse(topic.get_ref()).ok());
            let name = topic.as_ref().and_then(Template::constant);
            self.without_topic |= name.is_some_and(|name| routes.topic_index(name).is_none());
            self.routes.push(compile(routes, TableRoute { table, route }, scope, &mut self.header_names));
        }
    }

    /// Whether every route decides on deletes.
    pub fn handles_deletes(&self) -> bool {
        self.routes.iter().all(CompiledRoute::handles_deletes)
    }

    /// Whether some route emits deletes.
    pub fn emits_deletes(&self) -> bool {
        self.routes.iter().any(|route| !route.emissions(Op::Delete).is_empty())
    }

    /// The problems of routes that do not fit.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.routes.iter().filter_map(CompiledRoute::problem)
    }
}
