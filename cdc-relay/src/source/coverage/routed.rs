//! Which tables of a publication concern a source: those that it has routes for, by name or by a pattern.
//!
//! * Other tables are kept nowhere: a database may have any number of them, and the state topic's records are small.
//! * A table that a pattern matches counts whether or not the session's routes were resolved with it.

use super::{Coverage, Table};
use crate::routes::{Routing, Source, TableName};

impl Coverage {
    /// Only the tables that have routes.
    pub fn of(mut self, source: &Source) -> Coverage {
        self.tables.retain(|table| has_routes(source, table));
        self
    }

    /// The tables that have routes. A record may have others: an earlier release wrote it, or the routes were others.
    pub(super) fn routed(&self, source: &Source) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| has_routes(source, table))
    }

    /// A table that is routed by its name and is not sent.
    pub fn lacks(&self, source: &Source) -> Option<String> {
        let sent = |(schema, name): (&str, &str)| {
            self.tables.iter().any(|table| (table.schema.as_str(), table.name.as_str()) == (schema, name))
        };
        let missing = source.tables.iter().find(|routed| !sent(routed.qualified()))?;
        Some(missing.table_name.to_string())
    }
}

fn has_routes(source: &Source, table: &Table) -> bool {
    let routing = source.routing(&TableName::new(&table.schema, &table.name));
    matches!(routing, Routing::Named(_) | Routing::Pattern(_))
}
