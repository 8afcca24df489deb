//! Words the mismatch of a routed table that is not published.

use super::Mismatch;
use crate::nearest::hint;
use crate::postgres::facts::{Facts, NamedTable, Publication};
use crate::postgres::sql::{self, identifier};
use crate::routes::TableName;

/// Says why a table does not exist, with the nearest name.
fn nowhere(named: &NamedTable, facts: &Facts) -> String {
    if !facts.schemas.contains(&named.schema) {
        let near = hint(&named.schema, facts.schemas.iter().map(String::as_str));
        return format!("there is no schema `{}`{near}", named.schema);
    }
    let elsewhere = facts.existing.iter().find(|known| known.name == named.name);
    if let Some(known) = elsewhere {
        return format!("it does not exist (did you mean `{}`?)", known.short());
    }
    let names: Vec<String> = facts.existing.iter().map(TableName::short).collect();
    let near = hint(&TableName::new(&named.schema, &named.name).short(), names.iter().map(String::as_str));
    format!("it does not exist{near}")
}

fn unlogged(name: &str, sql: &str, publication: Option<&Publication>) -> Mismatch {
    // A table can be added only to a publication of named tables.
    let add = publication
        .filter(|publication| !publication.all_tables)
        .map(|publication| format!("; alter publication {} add table {sql}", identifier(&publication.name)));
    Mismatch::new("table.unlogged", name, "has routes, but is not published: it is unlogged")
        .loses()
        .why("its changes are not in the WAL, so they cannot be emitted")
        .fix_of_table(format!("alter table {sql} set logged{}", add.unwrap_or_default()))
}

/// Returns the mismatch for a routed table that is not published.
pub fn unpublished(named: &NamedTable, facts: &Facts) -> Mismatch {
    let name = TableName::new(&named.schema, &named.name).to_string();
    let sql = sql::table(&named.schema, &named.name);
    let new = |check, found: &str| Mismatch::new(check, &name, found);
    let publication = facts.publication.as_ref();
    match named.kind {
        None => {
            let found = format!("has routes, but is not published: {}", nowhere(named, facts));
            new("table.exists", &found).fix("correct the name in the routes, or make the table")
        }
        Some(_) if named.schema.starts_with("pg_") || named.schema == "information_schema" => {
            new("table.exists", "has routes, and cannot be published: it is a system table")
                .fix("take it out of the routes")
        }
        Some('r' | 'p') if named.temporary => {
            new("table.exists", "has routes, and cannot be published: it is temporary")
                .loses()
                .why("its changes are not in the WAL, so they cannot be emitted")
                .fix("take it out of the routes")
        }
        Some('r' | 'p') if named.logged == Some(false) => unlogged(&name, &sql, publication),
        Some('p') if publication.is_some_and(|publication| !publication.via_root) => {
            let publication =
                publication.map(|publication| identifier(&publication.name)).unwrap_or_default();
            new(
                "table.partitions",
                "has routes, but its changes are published under the names of its partitions",
            )
            .loses()
            .fix_of_publication(format!(
                "alter publication {publication} set (publish_via_partition_root = true)"
            ))
        }
        Some('r' | 'p') => match (&named.root, publication) {
            (Some(root), publication)
                if publication.is_none_or(|publication| publication.via_root)
                    && facts.table(root).is_some() =>
            {
                new(
                    "table.partitions",
                    &format!("is a partition, and its changes are published as those of {root}"),
                )
                .loses()
                .fix(format!("give the routes to {root}"))
            }
            (_, Some(publication)) => new("table.published", "has routes, but is not published")
                .loses()
                .why("its changes never reach the stream")
                .fix_of_table(format!("alter publication {} add table {sql}", identifier(&publication.name))),
            (_, None) => {
                new("table.exists", "has routes, and cannot be published").fix("take it out of the routes")
            }
        },
        Some(kind) => {
            let what = other_than_a_table(kind);
            new(
                "table.exists",
                &format!("has routes, but is not published: it is {what}, which has no changes in the WAL"),
            )
            .fix("route the tables that it reads")
        }
    }
}

fn other_than_a_table(kind: char) -> &'static str {
    match kind {
        'v' => "a view",
        'm' => "a materialized view",
        'f' => "a foreign table",
        'S' => "a sequence",
        _ => "not a table",
    }
}
