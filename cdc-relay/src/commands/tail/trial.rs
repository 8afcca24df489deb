//! Creates publications for as long as a tail lasts, without breaking any writer.
//!
//! * The server refuses a published update or delete of a table without a replica identity. So updates and deletes are
//!   published only for tables that have one, by name.
//! * Inserts of everything may be published with `for all tables`, which includes tables that are created later.
//! * A new table with an identity joins the publication of updates, and a table that loses its identity leaves it.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio_postgres::{Client, Statement};

use crate::postgres::facts::{Question, ask_prepared, prepare};
use crate::postgres::sql;
use crate::routes::TableName;
use crate::source::contract::identity::{Publishing, covers_new_partitions, harms};
use crate::source::contract::{Withdrawal, withdrawals};

/// The oldest server that the queries support.
const SERVER_VERSION_MIN: u32 = 130_000;
/// Publications of this name belong to a `tail`, or to one that was killed.
const PREFIX: &str = "cdc_relay_tail_";
/// The end of the name of the publication that has the updates and deletes.
pub const CHANGES: &str = "_u";

/// The facts of the server, before anything is created.
#[derive(Debug, Clone, Deserialize)]
pub struct Facts {
    pub version: u32,
    pub wal_level: String,
    pub standby: bool,
    pub role: String,
    pub superuser: bool,
    pub replication: bool,
    pub may_publish: bool,
    pub free_slots: i64,
    #[serde(skip)]
    pub tables: Vec<Table>,
    /// Publications that a tail made.
    pub leftovers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// Only its owner may publish it.
    pub owned: bool,
    /// Its updates and deletes can be published, and those of its partitions, also of the next one.
    pub identity: bool,
    pub key: Vec<String>,
}

impl Table {
    fn of(table: &crate::postgres::facts::Table, version: u32) -> Table {
        let harmless = harms(Publishing::own(version), table).is_empty();
        Table {
            oid: table.oid,
            schema: table.itself.schema.clone(),
            name: table.itself.name.clone(),
            owned: table.owned,
            identity: harmless && covers_new_partitions(table),
            key: table.key().to_vec(),
        }
    }

    pub fn sql(&self) -> String {
        sql::table(&self.schema, &self.name)
    }

    pub fn shown(&self) -> String {
        if self.schema == "public" { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }
}

pub async fn facts(client: &Client) -> Result<Facts> {
    let row = client.query_one(include_str!("facts.sql"), &[]).await.context("cannot query the server")?;
    let mut facts: Facts = serde_json::from_value(row.get(0)).context("the server's answer")?;
    // An older one is an obstacle.
    if facts.version >= SERVER_VERSION_MIN {
        facts.tables = tables(client, &prepare(client, &Question::of_everything()).await?).await?;
    }
    Ok(facts)
}

/// Every table that can be published.
pub async fn tables(client: &Client, question: &Statement) -> Result<Vec<Table>> {
    let found = ask_prepared(client, question).await?;
    Ok(found.tables.iter().map(|table| Table::of(table, found.version)).collect())
}

/// Why tail cannot show changes, and what to do.
pub fn obstacle(facts: &Facts, own_publication: bool) -> Option<String> {
    let Facts { role, wal_level, .. } = facts;
    if facts.version < SERVER_VERSION_MIN {
        let version = facts.version / 10_000;
        return Some(format!(
            "Postgres {} or newer is needed; this is {version}",
            SERVER_VERSION_MIN / 10_000
        ));
    }
    if wal_level != "logical" {
        return Some(format!(
            "wal_level is {wal_level}, so the WAL does not contain the changed rows. As a superuser:\n  \
             alter system set wal_level = logical;\n\
             then restart Postgres. (Amazon RDS and Aurora: rds.logical_replication = 1 in the parameter group; \
             Cloud SQL and AlloyDB: the flag logical_decoding = on; Azure: wal_level in the server parameters.)"
        ));
    }
    if !facts.replication {
        return Some(format!(
            "role {role} may not read the WAL. As a superuser:\n  alter role {quoted} replication;\n\
             (Amazon RDS: grant rds_replication to {quoted}.)",
            quoted = sql::identifier(role)
        ));
    }
    if facts.free_slots < 1 {
        return Some(
            "all replication slots are taken. Drop one that nobody needs (select * from pg_replication_slots), or \
             raise max_replication_slots and restart Postgres."
                .to_owned(),
        );
    }
    if facts.standby && own_publication {
        return Some(
            "this is a standby, where no publication can be made: name one with --publication, or connect to the \
             primary"
                .to_owned(),
        );
    }
    None
}

/// Publications to create, and notes on the changes that they leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub names: Vec<String>,
    pub statements: Vec<String>,
    pub notes: Vec<String>,
}

/// Decides what to publish: the tables that are `wanted`, or all.
pub fn plan(facts: &Facts, wanted: &[TableName], name: &str) -> Result<Plan> {
    let tables = choose(facts, wanted)?;
    let (may, may_not): (Vec<&Table>, Vec<&Table>) =
        tables.iter().partition(|table| table.owned || facts.superuser);
    let everything = facts.superuser && wanted.is_empty();
    if !everything && (!facts.may_publish || may.is_empty()) {
        bail!("{}", cannot_publish(facts, &tables));
    }
    let identified: Vec<&Table> = may.iter().copied().filter(|table| table.identity).collect();
    let list = |tables: &[&Table]| tables.iter().map(|table| table.sql()).collect::<Vec<_>>().join(", ");
    // Where generated columns are not published, one in a replica identity harms.
    let generated =
        if Publishing::own(facts.version).generated { ", publish_generated_columns = stored" } else { "" };
    let how = format!(", publish_via_partition_root = true{generated}");
    let of = if everything { "all tables".to_owned() } else { format!("table {}", list(&may)) };
    let mut plan = Plan { names: vec![name.to_owned()], statements: Vec::new(), notes: Vec::new() };
    plan.statements
        .push(format!("create publication {name} for {of} with (publish = 'insert, truncate'{how})"));
    // For everything it is created even without a table: later tables join it.
    if everything || !identified.is_empty() {
        let second = format!("{name}{CHANGES}");
        let of =
            if identified.is_empty() { String::new() } else { format!("for table {} ", list(&identified)) };
        plan.statements
            .push(format!("create publication {second} {of}with (publish = 'update, delete'{how})"));
        plan.names.push(second);
    }
    let names = |tables: &[&Table]| tables.iter().map(|table| table.shown()).collect::<Vec<_>>().join(", ");
    let without: Vec<&Table> = may.iter().copied().filter(|table| !table.identity).collect();
    if !without.is_empty() {
        plan.notes.push(format!(
            "only inserts and truncates of {}: without a primary key or another replica identity that the server accepts, \
             publishing its updates and deletes would make them fail",
            names(&without)
        ));
    }
    if !may_not.is_empty() {
        plan.notes.push(format!("not {}: role {} does not own it", names(&may_not), facts.role));
    }
    Ok(plan)
}

fn choose(facts: &Facts, wanted: &[TableName]) -> Result<Vec<Table>> {
    if wanted.is_empty() {
        return Ok(facts.tables.clone());
    }
    let find = |name: &TableName| {
        let found = facts.tables.iter().find(|known| (&*known.schema, &*known.name) == name.parts());
        found.cloned().with_context(|| {
            format!("there is no table {name} that can be published (views and unlogged tables cannot)")
        })
    };
    wanted.iter().map(find).collect()
}

fn cannot_publish(facts: &Facts, tables: &[Table]) -> String {
    let Facts { role, .. } = facts;
    if tables.is_empty() {
        return "this database has no table that can be published".to_owned();
    }
    let why = if facts.may_publish { "owns none of the tables" } else { "may not create a publication here" };
    let list = tables.iter().take(3).map(Table::sql).collect::<Vec<_>>().join(", ");
    format!(
        "role {role} {why}, and the WAL is read through a publication. Let the owner make one, and name it:\n  \
         create publication cdc_relay for table {list};\n  cdc-relay tail … --publication cdc_relay"
    )
}

/// Takes tables out of a tail's publication whose updates and deletes the server would refuse.
pub async fn withdraw_harmful(client: &Client, question: &Statement) -> Result<Vec<Withdrawal>> {
    let found = withdrawals(&ask_prepared(client, question).await?);
    for Withdrawal { sql, .. } in &found {
        client.batch_execute(sql).await.with_context(|| sql.clone())?;
    }
    Ok(found)
}

/// A unique name for publication and slot.
pub fn name() -> String {
    format!("{PREFIX}{:08x}", rand::random::<u32>())
}

/// Holds the name for as long as the client is connected, so that no other tail takes it for left behind.
pub async fn hold(client: &Client, name: &str) -> Result<bool> {
    let lock = "select pg_try_advisory_lock(hashtext($1), 0)";
    Ok(client.query_one(lock, &[&name]).await.context("advisory lock")?.get(0))
}

/// Drops the publications of killed tails. Those of another role cannot be dropped, and stay.
pub async fn clear(client: &Client, leftovers: &[String]) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    for name in leftovers {
        // Both publications of a tail are held by the name of the first.
        let base = name.trim_end_matches(CHANGES);
        if !hold(client, base).await? {
            continue;
        }
        if client
            .batch_execute(&format!("drop publication if exists {}", sql::identifier(name)))
            .await
            .is_ok()
        {
            dropped.push(name.clone());
        }
        client.execute("select pg_advisory_unlock(hashtext($1), 0)", &[&base]).await.context("unlock")?;
    }
    Ok(dropped)
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
