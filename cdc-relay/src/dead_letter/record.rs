//! The record of a dead letter: the row as Postgres prints it, and all that emitting it later needs.
//!
//! * `release` emits dead letters again. So a record has the columns with their types, the commit with its time, and the
//!   row's number in it: the event is then the same as it would have been, its id included.
//! * A record is bounded. Columns that do not fit are left out and named; the row itself is still in its table.
//! * Records of earlier releases are read too: they have no ordinal, no time and no types.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::dead_letter::halts::Halts;
use crate::dead_letter::json;
use crate::postgres::decode::pgoutput::{Tuple, Value};
use crate::postgres::decode::relation::{Column, Relation};
use crate::postgres::decode::row_builder::RowBuilder;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::utf8;
use crate::routes::TableName;
use crate::routes::route::{Plan, Transaction};
use crate::routes::row::{Op, Row};

/// The largest JSON of a dead letter's columns.
const COLUMNS_BYTES_MAX: usize = 512 << 10;
/// The largest record of the dead-letter topic.
pub const RECORD_BYTES_MAX: usize = COLUMNS_BYTES_MAX + (64 << 10);
/// A reason quotes values of the row; this much of it is enough.
const REASON_BYTES_MAX: usize = 2000;

/// The destination of a dead letter, and the keys that it halts there.
#[derive(Debug, Clone, Copy)]
pub struct Halt<'a> {
    pub destination: &'a str,
    pub halts: &'a Halts,
}

/// Why a row becomes a dead letter.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    pub reason: &'a str,
    /// The operation on the row.
    pub op: &'a str,
    /// The event's id, if a template gives it and it could be rendered.
    pub id: Option<&'a [u8]>,
}

/// A row that cannot be emitted.
#[derive(Clone, Copy)]
pub struct FailedRow<'a> {
    pub plan: &'a Plan,
    pub row: &'a Row<'a>,
    pub transaction: &'a Transaction,
}

/// A dead letter, as the topic has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetter {
    pub source: String,
    pub destination: String,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyless: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub table: String,
    #[serde(default = "insert")]
    pub op: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default)]
    position: String,
    #[serde(default)]
    cluster: String,
    #[serde(serialize_with = "json::time")]
    pub committed_at: Option<jiff::Timestamp>,
    ordinal: Option<u64>,
    /// A query answered the row: only positions in the WAL have an order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    existing: bool,
    /// The table's replica identity was full.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    whole: bool,
    #[serde(default)]
    columns: Vec<(String, u32)>,
    /// The columns as Postgres prints them.
    #[serde(default)]
    row: Map<String, Json>,
    /// Names of columns that are too long or not in the WAL, with commas between.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    omitted: String,
    /// Names of columns that have bytes that are no UTF-8 (see `utf8`), with commas between.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    bytes: String,
}

fn insert() -> String {
    "insert".to_owned()
}

/// A column of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnText<'a> {
    /// The dead letter does not have the column.
    Missing,
    Null,
    Text(&'a str),
}

/// Writes the record's value.
pub fn write(source: &str, halt: Halt<'_>, cause: Cause<'_>, row: FailedRow<'_>, out: &mut Vec<u8>) {
    out.clear();
    json::write(&DeadLetter::new(source, halt, cause, row), out);
}

/// The reason, without most of a long value.
pub fn shortened(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or(reason)
}

/// The columns of a row, up to the largest size.
#[derive(Default)]
struct Columns<'p> {
    row: Map<String, Json>,
    size: usize,
    omitted: Vec<&'p str>,
    bytes: Vec<&'p str>,
}

impl<'p> Columns<'p> {
    fn of(plan: &'p Plan, row: &Row<'_>) -> Columns<'p> {
        let mut columns = Columns::default();
        for (index, name) in plan.columns.iter().enumerate() {
            // The WAL has no more of a deleted row than its key.
            if row.op == Op::Delete && !plan.whole_deletes && row.new.get(index) == Value::Null {
                continue;
            }
            match row.text(index) {
                Ok(None) => columns.add(name, Json::Null),
                // Its JSON is no shorter than the text.
                Ok(Some(text)) if text.len() <= COLUMNS_BYTES_MAX => {
                    if !utf8::is_valid(text) {
                        columns.bytes.push(name);
                    }
                    columns.add(name, Json::String(utf8::owned(text)));
                }
                Ok(Some(_)) | Err(_) => columns.omitted.push(name),
            }
        }
        columns
    }

    fn add(&mut self, name: &'p str, value: Json) {
        let comma = usize::from(!self.row.is_empty());
        let size = self.size + comma + json::size(&name) + 1 + json::size(&value);
        if size > COLUMNS_BYTES_MAX {
            self.omitted.push(name);
            return;
        }
        self.size = size;
        self.row.insert(name.to_owned(), value);
    }
}

/// The position of a dead letter's row in the WAL. Later is greater, within a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPosition {
    pub cluster: String,
    pub position: (Lsn, u64),
}

impl WalPosition {
    /// Whether a dead letter at `other` repeats one that was read before: a broken session was repeated.
    pub fn covers(&self, other: &WalPosition) -> bool {
        self.cluster == other.cluster && self.position >= other.position
    }
}

impl DeadLetter {
    fn new(source: &str, halt: Halt<'_>, cause: Cause<'_>, row: FailedRow<'_>) -> DeadLetter {
        let FailedRow { plan, row, transaction } = row;
        let Columns { row, omitted, bytes, .. } = Columns::of(plan, row);
        let columns = plan.shape.columns.iter().map(|column| (column.name.clone(), column.type_oid));
        DeadLetter {
            source: source.to_owned(),
            destination: halt.destination.to_owned(),
            key: halt.halts.key.clone(),
            keyless: halt.halts.keyless.clone(),
            reason: shortened(cause.reason).to_owned(),
            table: plan.relation.clone(),
            op: cause.op.to_owned(),
            id: cause.id.map(|id| String::from_utf8_lossy(id).into_owned()),
            position: transaction.commit_lsn.to_string(),
            cluster: transaction.cluster.clone(),
            committed_at: Some(
                jiff::Timestamp::from_microsecond(transaction.committed_at.unix_micros())
                    .unwrap_or(jiff::Timestamp::MAX),
            ),
            ordinal: Some(transaction.rows),
            existing: transaction.existing,
            // The WAL has deleted rows with all of their columns.
            whole: plan.whole_deletes,
            columns: columns.collect(),
            row,
            omitted: omitted.join(","),
            bytes: bytes.join(","),
        }
    }

    /// Reads a record of the topic; `None` if it is no dead letter but a release.
    ///
    /// # Errors
    /// When the record is neither.
    pub fn read(value: &[u8]) -> Result<Option<DeadLetter>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            release: bool,
            from: Option<i64>,
        }
        // Records of earlier releases may have bytes that are no UTF-8.
        let value = utf8::json(value);
        let Kind { release, from } = serde_json::from_str(&value)?;
        if release || from.is_some() { Ok(None) } else { serde_json::from_str(&value).map(Some) }
    }

    /// The keys that it halts towards its destination.
    pub fn halts(&self) -> Halts {
        Halts { key: self.key.clone(), keyless: self.keyless.clone() }
    }

    /// `None`: an older record does not say, or the row did not come from the WAL.
    pub fn wal_position(&self) -> Option<WalPosition> {
        if self.existing {
            return None;
        }
        let position = (self.position.parse().ok()?, self.ordinal?);
        Some(WalPosition { cluster: self.cluster.clone(), position })
    }

    /// Whether the record says which row of its transaction it is.
    pub fn has_ordinal(&self) -> bool {
        self.ordinal.is_some()
    }

    /// The position of the commit, as Postgres prints it.
    pub fn position(&self) -> &str {
        &self.position
    }

    /// The transaction that the row belonged to, to be emitted once more. `at` is the time of its commit if the record
    /// does not say.
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

    /// The table as it was. `type_of` knows the types of an older record's columns.
    pub fn relation(&self, type_of: impl Fn(&str) -> u32) -> Relation {
        let TableName { schema, name } = self.table_name();
        let column = |name: &str, type_oid| Column { name: name.to_owned(), type_oid, key: false };
        let columns = match self.columns.as_slice() {
            [] => self.row.keys().map(|name| column(name, type_of(name))).collect(),
            columns => columns.iter().map(|(name, oid)| column(name, *oid)).collect(),
        };
        let identity = if self.whole { b'f' } else { b'd' };
        Relation { id: 0, schema, name, identity, columns }
    }

    /// An older record has the name without quotes, whatever is in it.
    fn table_name(&self) -> TableName {
        self.table.parse().unwrap_or_else(|_| {
            let (schema, name) = self.table.split_once('.').unwrap_or(("public", &self.table));
            TableName::new(schema, name)
        })
    }

    /// The row of the columns that [`fill`](Self::fill) filled in.
    pub fn row<'a>(&self, new: Tuple<'a>) -> Row<'a> {
        let op = self.op.parse().unwrap_or(Op::Insert);
        Row { op, new, old: None }
    }

    pub fn has_types(&self) -> bool {
        !self.columns.is_empty()
    }

    /// Fills in the row, in the order of `relation`. Columns that were left out are unknown.
    pub fn fill(&self, relation: &Relation, builder: &mut RowBuilder) {
        builder.begin();
        for column in &relation.columns {
            match self.row.get(&column.name) {
                Some(Json::Null) => builder.null(),
                Some(Json::String(text)) => builder.text(text.as_bytes()),
                Some(_) | None => builder.unknown(),
            }
        }
    }

    pub fn column(&self, name: &str) -> ColumnText<'_> {
        match self.row.get(name) {
            Some(Json::Null) => ColumnText::Null,
            Some(Json::String(text)) => ColumnText::Text(text),
            Some(_) | None => ColumnText::Missing,
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
