//! Resolves the patterns of the routes file in a database.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::finding::Finding;
use super::tables::Routed;
use crate::routes::{DatabaseTables, Routes};
use crate::source::published;

/// The routes with an entry for each table that a pattern matches, and the problems of the patterns.
pub async fn resolved(
    client: &Client,
    Routed { routes, source }: Routed<'_>,
) -> Result<(Routes, Vec<Finding>)> {
    if !source.has_patterns() {
        return Ok((routes.clone(), Vec::new()));
    }
    let row = client.query_one(&published::statement(source.publication.get_ref()), &[]).await;
    let selected: DatabaseTables = serde_json::from_value(row.context("cannot query the tables")?.get(0))?;
    let mut findings: Vec<Finding> = selected.idle(source).into_iter().map(idle).collect();
    match selected.resolve(routes, source, &BTreeSet::new()) {
        Ok(resolved) => Ok((resolved, findings)),
        Err(problem) => {
            findings.push(
                Finding::would_not_work("routes.patterns", "routes file", problem)
                    .why("the relay refuses a pattern that means nothing, or two things")
                    .fix("correct `tables` and `ignore` in the routes file"),
            );
            Ok((routes.resolved(source, &selected.published, &BTreeSet::new()), findings))
        }
    }
}

fn idle(entry: &str) -> Finding {
    Finding::warning("routes.ignore", &format!("ignore {entry}"), "matches no published table")
        .why("it may be there for tables that come and go, or be a slip")
        .fix("take it out of the routes file, if nothing will match it")
}
