//! Publication and tables: whether what the routes tell gets into the stream, whole.

use super::facts::{Facts, Publication, Table};
use super::finding::Finding;
use crate::pgoutput::{Column, Relation};
use crate::route::Plan;
use crate::routes::{Routes, Source, TableName};
use crate::sql;

/// What is to be told, if there is a routes file that says so.
#[derive(Debug, Clone, Copy)]
pub struct Contract<'a> {
    /// Without one, every table is looked at as if it were to be published.
    pub publication: Option<&'a str>,
    pub routed: Option<(&'a Routes, &'a Source)>,
}

impl Contract<'_> {
    /// Every table is meant that has routes; without routes, every one that was looked at.
    fn is_meant(&self, table: &Table) -> bool {
        self.routed
            .is_none_or(|(_, source)| source.table(&TableName::new(&table.schema, &table.name)).is_some())
    }

    fn publishes(&self, facts: &Facts) -> (bool, bool) {
        // Without a publication: what would have to hold if changes and deletes were published.
        let publication = facts.publication.as_ref();
        (publication.is_none_or(|p| p.pubupdate), publication.is_none_or(|p| p.pubdelete))
    }
}

pub fn publication(facts: &Facts, contract: &Contract<'_>) -> Vec<Finding> {
    let Some(name) = contract.publication else { return unnamed(facts) };
    let subject = format!("publication {name}");
    let Some(publication) = &facts.publication else {
        let tables = missing_tables(contract);
        return vec![
            Finding::would_not_work("publication.exists", &subject, "does not exist")
                .why("the log is read through it, and a slot that was made before it cannot find it")
                .fix(format!(
                    "create publication {} for table {tables} with (publish = 'insert, update');",
                    sql::identifier(name)
                )),
        ];
    };
    let mut findings = vec![Finding::ok("publication.exists", &subject, covers(facts, publication))];
    findings.extend(operations(publication, contract, &subject));
    findings.extend(left_out(facts, publication, contract));
    if let Some((routes, source)) = contract.routed {
        findings.extend(coverage(facts, (routes, source), publication));
    }
    findings
}

fn unnamed(facts: &Facts) -> Vec<Finding> {
    let names = facts.publications.join(", ");
    let found =
        if names.is_empty() { "this database has none".to_owned() } else { format!("there are: {names}") };
    vec![Finding::ok("publication.exists", "publication", found).why(
        "none was named, so every table is looked at as if it were to be published; --publication names one",
    )]
}

fn missing_tables(contract: &Contract<'_>) -> String {
    let tables = contract.routed.map(|(_, source)| {
        source.tables.iter().map(|table| {
            let (schema, name) = table.qualified();
            sql::table(schema, name)
        })
    });
    let list = tables.map(|tables| tables.collect::<Vec<_>>().join(", ")).unwrap_or_default();
    if list.is_empty() { "…".to_owned() } else { list }
}

fn covers(facts: &Facts, publication: &Publication) -> String {
    let tables = facts.tables.iter().filter(|table| table.published).count();
    let operations = [
        (publication.pubinsert, "insert"),
        (publication.pubupdate, "update"),
        (publication.pubdelete, "delete"),
        (publication.pubtruncate, "truncate"),
    ];
    let operations: Vec<&str> = operations.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let plural = if tables == 1 { "" } else { "s" };
    format!("{tables} table{plural}: {}", operations.join(", "))
}

fn operations(publication: &Publication, contract: &Contract<'_>, subject: &str) -> Vec<Finding> {
    let name = sql::identifier(&publication.pubname);
    let missing: Vec<&str> = [(publication.pubinsert, "inserts"), (publication.pubupdate, "updates")]
        .iter()
        .filter(|(on, _)| !on)
        .map(|(_, what)| *what)
        .collect();
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let found = format!("does not publish {}", missing.join(" and "));
        findings.push(
            Finding::would_lose_data("publication.operations", subject, found)
                .why("they never reach the stream, and nothing says so")
                .fix(format!("alter publication {name} set (publish = 'insert, update');")),
        );
    }
    if contract.routed.is_none() && !publication.pubdelete {
        findings.push(
            Finding::warning("publication.operations", subject, "does not publish deletes")
                .why("a row that is deleted stays for ever with whoever keeps a copy of it")
                .fix(format!("alter publication {name} set (publish = 'insert, update, delete');")),
        );
    }
    findings
}

/// Tables that `for all tables` leaves out in silence.
fn left_out(facts: &Facts, publication: &Publication, contract: &Contract<'_>) -> Option<Finding> {
    if !publication.puballtables || facts.unlogged.is_empty() || contract.routed.is_some() {
        return None;
    }
    Some(
        Finding::warning("table.unlogged", "unlogged tables", facts.unlogged.join(", "))
            .why("their changes are not in the log, so nothing can tell them; `for all tables` leaves them out")
            .fix("alter table … set logged;   -- those whose changes matter"),
    )
}

/// Every published table has routes, and every route its table and columns.
fn coverage(facts: &Facts, (routes, source): (&Routes, &Source), publication: &Publication) -> Vec<Finding> {
    let name = sql::identifier(&publication.pubname);
    let mut findings = Vec::new();
    for table in facts.tables.iter().filter(|table| table.published) {
        let plan = Plan::compile(routes, source, &relation(table));
        let subject = format!("table {}", table.qualified());
        if plan.unknown {
            findings.push(
                Finding::would_not_work(
                    "table.routes",
                    &subject,
                    "is published, and the routes file does not know it",
                )
                .why("the relay refuses to pass over its changes in silence")
                .fix(format!(
                    "[[sources.tables]] name = {} …   -- or list it in `ignore`",
                    toml::Value::String(table.qualified())
                ))
                .fix(format!("alter publication {name} drop table {};", table.sql())),
            );
        }
        for problem in plan.problems() {
            findings.push(
                Finding::would_not_work("table.columns", &subject, problem.0.clone())
                    .why("the routes need it, and the stream does not have it: a column list hides it, it is generated, or it is gone")
                    .fix(format!("alter publication {name} set table {} (…, the column, …);", table.sql()))
                    .fix("or take the column out of the routes"),
            );
        }
    }
    for routed in &source.tables {
        let (schema, table) = routed.qualified();
        let known = facts.tables.iter().find(|known| known.schema == schema && known.name == table);
        if known.is_none_or(|known| !known.published) {
            findings.push(unpublished(known, &routed.of.to_string(), publication));
        }
    }
    findings
}

fn relation(table: &Table) -> Relation {
    // A generated column is not in the log, whatever the publication lists.
    let sent = table.columns.iter().filter(|column| column.published && !column.generated);
    let column = |column: &super::facts::Column| Column {
        name: column.name.clone(),
        type_oid: column.type_oid,
        key: column.key,
    };
    let identity = table.identity.bytes().next().unwrap_or(b'd');
    let columns = sent.map(column).collect();
    Relation { id: 0, schema: table.schema.clone(), name: table.name.clone(), identity, columns }
}

fn unpublished(known: Option<&Table>, name: &str, publication: &Publication) -> Finding {
    let (subject, publication_name) = (format!("table {name}"), sql::identifier(&publication.pubname));
    let finding = |check, found: &str| Finding::would_lose_data(check, &subject, found.to_owned());
    match known {
        None => Finding::would_not_work("table.exists", &subject, "has routes, and does not exist")
            .fix("correct the name in the routes file, or make the table"),
        Some(table) if table.unlogged => finding("table.unlogged", "is unlogged")
            .why("its changes are not in the log, so nothing can tell them")
            .fix(format!("alter table {} set logged;", table.sql())),
        Some(table) if table.partitioned && !publication.pubviaroot => finding(
            "table.partitions",
            "is partitioned, and its changes are published under the partitions' names",
        )
        .why("the routes of the table do not match them")
        .fix(format!("alter publication {publication_name} set (publish_via_partition_root = true);")),
        Some(table) if table.partition && publication.pubviaroot => {
            let root = table.root.as_deref().unwrap_or("its root");
            finding("table.partitions", &format!("is a partition, and its changes are published as {root}'s"))
                .why("the routes of the partition do not match them")
                .fix(format!("give the routes to {root}"))
        }
        Some(table) => finding("table.published", "has routes, and is not published")
            .why("its changes never reach the stream")
            .fix(format!("alter publication {publication_name} add table {};", table.sql())),
    }
}

/// Table by table: identity, large values, filters, rights.
pub fn tables(facts: &Facts, contract: &Contract<'_>) -> Vec<Finding> {
    let meant: Vec<&Table> = facts
        .tables
        .iter()
        .filter(|table| contract.is_meant(table) && (table.published || facts.publication.is_none()))
        .collect();
    let (updates, deletes) = contract.publishes(facts);
    let mut findings: Vec<Finding> = Vec::new();
    for table in &meant {
        findings.extend(identity(table, contract, updates || deletes));
        findings.extend(filter(table, contract));
        if facts.publication.is_none() && table.unlogged {
            findings.push(
                Finding::warning("table.unlogged", &format!("table {}", table.qualified()), "is unlogged")
                    .why("its changes are not in the log, so nothing can tell them")
                    .fix(format!("alter table {} set logged;", table.sql())),
            );
        }
    }
    if updates {
        findings.extend(large_values(&meant));
    }
    findings.extend(rights(&meant, facts));
    if findings.is_empty() && !meant.is_empty() {
        let names = meant.iter().map(|table| table.qualified()).collect::<Vec<_>>().join(", ");
        findings.push(Finding::ok("table.identity", "tables", names));
    }
    findings
}

fn identity(table: &Table, contract: &Contract<'_>, changes: bool) -> Option<Finding> {
    if table.identified || !changes {
        return None;
    }
    let published = table.published && contract.publication.is_some();
    let (subject, name) = (format!("table {}", table.qualified()), table.sql());
    let found = match table.identity.as_str() {
        "n" => "its replica identity is nothing",
        "i" => "its replica identity is an index that is gone or not valid",
        _ => "has no primary key (or only a deferrable one)",
    };
    let (make, why): (fn(&'static str, &str, String) -> Finding, _) = if published {
        (Finding::would_not_work, "its updates and deletes are published, so whoever tries one gets an error")
    } else {
        (Finding::warning, "once its updates and deletes are published, whoever tries one gets an error")
    };
    Some(
        make("table.identity", &subject, found.to_owned())
            .why(why)
            .fix(format!("alter table {name} add primary key (…);"))
            .fix(format!(
                "alter table {name} replica identity full;   -- writes every old row to the log as well"
            )),
    )
}

fn filter(table: &Table, contract: &Contract<'_>) -> Option<Finding> {
    let filter = table.row_filter.as_deref()?;
    let publication = contract.publication.map_or_else(|| "…".to_owned(), sql::identifier);
    Some(
        Finding::warning("table.row_filter", &format!("table {}", table.qualified()), format!("only rows where {filter}"))
            .why("other rows never reach the stream, and a row that an update moves out of the filter is told as a delete")
            .fix(format!("alter publication {publication} set table {};   -- publishes every row", table.sql())),
    )
}

/// Updates leave large values out of the log, unless the old row is in it too.
fn large_values(tables: &[&Table]) -> Vec<Finding> {
    let at_risk =
        |table: &&&Table| table.identity != "f" && table.columns.iter().any(|c| c.published && c.large);
    let (now, one_day): (Vec<&Table>, Vec<&Table>) =
        tables.iter().filter(at_risk).copied().partition(|table| table.toast_bytes > 0);
    let why = "an update that does not change a value stored outside its row leaves it out of the log; if a route needs \
               it, the row becomes a dead letter, and so do the later rows of its key";
    let mut findings: Vec<Finding> = now
        .iter()
        .map(|table| {
            let columns = table.columns.iter().filter(|c| c.large && c.published).map(|c| c.name.as_str());
            let found = format!(
                "has large values in {} ({} outside the rows), and updates may leave them out",
                columns.collect::<Vec<_>>().join(", "),
                super::slot::size(table.toast_bytes)
            );
            Finding::warning("table.large_values", &format!("table {}", table.qualified()), found)
                .why(why)
                .fix(format!("alter table {} replica identity full;", table.sql()))
                .fix("or `omit` the columns in the routes")
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
            .why("values above 2 kB are stored outside the row; then updates may leave them out of the log"),
        );
    }
    findings
}

/// Streaming needs no rights on tables; telling rows again does.
fn rights(tables: &[&Table], facts: &Facts) -> Option<Finding> {
    let missing: Vec<String> =
        tables.iter().filter(|table| !table.selectable).map(|table| table.sql()).collect();
    if missing.is_empty() {
        return None;
    }
    let (list, role) = (missing.join(", "), &facts.role.name);
    Some(
        Finding::warning("role.select", &format!("role {role}"), format!("may not read {list}"))
            .why("streaming does not need it; a snapshot, `replay` and `reconcile` read the rows themselves")
            .fix(format!("grant select on {list} to {};", sql::identifier(role))),
    )
}
