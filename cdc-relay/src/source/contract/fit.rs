//! Decides whether routes, publication and tables fit each other. Pure; `run` and `doctor` both use it.
//!
//! * Every published table is routed or ignored, and every route finds its table and its columns.
//! * Every operation that a route takes is published, and every published operation is known to the routes.
//! * The publication makes the server refuse no update or delete of an application.
//! * The stream and a query name the same key for a row.

use super::advice::{Mismatch, harms, make_full, sql_name};
use super::identity::{Publishing, covers_new_partitions};
pub use super::operations::Operations;
use super::unpublished::unpublished;
use super::{Contract, existing};
use crate::postgres::decode::relation::Relation;
use crate::postgres::facts::{Facts, Publication, Table};
use crate::postgres::sql::{self, identifier};
use crate::routes::Source;
use crate::routes::route::Plan;

/// Returns the statement for the relay's own publication. It publishes the operations that the routes take, partitions
/// under the name of their root, and stored generated columns, since the server refuses updates without them.
pub fn creation(source: &Source, version: u32) -> String {
    let tables = source.tables.iter().map(|table| {
        let (schema, name) = table.qualified();
        sql::table(schema, name)
    });
    let generated =
        if Publishing::own(version).generated { ", publish_generated_columns = stored" } else { "" };
    format!(
        "create publication {} for table {} with (publish = '{}', publish_via_partition_root = true{generated})",
        identifier(source.publication.get_ref()),
        tables.collect::<Vec<_>>().join(", "),
        Operations::of_routes(source).list()
    )
}

/// The published tables, and the publication that they are read through.
#[derive(Debug, Clone, Copy)]
pub struct PublishedTables<'a> {
    pub facts: &'a Facts,
    /// The tables of `facts` in the same order, with their types.
    pub relations: &'a [Relation],
}

/// A publication, as far as the check of one table depends on it.
#[derive(Debug, Clone, Copy)]
pub struct TablePublication {
    pub operations: Operations,
    /// The table is in the publication already.
    pub includes_table: bool,
}

/// Returns every mismatch except those of literals, which need the server. `has_slot`: the publication must exist, and the
/// source may have streamed.
pub fn all(contract: Contract<'_>, published: PublishedTables<'_>, has_slot: bool) -> Vec<Mismatch> {
    let (facts, source) = (published.facts, contract.source);
    let will_be_made = source.own_publication && !has_slot;
    let mut found = if facts.publication.is_none() && facts.wal_level == "logical" && !will_be_made {
        vec![missing(source, facts.version)]
    } else {
        let mut found = server(facts);
        found.extend(mismatches(contract, published));
        found.extend(existing::mismatches(source, facts));
        found
    };
    found.iter_mut().for_each(|mismatch| mismatch.streamed = has_slot);
    found
}

fn missing(source: &Source, version: u32) -> Mismatch {
    let subject = format!("publication {}", source.publication.get_ref());
    Mismatch::new("publication.exists", subject, "does not exist")
        .why("the relay reads the WAL through it, and a slot that is older than the publication cannot find it")
        .fix_of_publication(creation(source, version))
}

/// Returns the mismatches of publication and tables. Without a publication, it checks the one that the relay would make.
fn mismatches(contract: Contract<'_>, published: PublishedTables<'_>) -> Vec<Mismatch> {
    let (Contract { routes, source }, PublishedTables { facts, relations }) = (contract, published);
    let plans: Vec<Plan> = relations.iter().map(|relation| Plan::compile(routes, source, relation)).collect();
    let mut found = Vec::new();
    let operations = match &facts.publication {
        Some(publication) => {
            found.extend(operations(source, publication, &plans));
            Operations::of_publication(publication)
        }
        None => Operations::of_routes(source),
    };
    let publication = TablePublication { operations, includes_table: facts.publication.is_some() };
    for (table, plan) in facts.tables.iter().zip(&plans) {
        found.extend(known(facts, source, table, plan));
        found.extend(plan.problems().map(|problem| columns(facts, table, &problem.0)));
        found.extend(table_mismatches(facts, table, publication));
        found.extend(filtered(table, plan, operations));
    }
    // These come before the advice to publish the tables.
    for table in &facts.absent {
        found.extend(table_mismatches(
            facts,
            table,
            TablePublication { includes_table: false, ..publication },
        ));
    }
    for (table, named) in source.tables.iter().zip(&facts.named) {
        if facts.table(&table.table_name).is_none() {
            found.push(unpublished(named, facts));
        }
    }
    found
}

/// Returns the mismatches of server settings and database encoding.
pub fn server(facts: &Facts) -> Vec<Mismatch> {
    let mut found = Vec::new();
    if facts.wal_level != "logical" {
        let level = format!("is {}", facts.wal_level);
        found.push(
            Mismatch::new("server.wal_level", "wal_level", level)
                .fix("set it to logical and restart Postgres"),
        );
    }
    if facts.encoding == "SQL_ASCII" {
        found.push(Mismatch::new(
            "server.encoding",
            "the database's encoding",
            "is SQL_ASCII: its text need not be valid UTF-8",
        ));
    }
    found
}

fn operations(source: &Source, publication: &Publication, plans: &[Plan]) -> Vec<Mismatch> {
    let (name, taken) = (identifier(&publication.name), Operations::of_routes(source));
    let new = |found: &str| {
        Mismatch::new("publication.operations", format!("publication {}", publication.name), found)
    };
    let set =
        |operations: Operations| format!("alter publication {name} set (publish = '{}')", operations.list());
    let mut found = Vec::new();
    let unsaid: Vec<&str> =
        plans.iter().filter(|plan| !plan.handles_deletes()).map(|plan| plan.relation.as_str()).collect();
    let unsaid = if publication.delete { unsaid } else { Vec::new() };
    if publication.truncate || !unsaid.is_empty() {
        let mut mismatch = new("publishes deletes or truncates, which the relay does not emit")
            .fix_of_publication(set(Operations { delete: taken.delete && unsaid.is_empty(), ..taken }));
        if !unsaid.is_empty() && !publication.truncate {
            mismatch = mismatch.fix(format!("set `deletes` in the routes of {}", unsaid.join(", ")));
        }
        found.push(mismatch);
    }
    for (taken_and_missing, what) in
        [(taken.insert && !publication.insert, "inserts"), (taken.update && !publication.update, "updates")]
    {
        if taken_and_missing {
            found.push(
                new(&format!("does not publish {what}, which the routes take"))
                    .loses()
                    .fix_of_publication(set(taken))
                    .fix("name in the routes the operations that are taken (`op`)"),
            );
        }
    }
    if taken.delete && !publication.delete {
        found.push(
            new("does not publish deletes, which the routes take")
                .fix_of_publication(set(Operations { delete: true, ..taken })),
        );
    }
    found
}

/// Returns a mismatch for a published table that is neither routed nor ignored.
fn known(facts: &Facts, source: &Source, table: &Table, plan: &Plan) -> Option<Mismatch> {
    let root = table.itself.root.as_ref();
    let root_routed = root.is_some_and(|root| source.table(root).is_some());
    // The mismatch is then the root's (`unpublished`).
    if !plan.unknown || root_routed {
        return None;
    }
    let mut mismatch =
        Mismatch::new("table.routes", &plan.relation, "is published, and neither routed nor ignored")
            .why("the relay skips no change silently")
            .fix("give it routes, or list it in `ignore`");
    if let Some(publication) = facts.publication.as_ref().filter(|publication| !publication.all_tables) {
        let (name, table) = (identifier(&publication.name), sql_name(&table.itself));
        mismatch = mismatch.fix(format!("alter publication {name} drop table {table}"));
    }
    Some(mismatch)
}

/// Returns the mismatch for a route that does not find its columns. `problem` describes it.
fn columns(facts: &Facts, table: &Table, problem: &str) -> Mismatch {
    let full = problem.contains("replica identity full") && make_full(Publishing::of(facts), table).is_none();
    let but = if full { ", but here that would make the server refuse its updates" } else { "" };
    let found = format!("does not fit its routes: {problem}{but}");
    let mut mismatch = Mismatch::new("table.columns", table.qualified(), found);
    if !problem.starts_with("column ") {
        return mismatch;
    }
    mismatch = mismatch.why(
        "the routes need the column, and the stream does not have it: a column list hides it, it is generated, or it was dropped",
    );
    if let Some(publication) = facts.publication.as_ref().filter(|_| table.listed) {
        let (name, table) = (identifier(&publication.name), sql_name(&table.itself));
        let set = format!("alter publication {name} set table {table} (…, the column, …)");
        mismatch = mismatch.fix_of_publication(set);
    }
    mismatch.fix("take the column out of the routes")
}

/// Returns the mismatches of a table that do not depend on its routes.
pub fn table_mismatches(facts: &Facts, table: &Table, publication: TablePublication) -> Vec<Mismatch> {
    let mut found = Vec::new();
    for member in table.members().iter().filter(|member| !member.is_publishable()) {
        let what = if member.kind == 'f' { "is a foreign table" } else { "is unlogged" };
        let mismatch = Mismatch::new(
            "table.unlogged",
            member.qualified(),
            format!("{what}, a partition of {}", table.qualified()),
        )
        .loses()
        .why("its changes are not in the WAL, so they cannot be emitted");
        found.push(if member.kind == 'f' {
            mismatch.fix(format!(
                "alter table {} detach partition {}",
                sql_name(&table.itself),
                sql_name(member)
            ))
        } else {
            mismatch.fix_of_table(format!("alter table {} set logged", sql_name(member)))
        });
    }
    if !publication.operations.need_identity() {
        return found;
    }
    let harms = harms(facts, table);
    let harmless = harms.is_empty();
    found.extend(harms);
    if harmless {
        if !publication.includes_table && !covers_new_partitions(table) {
            found.push(
                Mismatch::new("table.identity", table.qualified(), "is partitioned and has no primary key, or only a deferrable one")
                    .why("a new partition would have no replica identity, and the server would refuse its updates and deletes")
                    .fix(format!("alter table {} add primary key (…)", sql_name(&table.itself))),
            );
        }
        found.extend(other_keys(table));
    }
    found
}

/// Returns the partitions whose replica identity does not cover the key of the root. The stream announces the root, but
/// sends of an old row only the identity of its partition.
fn other_keys(table: &Table) -> Vec<Mismatch> {
    let root = &table.itself;
    let fits = |partition: &&crate::postgres::facts::Member| match (root.identity, partition.identity) {
        (_, 'f') => true,
        ('f', _) => false,
        _ => {
            let key = partition.key.as_deref().unwrap_or_default();
            root.key.iter().flatten().all(|name| key.contains(name))
        }
    };
    let others = table.partitions.iter().filter(|member| member.is_publishable());
    let others = others.filter(|partition| !fits(partition));
    others
        .map(|partition| {
            Mismatch::new(
                "table.identity",
                partition.qualified(),
                format!(
                    "has another replica identity than {}, of which it is a partition",
                    table.qualified()
                ),
            )
            .why("the stream sends of an old row only the partition's identity, under the root's name")
            .fix(format!("alter table {} replica identity default", sql_name(root)))
            .fix(format!("alter table {} replica identity full", sql_name(partition)))
        })
        .collect()
}

/// Returns a mismatch for a row filter whose deletes the routes do not cover. An update that takes a row out of the filter
/// is a delete in the stream, even if deletes are not published.
fn filtered(table: &Table, plan: &Plan, operations: Operations) -> Option<Mismatch> {
    let filter = table.filter.as_deref().filter(|_| operations.update && !plan.unknown)?;
    if plan.handles_deletes() {
        return None;
    }
    Some(
        Mismatch::new(
            "table.row_filter",
            table.qualified(),
            format!("has the row filter {filter}, and its routes do not set `deletes`"),
        )
        .why("an update that takes a row out of the filter arrives as a delete")
        .fix("add `deletes = \"tombstone\"`, `\"event\"`, `\"both\"` or `\"ignore\"` to its routes"),
    )
}
