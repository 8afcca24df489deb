//! Selects the tables of a publication that a source routes, by name or by pattern.
//!
//! * Other tables are not kept: a database may have any number of them, and the records of the state topic are small.
//! * A table that a pattern matches counts even if the session's routes were resolved without it.

use super::{Coverage, Table};
use crate::routes::{Routing, Source, TableName};

impl Coverage {
    /// Drops the tables without routes.
    pub fn of(mut self, source: &Source) -> Coverage {
        self.tables.retain(|table| has_routes(source, table));
        self
    }

    /// The routed tables. A record of an earlier release or of other routes may have others.
    pub(super) fn routed(&self, source: &Source) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| has_routes(source, table))
    }

    /// Returns a table that is routed by its name and is not sent.
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
