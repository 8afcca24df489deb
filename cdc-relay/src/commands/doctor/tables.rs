//! Checks publication and tables: the routed rows must reach the stream complete, and no writer may fail.
//!
//! * `contract` judges whether routes, publication and tables fit, for `run` and for doctor alike.

use super::facts::Facts;
use super::finding::{Finding, Severity};
use crate::postgres::facts::{Publication, Question, Table};
use crate::postgres::sql;
use crate::routes::{Routes, Source};
use crate::source::contract::fit::{self, Operations, TablePublication};
use crate::source::contract::identity::Publishing;
use crate::source::contract::{Mismatch, make_full};

/// A source, and the routes file that it is in.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    pub routes: &'a Routes,
    pub source: &'a Source,
}

/// The rows to emit, if there is a routes file that names them.
#[derive(Debug, Clone, Copy)]
pub struct Contract<'a> {
    /// Without one, every table is checked as if it were to be published.
    pub publication: Option<&'a str>,
    pub routed: Option<Routed<'a>>,
}

impl<'a> Contract<'a> {
    /// Without routes: the tables to query.
    pub fn question(&self) -> Question<'a> {
        self.publication.map_or_else(Question::of_everything, Question::of_publication)
    }

    /// Whether the table has routes; without routes, every table that was checked.
    fn is_meant(&self, table: &Table) -> bool {
        self.routed.is_none_or(|routed| routed.source.table(&table.itself.table_name()).is_some())
    }
}

/// `has_slot`: the slot exists, so the publication had to exist before it.
pub fn publication(facts: &Facts, contract: &Contract<'_>, has_slot: bool) -> Vec<Finding> {
    let Some(name) = contract.publication else { return unnamed(facts) };
    let subject = format!("publication {name}");
    let Some(publication) = &facts.contract.publication else {
        return missing(contract, &subject, has_slot).into_iter().collect();
    };
    let mut findings = vec![Finding::ok("publication.exists", &subject, covers(facts, publication))];
    if contract.routed.is_none() {
        findings.extend(operations(publication, &subject));
    }
    findings.extend(left_out(facts, publication, contract));
    findings
}

fn unnamed(facts: &Facts) -> Vec<Finding> {
    let names = facts.publications.join(", ");
    let found =
        if names.is_empty() { "this database has none".to_owned() } else { format!("there are: {names}") };
    vec![Finding::ok("publication.exists", "publication", found).why(
        "none was named, so every table is checked as if it were to be published; --publication names one",
    )]
}

/// The relay creates its own publication together with the slot. Until then it is judged as if it existed.
fn missing(contract: &Contract<'_>, subject: &str, has_slot: bool) -> Option<Finding> {
    match contract.routed {
        Some(Routed { source, .. }) if source.own_publication && !has_slot => {
            let found = "does not exist yet: the first `cdc-relay run` makes it";
            Some(Finding::ok("publication.exists", subject, found))
        }
        // `run` reports it.
        Some(_) => None,
        None => {
            let name = contract.publication.map(sql::identifier).unwrap_or_default();
            Some(
                Finding::would_not_work("publication.exists", subject, "does not exist")
                    .why("the WAL is read through it, and a slot that was made before it cannot find it")
                    .fix(format!("create publication {name} for table … with (publish = 'insert, update');")),
            )
        }
    }
}

fn covers(facts: &Facts, publication: &Publication) -> String {
    let tables = facts.contract.tables.len();
    let Publication { insert, update, delete, truncate, .. } = *publication;
    let operations = [(insert, "insert"), (update, "update"), (delete, "delete"), (truncate, "truncate")];
    let operations: Vec<&str> = operations.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let plural = if tables == 1 { "" } else { "s" };
    format!("{tables} table{plural}: {}", operations.join(", "))
}

/// A publication without routes: nothing says which operations are wanted.
fn operations(publication: &Publication, subject: &str) -> Vec<Finding> {
    let name = sql::identifier(&publication.name);
    let missing: Vec<&str> = [(publication.insert, "inserts"), (publication.update, "updates")]
        .iter()
        .filter(|(on, _)| !on)
        .map(|(_, what)| *what)
        .collect();
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let found = format!("does not publish {}", missing.join(" and "));
        findings.push(
            Finding::would_lose_data("publication.operations", subject, found)
                .why("they never reach the stream, and no error shows it")
                .fix(format!("alter publication {name} set (publish = 'insert, update');")),
        );
    }
    if !publication.delete {
        findings.push(
            Finding::warning("publication.operations", subject, "does not publish deletes")
                .why("a deleted row stays for ever in the copies of the subscribers")
                .fix(format!("alter publication {name} set (publish = 'insert, update, delete');")),
        );
    }
    findings
}

/// Tables that `for all tables` leaves out without an error.
fn left_out(facts: &Facts, publication: &Publication, contract: &Contract<'_>) -> Option<Finding> {
    if !publication.all_tables || facts.unlogged.is_empty() || contract.routed.is_some() {
        return None;
    }
    Some(
        Finding::warning("table.unlogged", "unlogged tables", facts.unlogged.join(", "))
            .why("their changes are not in the WAL, so they cannot be emitted; `for all tables` leaves them out")
            .fix("alter table … set logged;   -- those whose changes matter"),
    )
}

/// Without routes: the mismatches that break writers.
pub fn harms(facts: &crate::postgres::facts::Facts) -> Vec<Mismatch> {
    let all = Operations { insert: true, update: true, delete: true };
    let publication = facts.publication.as_ref();
    let operations = publication.map_or(all, Operations::of_publication);
    let publication = TablePublication { operations, includes_table: publication.is_some() };
    facts.tables.iter().flat_map(|table| fit::table_mismatches(facts, table, publication)).collect()
}

/// Table by table: identity, large values, filters, rights.
pub fn tables(facts: &Facts, contract: &Contract<'_>) -> Vec<Finding> {
    let meant: Vec<&Table> = facts.contract.tables.iter().filter(|table| contract.is_meant(table)).collect();
    let mut findings: Vec<Finding> = facts.mismatches.iter().map(Finding::of).collect();
    if contract.publication.is_none() {
        // Nothing is published yet, so no writer fails.
        for finding in &mut findings {
            finding.severity = Severity::Warning;
            "once its updates and deletes are published, the server refuses them"
                .clone_into(&mut finding.why);
        }
        findings.extend(unlogged(facts));
    }
    findings.extend(meant.iter().filter_map(|table| filter(table, contract)));
    let updates = facts.contract.publication.as_ref().is_none_or(|publication| publication.update);
    if updates {
        findings.extend(large_values(facts, &meant));
    }
    findings.extend(rights(&meant, facts));
    if findings.is_empty() && !meant.is_empty() {
        let names = meant.iter().map(|table| table.qualified()).collect::<Vec<_>>().join(", ");
        findings.push(Finding::ok("table.identity", "tables", names));
    }
    findings
}

fn unlogged(facts: &Facts) -> Option<Finding> {
    let names = facts.unlogged.join(", ");
    (!names.is_empty()).then(|| {
        Finding::warning("table.unlogged", "unlogged tables", names)
            .why("their changes are not in the WAL, so they cannot be emitted")
            .fix("alter table … set logged;   -- those whose changes matter")
    })
}

fn filter(table: &Table, contract: &Contract<'_>) -> Option<Finding> {
    let filter = table.filter.as_deref()?;
    let publication = contract.publication.map_or_else(|| "…".to_owned(), sql::identifier);
    let name = sql::table(&table.itself.schema, &table.itself.name);
    Some(
        Finding::warning("table.row_filter", &format!("table {}", table.qualified()), format!("only rows where {filter}"))
            .why("other rows never reach the stream, and a row that an update moves out of the filter is emitted as a delete")
            .fix(format!(
                "begin; alter publication {publication} drop table {name}; \
                 alter publication {publication} add table {name}; commit;   -- publishes every row"
            )),
    )
}

/// Updates leave large values out of the WAL, unless the old row is in it too.
fn large_values(facts: &Facts, tables: &[&Table]) -> Vec<Finding> {
    let outside = |table: &Table| facts.toast.get(&table.oid.to_string()).copied().unwrap_or(0);
    let at_risk = |table: &&&Table| {
        table.members().iter().any(|member| member.identity != 'f') && table.sent().any(|column| column.large)
    };
    let (now, one_day): (Vec<&Table>, Vec<&Table>) =
        tables.iter().filter(at_risk).copied().partition(|table| outside(table) > 0);
    let why = "an update that does not change a value stored outside its row leaves it out of the WAL; if a route needs \
               it, the row becomes a dead letter, and so do the later rows of its key";
    let mut findings: Vec<Finding> = now
        .iter()
        .map(|table| {
            let columns = table.sent().filter(|column| column.large).map(|column| column.name.as_str());
            let found = format!(
                "has large values in {} ({} outside the rows), and updates may leave them out",
                columns.collect::<Vec<_>>().join(", "),
                super::slot::size(outside(table))
            );
            let finding =
                Finding::warning("table.large_values", &format!("table {}", table.qualified()), found);
            let full = make_full(Publishing::of(&facts.contract), table);
            let fixes = full.map(|full| format!("{full};")).into_iter();
            fixes.fold(finding.why(why), Finding::fix).fix("or `omit` the columns in the routes")
        })
        .collect();
    if !one_day.is_empty() {
        let names = one_day.iter().map(|table| table.qualified()).collect::<Vec<_>>().join(", ");
        findings.push(
            Finding::ok(
                "table.large_values",
                "large values",
                format!("none yet, though there may be: {names}"),
            )
            .why("values above 2 kB are stored outside the row; then updates may leave them out of the WAL"),
        );
    }
    findings
}

/// Streaming needs no rights on tables; emitting rows again does.
fn rights(tables: &[&Table], facts: &Facts) -> Option<Finding> {
    let missing: Vec<String> = tables
        .iter()
        .filter(|table| !table.selectable)
        .map(|table| sql::table(&table.itself.schema, &table.itself.name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let (list, role) = (missing.join(", "), &facts.role.name);
    Some(
        Finding::warning("role.select", &format!("role {role}"), format!("may not read {list}"))
            .why("streaming does not need it; a snapshot, `replay` and `resnapshot` read the rows themselves")
            .fix(format!("grant select on {list} to {};", sql::identifier(role))),
    )
}
