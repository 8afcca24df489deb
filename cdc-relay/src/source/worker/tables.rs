//! Selects the tables of a session: those that patterns match, and those whose existing rows are emitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AttemptError, SourceWorker};
use crate::checkpoint::refusal::Refusal;
use crate::postgres::facts::Facts;
use crate::postgres::session::Session;
use crate::routes::{self, Source};
use crate::source::backfill::rows::Table;
use crate::source::backfill::snapshot::TableProgress;
use crate::source::context::SourceContext;
use crate::source::contract::{Mismatch, existing};
use crate::source::published;

impl SourceWorker {
    /// Resolves the patterns of the routes file, whose tables may have changed since the last session.
    pub(super) fn resolve(&mut self, session: &mut Session) -> Result<(), AttemptError> {
        let SourceContext { routes, source, .. } = &*self.configured;
        if !source.has_patterns() {
            return Ok(());
        }
        let selected = published::ask(session, source)?;
        let resolved = selected.resolve(routes, source, &self.new_tables).map_err(Refusal::Contract)?;
        let now = resolved.source(source.name.get_ref()).unwrap_or(source).clone();
        let tables =
            |source: &Source| source.tables.iter().map(|table| table.table_name.clone()).collect::<Vec<_>>();
        if tables(&now) == tables(&self.context.source)
            && resolved.topics.len() == self.context.routes.topics.len()
        {
            return Ok(());
        }
        for text in selected.idle(source) {
            tracing::info!(
                source = source.name.get_ref(),
                "`ignore` has `{text}`, which matches no published table"
            );
        }
        let (routes, source) = (Arc::new(resolved), Arc::new(now));
        self.context = Arc::new(SourceContext { routes, source, ..(*self.configured).clone() });
        self.clients = self.clients.with(&self.context);
        Ok(())
    }

    /// Returns the tables with `snapshot = true`.
    pub(super) fn existing(&self, facts: &Facts) -> Vec<Table> {
        let asked = self.context.source.tables.iter().filter(|table| table.snapshot);
        asked.filter_map(|table| facts.table(&table.table_name)).map(Table::from).collect()
    }

    /// Returns the tables that are to be healed and that `existing` does not have. Refuses tables that cannot be read in
    /// chunks.
    pub(super) fn healing(
        &self,
        facts: &Facts,
        positions: &BTreeMap<String, TableProgress>,
    ) -> Result<Vec<Table>, Refusal> {
        let heals = |table: &&routes::Table| {
            let position = positions.get(&table.table_name.to_string());
            !table.snapshot && position.is_some_and(|position| position.heals && !position.done)
        };
        let tables = self.context.source.tables.iter().filter(heals);
        let tables: Vec<_> = tables.filter_map(|table| facts.table(&table.table_name)).collect();
        let problems = existing::of(tables.iter().copied(), facts.version);
        let problems: Vec<String> = problems.iter().map(Mismatch::to_string).collect();
        if problems.is_empty() {
            Ok(tables.into_iter().map(Table::from).collect())
        } else {
            Err(Refusal::Contract(problems.join("; ")))
        }
    }
}
