//! Reads the facts that the contract is judged by from the server's catalog.
//!
//! * One statement without parameters asks for all of them, so that `session` and a client library can both send it.
//! * Column lists, row filters, generated columns and partitions are the server's answer, never a guess by its version.

mod question;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::Deserialize;
use tokio_postgres::{Client, Statement};

pub use self::question::Question;
use crate::postgres::decode::relation::{Column as Sent, Relation};
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::name::TableName;
use crate::postgres::session::Session;

/// The first version that can publish generated columns. It requires it of those in a replica identity.
pub const GENERATED_COLUMNS: u32 = 180_000;

/// The server's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Facts {
    /// As `server_version_num` counts: 150003.
    pub version: u32,
    pub wal_level: String,
    pub encoding: String,
    /// None: there is no publication of that name.
    pub publication: Option<Publication>,
    /// The published tables, by schema and name. Without a publication, the tables that it would have.
    pub tables: Vec<Table>,
    /// Tables of the question that could be published and are not.
    #[serde(default)]
    pub absent: Vec<Table>,
    /// The tables of the question, in its order.
    pub named: Vec<NamedTable>,
    /// The existing tables and schemas, if a table of the question does not exist.
    #[serde(default)]
    pub existing: Vec<TableName>,
    #[serde(default)]
    pub schemas: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Publication {
    pub name: String,
    pub all_tables: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
    pub via_root: bool,
    /// It publishes stored generated columns of tables without a column list.
    pub generated: bool,
}

/// A published table, under its name in the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Table {
    pub oid: u32,
    pub itself: Member,
    /// The leaf partitions, which the server judges instead of the table. Empty for a table without partitions.
    pub partitions: Vec<Member>,
    pub columns: Vec<Column>,
    /// The publication has the table.
    pub is_published: bool,
    /// The publication lists columns.
    pub listed: bool,
    /// The publication's row filter as SQL.
    pub filter: Option<String>,
    pub filter_columns: Vec<String>,
    /// The planner's estimate; negative before the first `analyze`.
    pub estimate: i64,
    /// The session's role.
    pub role: String,
    /// The role may publish the table, as its owner may.
    pub owned: bool,
    /// The role may read the table.
    #[serde(deserialize_with = "or_default")]
    pub selectable: bool,
    /// Row security hides rows from the role.
    pub hidden: bool,
}

/// A table, or a partition: the unit of replica identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Member {
    pub schema: String,
    pub name: String,
    /// `r` table, `p` partitioned table, `f` foreign table.
    pub kind: char,
    /// Its changes are in the WAL: neither unlogged nor temporary.
    pub logged: bool,
    /// The root table of a partition.
    pub root: Option<TableName>,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub identity: char,
    /// The columns of the index that identifies its rows for the server, in the order of the index.
    pub key: Option<Vec<String>>,
    pub primary_key: Option<Vec<String>>,
    /// The primary key is deferrable, which identifies nothing.
    pub deferrable: bool,
    /// Generated columns: `s` stored, `v` virtual.
    pub generated: BTreeMap<String, char>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// The type's name in a cast that truncates nothing: `bpchar`, not `character`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The collation, if it is not the type's own. It decides the order of rows.
    #[serde(default)]
    pub collation: Option<String>,
    /// Its values may be stored outside the row.
    pub large: bool,
    pub published: bool,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)?;
        self.collation.iter().try_for_each(|collation| write!(f, " collate {collation}"))
    }
}

/// A table of the question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct NamedTable {
    pub schema: String,
    pub name: String,
    /// As in `Member`, and `v` view, `m` materialized view. None: the table does not exist.
    pub kind: Option<char>,
    pub logged: Option<bool>,
    #[serde(default)]
    pub temporary: bool,
    /// The root table of a partition.
    pub root: Option<TableName>,
}

/// Reads null as the default: the table is being dropped.
fn or_default<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<bool, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Member {
    /// The name in the routes file's form.
    pub fn qualified(&self) -> String {
        self.table_name().to_string()
    }

    pub fn table_name(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    /// Whether the server can publish its changes.
    pub fn is_publishable(&self) -> bool {
        self.kind == 'r' && self.logged
    }
}

impl Table {
    /// The name in the routes file's form.
    pub fn qualified(&self) -> String {
        self.itself.qualified()
    }

    pub fn is_partitioned(&self) -> bool {
        self.itself.kind == 'p'
    }

    /// The tables whose replica identity counts: the partitions, or the table itself.
    pub fn members(&self) -> &[Member] {
        if self.is_partitioned() { &self.partitions } else { std::slice::from_ref(&self.itself) }
    }

    /// The published columns, in the order of the stream.
    pub fn sent(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.published)
    }

    fn sends(&self, name: &str) -> bool {
        self.sent().any(|column| column.name == name)
    }

    /// The columns that identify a row in the stream, in queries and in tombstones: those of the replica identity's index, else
    /// of the primary key, in the order of the index. Empty if one of them is not published.
    pub fn key(&self) -> &[String] {
        let itself = &self.itself;
        let index = if itself.identity == 'i' { itself.key.as_ref() } else { None };
        let key = index.or(itself.primary_key.as_ref()).map_or(&[][..], Vec::as_slice);
        if key.iter().all(|name| self.sends(name)) { key } else { &[] }
    }

    /// The key with types and collations, which identify and order rows: `(owner text, id bigint)`.
    pub fn key_text(&self) -> String {
        let columns =
            self.key().iter().filter_map(|name| self.columns.iter().find(|column| column.name == *name));
        format!("({})", columns.map(Column::to_string).collect::<Vec<_>>().join(", "))
    }

    /// The table as the stream announces it, with its key marked.
    pub fn relation(&self) -> Relation {
        let key = self.key();
        let sent = self.sent().map(|column| Sent {
            name: column.name.clone(),
            type_oid: column.type_oid,
            key: key.contains(&column.name),
        });
        let itself = &self.itself;
        Relation {
            id: self.oid,
            schema: itself.schema.clone(),
            name: itself.name.clone(),
            identity: u8::try_from(itself.identity).unwrap_or(b'd'),
            columns: sent.collect(),
        }
    }
}

impl Facts {
    /// The published table of that name.
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        let is = |table: &Table| table.itself.schema == name.schema && table.itself.name == name.name;
        self.tables.iter().find(|table| is(table))
    }

    fn parse(answer: Option<&str>) -> serde_json::Result<Facts> {
        Facts::of(serde_json::from_str(answer.unwrap_or_default())?)
    }

    fn of(answer: serde_json::Value) -> serde_json::Result<Facts> {
        let mut facts: Facts = serde_json::from_value(answer)?;
        if facts.publication.is_some() {
            let absent;
            (facts.tables, absent) =
                std::mem::take(&mut facts.tables).into_iter().partition(|t| t.is_published);
            facts.absent = absent;
        }
        Ok(facts)
    }
}

/// Asks on a relay's session.
pub fn ask(session: &mut Session, question: &Question<'_>) -> Result<Facts> {
    read(&session.query(&question.sql())?)
}

/// As `ask`, for a repeated question: planning it costs much more than answering it.
pub fn ask_again(session: &mut Session, question: &Question<'_>) -> Result<Facts> {
    read(&session.query_prepared(&question.sql())?)
}

fn read(rows: &[crate::postgres::session::Row]) -> Result<Facts> {
    let answer = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
    Facts::parse(answer)
        .map_err(|error| PostgresError::Protocol(format!("the catalog's answer is not readable: {error}")))
}

/// Asks through a client library.
pub async fn ask_client(client: &Client, question: &Question<'_>) -> anyhow::Result<Facts> {
    ask_prepared(client, &prepare(client, question).await?).await
}

/// Prepares a repeated question through a client library.
pub async fn prepare(client: &Client, question: &Question<'_>) -> anyhow::Result<Statement> {
    client.prepare(&question.sql()).await.context("cannot look at the catalog")
}

pub async fn ask_prepared(client: &Client, question: &Statement) -> anyhow::Result<Facts> {
    let row = client.query_one(question, &[]).await.context("cannot look at the catalog")?;
    Facts::of(row.get(0)).context("the catalog's answer is not readable")
}
