//! Everything that the contract is judged by, as the server says it: one statement, for whichever client asks.
//!
//! * The statement has no parameters, so that `session` and a client library can both send it.
//! * Column lists, row filters, generated columns and partitions are the server's answer, never a guess by its version.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::Deserialize;
use tokio_postgres::{Client, Statement};

use crate::postgres::decode::pgoutput::{Column as Sent, Relation};
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::name::TableName;
use crate::postgres::session::Session;
use crate::postgres::sql::literal;

/// From this version on generated columns can be published, and have to be where a replica identity has them.
pub const GENERATED_COLUMNS: u32 = 180_000;

const SQL: &str = include_str!("facts.sql");

/// Which tables the server is asked about.
#[derive(Debug, Clone, Default)]
pub struct Question<'a> {
    /// Its tables; if it does not exist, those that it would have as a publication of `named`.
    publication: Option<&'a str>,
    /// Tables with routes.
    named: Vec<(&'a str, &'a str)>,
    /// Without a publication: every table that could be published.
    everything: bool,
    only: Option<u32>,
}

impl<'a> Question<'a> {
    /// The tables of a publication, or those that a publication of `named` would have.
    pub fn of(publication: &'a str, named: Vec<(&'a str, &'a str)>) -> Question<'a> {
        Question { publication: Some(publication), named, ..Question::default() }
    }

    pub fn of_publication(name: &'a str) -> Question<'a> {
        Question { publication: Some(name), ..Question::default() }
    }

    /// One table, if the publication has it.
    pub fn of_table(publication: &'a str, oid: u32) -> Question<'a> {
        Question { publication: Some(publication), only: Some(oid), ..Question::default() }
    }

    /// A publication of these tables, as if it existed.
    pub fn of_named(named: Vec<(&'a str, &'a str)>) -> Question<'a> {
        Question { named, ..Question::default() }
    }

    /// Every table that could be published.
    pub fn of_everything() -> Question<'a> {
        Question { everything: true, ..Question::default() }
    }

    fn sql(&self) -> String {
        let list = |names: &mut dyn Iterator<Item = &str>| {
            format!("array[{}]", names.map(literal).collect::<Vec<_>>().join(", "))
        };
        let value = |name: &str| match name {
            "publication" => self.publication.map_or_else(|| "null".to_owned(), literal),
            "schemas" => list(&mut self.named.iter().map(|(schema, _)| *schema)),
            "names" => list(&mut self.named.iter().map(|(_, name)| *name)),
            "everything" => self.everything.to_string(),
            "only" => self.only.map_or_else(|| "null".to_owned(), |oid| oid.to_string()),
            other => format!("${other}"),
        };
        // One pass: a name of the user's may look like a placeholder.
        let mut parts = SQL.split('$');
        let mut sql = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(part.len());
            let (name, rest) = part.split_at(end);
            sql.push_str(&value(name));
            sql.push_str(rest);
        }
        sql
    }
}

/// The server's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Facts {
    /// As `server_version_num` counts: 150003.
    pub version: u32,
    pub wal_level: String,
    pub encoding: String,
    /// `None`: there is none of that name.
    pub publication: Option<Publication>,
    /// The tables that are published; without a publication, those that would be. By schema and name.
    pub tables: Vec<Table>,
    /// Tables that were asked for by name, could be published, and are not.
    #[serde(default)]
    pub absent: Vec<Table>,
    /// The tables that were asked for by name, in the order of the question.
    pub named: Vec<NamedTable>,
    /// If one of them does not exist: the tables and schemas that do.
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
    /// It publishes stored generated columns, of tables without a column list.
    pub generated: bool,
}

/// A published table, under the name that the stream has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Table {
    pub oid: u32,
    pub itself: Member,
    /// The partitions at the end of the tree, which the server judges instead; none of a table without partitions.
    pub partitions: Vec<Member>,
    pub columns: Vec<Column>,
    /// The publication has it.
    pub is_published: bool,
    /// The publication lists columns.
    pub listed: bool,
    /// The publication's row filter, as SQL, and the columns that it reads.
    pub filter: Option<String>,
    pub filter_columns: Vec<String>,
    /// The planner's estimate; negative before the first `analyze`.
    pub estimate: i64,
    /// The role that asks.
    pub role: String,
    /// The role may publish it, as its owner may.
    pub owned: bool,
    /// The role may read it.
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
    /// Of a partition: the table it is a part of.
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
    /// As a cast names it that cuts nothing off: `bpchar`, not `character`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of text, where it is not the type's own: what decides the order of rows.
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

/// A table that was asked for by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct NamedTable {
    pub schema: String,
    pub name: String,
    /// As in `Member`, and `v` view, `m` materialized view; `None`: it does not exist.
    pub kind: Option<char>,
    pub logged: Option<bool>,
    #[serde(default)]
    pub temporary: bool,
    /// Of a partition: the table it is a part of.
    pub root: Option<TableName>,
}

/// A null reads as the default: a table that is dropped at this moment.
fn or_default<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<bool, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Member {
    /// As the routes file names it.
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
    /// As the routes file names it.
    pub fn qualified(&self) -> String {
        self.itself.qualified()
    }

    pub fn is_partitioned(&self) -> bool {
        self.itself.kind == 'p'
    }

    /// Those whose replica identity counts: the partitions, or the table itself.
    pub fn members(&self) -> &[Member] {
        if self.is_partitioned() { &self.partitions } else { std::slice::from_ref(&self.itself) }
    }

    /// The columns that leave, in the order of the stream.
    pub fn sent(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.published)
    }

    fn sends(&self, name: &str) -> bool {
        self.sent().any(|column| column.name == name)
    }

    /// The columns that identify a row wherever one is named: in the stream, in queries and in tombstones. The index
    /// of the replica identity, else the primary key, in the order of the index; empty if not all of it is published.
    pub fn key(&self) -> &[String] {
        let itself = &self.itself;
        let index = if itself.identity == 'i' { itself.key.as_ref() } else { None };
        let key = index.or(itself.primary_key.as_ref()).map_or(&[][..], Vec::as_slice);
        if key.iter().all(|name| self.sends(name)) { key } else { &[] }
    }

    /// The key as far as it names and orders rows: `(owner text, id bigint)`.
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
    pub fn table(&self, (schema, name): (&str, &str)) -> Option<&Table> {
        self.tables.iter().find(|table| table.itself.schema == schema && table.itself.name == name)
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

/// Asks on a session of the relay's own.
pub fn ask(session: &mut Session, question: &Question<'_>) -> Result<Facts> {
    read(&session.query(&question.sql())?)
}

/// As `ask`, for a question that is asked again and again: planning it costs much more than answering it.
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

/// A question that is asked again and again through a client library.
pub async fn prepare(client: &Client, question: &Question<'_>) -> anyhow::Result<Statement> {
    client.prepare(&question.sql()).await.context("cannot look at the catalog")
}

pub async fn ask_prepared(client: &Client, question: &Statement) -> anyhow::Result<Facts> {
    let row = client.query_one(question, &[]).await.context("cannot look at the catalog")?;
    Facts::of(row.get(0)).context("the catalog's answer is not readable")
}
