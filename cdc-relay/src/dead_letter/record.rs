//! What a dead letter says: the row as Postgres prints it, and all that emitting it later needs.
//!
//! `release` emits letters again, so a letter carries the columns with their types, the commit with its time, and
//! the row's number in it: the event is then the same as it would have been, its id included.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::dead_letter::halts::Halts;
use crate::postgres::decode::pgoutput::{Tuple, Value};
use crate::postgres::decode::relation::{Column, Relation};
use crate::postgres::decode::row_builder::RowBuilder;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::utf8;
use crate::routes::TableName;
use crate::routes::json;
use crate::routes::route::{Plan, Transaction};
use crate::routes::row::{Op, Row};

/// The columns of a letter have so many bytes at most, as JSON; those that do not fit are left out. The row itself
/// is still in its table.
const COLUMNS_BYTES_MAX: usize = 512 << 10;
/// No record of the dead-letter topic is larger.
pub const RECORD_BYTES_MAX: usize = COLUMNS_BYTES_MAX + (64 << 10);
/// A reason quotes values of the row; this much of it is enough.
const LONGEST_REASON: usize = 2000;

/// What a letter halts, and where.
#[derive(Debug, Clone, Copy)]
pub struct Halt<'a> {
    pub source: &'a str,
    pub destination: &'a str,
    pub halts: &'a Halts,
}

/// Why a row is set aside.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    pub reason: &'a str,
    /// What happened to the row.
    pub op: &'a str,
    /// The event's id, if a template gives it and it could be emitted.
    pub id: Option<&'a [u8]>,
}

/// Writes the record's value.
pub fn write(
    halt: Halt<'_>,
    cause: Cause<'_>,
    (plan, row, transaction): (&Plan, &Row<'_>, &Transaction),
    out: &mut Vec<u8>,
) {
    out.clear();
    let mut member = |name: &str, value: Option<&str>| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        json::string(name.as_bytes(), out);
        out.push(b':');
        match value {
            Some(value) => json::string(value.as_bytes(), out),
            None => out.extend_from_slice(b"null"),
        }
    };
    member("source", Some(halt.source));
    member("destination", Some(halt.destination));
    member("key", halt.halts.key.as_deref());
    if let Some(row) = &halt.halts.keyless {
        member("keyless", Some(row));
    }
    member("reason", Some(shortened(cause.reason)));
    member("table", Some(&plan.relation));
    member("op", Some(cause.op));
    if let Some(id) = cause.id {
        member("id", Some(&String::from_utf8_lossy(id)));
    }
    member("position", Some(&transaction.commit_lsn.to_string()));
    member("cluster", Some(&transaction.cluster));
    member("committed_at", Some(&String::from_utf8_lossy(&transaction.time)));
    number("ordinal", transaction.rows, out);
    if transaction.existing {
        out.extend_from_slice(b",\"existing\":true");
    }
    member_identity(plan, out);
    shape(&plan.shape, out);
    columns(plan, row, out);
    out.push(b'}');
}

/// The reason, without most of a long value.
pub fn shortened(reason: &str) -> &str {
    let mut end = reason.len().min(LONGEST_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or(reason)
}

fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    out.push(b',');
    json::string(name.as_bytes(), out);
    out.push(b':');
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// How much of a deleted row the WAL had.
fn member_identity(plan: &Plan, out: &mut Vec<u8>) {
    if plan.whole_deletes {
        out.extend_from_slice(b",\"whole\":true");
    }
}

/// `"columns":[["id",20],…]`
fn shape(relation: &Relation, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"columns\":[");
    for (index, column) in relation.columns.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"[" } else { b",[" });
        json::string(column.name.as_bytes(), out);
        out.push(b',');
        out.extend_from_slice(itoa::Buffer::new().format(column.type_oid).as_bytes());
        out.push(b']');
    }
    out.push(b']');
}

/// The columns as Postgres prints them; what is too long or not in the WAL is named in `omitted`, and what has bytes
/// that are no UTF-8 in `bytes` (see `utf8`).
fn columns(plan: &Plan, row: &Row<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"row\":{");
    let (start, mut omitted, mut bytes) = (out.len(), Vec::new(), Vec::new());
    for (index, name) in plan.columns.iter().enumerate() {
        // The WAL has no more of a deleted row than its key.
        if row.op == Op::Delete && !plan.whole_deletes && row.new.get(index) == Value::Null {
            continue;
        }
        let before = out.len();
        if before > start {
            out.push(b',');
        }
        json::string(name.as_bytes(), out);
        out.push(b':');
        match row.text(index) {
            Ok(None) => out.extend_from_slice(b"null"),
            // Cheap to know, and no longer than this after escaping.
            Ok(Some(text)) if text.len() <= COLUMNS_BYTES_MAX => {
                json::string(text, out);
                if !utf8::is_valid(text) {
                    bytes.push(name.as_str());
                }
            }
            Ok(Some(_)) | Err(_) => out.resize(start + COLUMNS_BYTES_MAX + 1, b' '),
        }
        if out.len() - start > COLUMNS_BYTES_MAX {
            out.truncate(before);
            omitted.push(name.as_str());
        }
    }
    out.push(b'}');
    if !omitted.is_empty() {
        out.extend_from_slice(b",\"omitted\":");
        json::string(omitted.join(",").as_bytes(), out);
    }
    if !bytes.is_empty() {
        out.extend_from_slice(b",\"bytes\":");
        json::string(bytes.join(",").as_bytes(), out);
    }
}

/// A letter, read back. Older letters have no place in their transaction, no time and no types.
#[derive(Debug, Clone, Deserialize)]
pub struct DeadLetter {
    pub source: String,
    pub destination: String,
    key: Option<String>,
    keyless: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub table: String,
    #[serde(default = "row")]
    pub op: String,
    pub id: Option<String>,
    #[serde(default)]
    position: String,
    #[serde(default)]
    cluster: String,
    pub committed_at: Option<jiff::Timestamp>,
    ordinal: Option<u64>,
    /// It came from a query: only places in the WAL have an order.
    #[serde(default)]
    existing: bool,
    /// The table's replica identity was full.
    #[serde(default)]
    whole: bool,
    #[serde(default)]
    columns: Vec<(String, u32)>,
    #[serde(default)]
    row: Map<String, Json>,
}

fn row() -> String {
    "insert".to_owned()
}

/// Where a letter's row stands in the WAL. Later is greater, within a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPosition {
    pub cluster: String,
    pub position: (Lsn, u64),
}

impl WalPosition {
    /// Whether a letter at `place`, of a row at `self` or before it, was written once more after a broken session.
    pub fn covers(&self, place: &WalPosition) -> bool {
        self.cluster == place.cluster && self.position >= place.position
    }
}

impl DeadLetter {
    /// Reads a record of the topic; `None` if it is no letter but a release.
    pub fn read(value: &[u8]) -> Result<Option<DeadLetter>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            release: bool,
            from: Option<i64>,
        }
        // Those of older relays may have bytes that are no UTF-8.
        let value = utf8::json(value);
        let Kind { release, from } = serde_json::from_str(&value)?;
        if release || from.is_some() { Ok(None) } else { serde_json::from_str(&value).map(Some) }
    }

    /// What it halts towards its destination.
    pub fn halts(&self) -> Halts {
        Halts { key: self.key.clone(), keyless: self.keyless.clone() }
    }

    /// None: an older letter does not say, or the row did not come from the WAL.
    pub fn place(&self) -> Option<WalPosition> {
        if self.existing {
            return None;
        }
        let position = (self.position.parse().ok()?, self.ordinal?);
        Some(WalPosition { cluster: self.cluster.clone(), position })
    }

    /// Whether it says which row of its transaction it is.
    pub fn has_ordinal(&self) -> bool {
        self.ordinal.is_some()
    }

    /// The commit, as Postgres prints its position.
    pub fn position(&self) -> &str {
        &self.position
    }

    /// The transaction that the row belonged to, emitted once more. `at` is when it was committed, if the letter does
    /// not say.
    pub fn transaction(&self, at: PgTime) -> Transaction {
        let committed_at = self.committed_at.map_or(at, PgTime::from);
        let mut transaction = Transaction {
            cluster: self.cluster.clone(),
            commit_lsn: self.position.parse().unwrap_or_default(),
            committed_at,
            rows: self.ordinal.unwrap_or_default(),
            re_emitted: true,
            existing: self.existing,
            ..Transaction::default()
        };
        committed_at.write_rfc3339(&mut transaction.time);
        transaction
    }

    /// The table as it was. `of` knows the types of an older letter's columns.
    pub fn relation(&self, of: impl Fn(&str) -> u32) -> Relation {
        let TableName { schema, name } = self.table_name();
        let column = |name: &str, type_oid| Column { name: name.to_owned(), type_oid, key: false };
        let columns = match self.columns.as_slice() {
            [] => self.row.keys().map(|name| column(name, of(name))).collect(),
            columns => columns.iter().map(|(name, oid)| column(name, *oid)).collect(),
        };
        let identity = if self.whole { b'f' } else { b'd' };
        Relation { id: 0, schema, name, identity, columns }
    }

    /// An older letter has the name without quotes, whatever is in it.
    fn table_name(&self) -> TableName {
        self.table.parse().unwrap_or_else(|_| {
            let (schema, name) = self.table.split_once('.').unwrap_or(("public", &self.table));
            TableName::new(schema, name)
        })
    }

    /// The row that `new` was made for.
    pub fn row<'a>(&self, new: Tuple<'a>) -> Row<'a> {
        let op = self.op.parse().unwrap_or(Op::Insert);
        Row { op, new, old: None }
    }

    pub fn has_types(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Fills in the row, in the order of `relation`. What was left out is unknown.
    pub fn fill(&self, relation: &Relation, made: &mut RowBuilder) {
        made.begin();
        for column in &relation.columns {
            match self.row.get(&column.name) {
                Some(Json::Null) => made.null(),
                Some(Json::String(text)) => made.text(text.as_bytes()),
                Some(_) | None => made.unknown(),
            }
        }
    }

    /// The text of a column; `None` if the letter does not have it, `Some(None)` for null.
    pub fn column(&self, name: &str) -> Option<Option<&str>> {
        match self.row.get(name)? {
            Json::Null => Some(None),
            Json::String(text) => Some(Some(text)),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
