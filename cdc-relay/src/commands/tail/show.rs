//! Renders decoded changes as text or JSON. Pure: relations and changes in, bytes out.

use std::collections::BTreeMap;

use super::text::{Paint, value};
use crate::postgres::decode::pgoutput::{Old, Tuple, Value};
use crate::postgres::decode::relation::Relation;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::routes::TableName;
use crate::routes::json::{self, Form};

/// How changes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object a line, values whole.
    Json,
    /// One line a change, transactions apart, long values cut.
    Text { colour: bool },
}

/// A change, as the WAL has it.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    Insert(Tuple<'a>),
    Update { old: Option<Old<'a>>, new: Tuple<'a> },
    Delete(Old<'a>),
}

/// A table, and which of its columns make its key.
#[derive(Debug)]
struct Table {
    relation: Relation,
    /// By column: whether it identifies the row.
    key: Vec<bool>,
    shown: bool,
}

#[derive(Debug, Default)]
struct Transaction {
    commit: Lsn,
    xid: u32,
    time: Vec<u8>,
    changes: u64,
}

/// Rendered bytes, not yet taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    pub bytes: Vec<u8>,
    pub changes: u64,
}

#[derive(Debug)]
pub struct Show {
    format: Format,
    /// Only these tables; none means all.
    only: Vec<TableName>,
    tables: BTreeMap<u32, Table>,
    transaction: Transaction,
    chunk: Chunk,
}

impl Show {
    pub fn new(format: Format, only: Vec<TableName>) -> Show {
        Show {
            format,
            only,
            tables: BTreeMap::new(),
            transaction: Transaction::default(),
            chunk: Chunk::default(),
        }
    }

    /// The server announces the columns of a table.
    pub fn relation(&mut self, relation: Relation) {
        // Without a primary key the whole row is the key, where it is the identity.
        let none = !relation.columns.iter().any(|column| column.key);
        let key = relation.columns.iter().map(|column| column.key || none && relation.is_full()).collect();
        let shown = self.only.is_empty() || self.only.contains(&relation.table_name());
        self.tables.insert(relation.id, Table { key, shown, relation });
    }

    pub fn begin(&mut self, commit: Lsn, committed_at: PgTime, xid: u32) {
        self.transaction = Transaction { commit, xid, time: Vec::new(), changes: 0 };
        committed_at.write_rfc3339(&mut self.transaction.time);
    }

    /// A row was changed. A change of an unannounced table is ignored: the server always announces first.
    pub fn change(&mut self, relation: u32, change: &Change<'_>) {
        let Some(table) = self.tables.get(&relation).filter(|table| table.shown) else { return };
        match self.format {
            Format::Json => object(table, change, &self.transaction, &mut self.chunk.bytes),
            Format::Text { colour } => {
                let paint = Paint { colour };
                head(paint, &self.transaction, &mut self.chunk.bytes);
                line(paint, table, change, &mut self.chunk.bytes);
            }
        }
        self.count();
    }

    pub fn truncate(&mut self, flags: u8, relations: &[u32]) {
        for relation in relations {
            let Some(table) = self.tables.get(relation).filter(|table| table.shown) else { continue };
            let out = &mut self.chunk.bytes;
            match self.format {
                Format::Json => {
                    opening(&self.transaction, table, "truncate", out);
                    out.extend_from_slice(format!(r#","cascade":{}"#, flags & 1 == 1).as_bytes());
                    out.extend_from_slice(format!(r#","restart_identity":{}"#, flags & 2 == 2).as_bytes());
                    out.extend_from_slice(b"}\n");
                }
                Format::Text { colour } => {
                    let paint = Paint { colour };
                    head(paint, &self.transaction, out);
                    paint.operation("truncate", out);
                    paint.table(&table.relation, out);
                    out.extend_from_slice(b"  every row\n");
                }
            }
            self.count();
        }
    }

    /// Renders the number of changes that were skipped because nothing took them.
    pub fn skipped(&self, changes: u64) -> Vec<u8> {
        match self.format {
            Format::Json => format!("{{\"skipped\":{changes}}}\n").into_bytes(),
            Format::Text { colour } => {
                let text = format!("… {changes} changes are left out here: the output was not taken in time");
                let mut out = Vec::new();
                Paint { colour }.warning(&text, &mut out);
                out.push(b'\n');
                out
            }
        }
    }

    /// Bytes written and not yet taken.
    pub fn written(&self) -> usize {
        self.chunk.bytes.len()
    }

    pub fn take(&mut self) -> Chunk {
        std::mem::take(&mut self.chunk)
    }

    fn count(&mut self) {
        self.chunk.changes += 1;
        self.transaction.changes += 1;
    }
}

/// The line above a transaction's first change.
fn head(paint: Paint, transaction: &Transaction, out: &mut Vec<u8>) {
    if transaction.changes == 0 {
        let time = String::from_utf8_lossy(&transaction.time);
        paint.faint(&format!("{time}  transaction {}  {}", transaction.xid, transaction.commit), out);
        out.push(b'\n');
    }
}

fn line(paint: Paint, table: &Table, change: &Change<'_>, out: &mut Vec<u8>) {
    let columns = || table.relation.columns.iter().enumerate();
    let key = |index: usize| table.key.get(index).copied().unwrap_or_default();
    let (name, row, old) = match *change {
        Change::Insert(new) => ("insert", new, None),
        Change::Update { old, new } => ("update", new, old),
        Change::Delete(Old::Key(row) | Old::Row(row)) => ("delete", row, None),
    };
    let known = matches!(change, Change::Delete(Old::Row(_)) | Change::Insert(_) | Change::Update { .. });
    paint.operation(name, out);
    paint.table(&table.relation, out);
    for (index, column) in columns().filter(|(index, _)| key(*index)) {
        let (Some(Old::Key(before) | Old::Row(before)), now) = (old, row.get(index)) else {
            paint.key(&column.name, &value(row.get(index)), out);
            continue;
        };
        paint.key(&column.name, &value(before.get(index)), out);
        if differs(before.get(index), now) {
            paint.arrow(&value(now), out);
        }
    }
    let rest = columns().filter(|(index, _)| !key(*index) && known);
    match old {
        Some(Old::Row(before)) => {
            for (index, column) in rest.filter(|(index, _)| differs(before.get(*index), row.get(*index))) {
                paint.column(&column.name, &value(before.get(index)), out);
                paint.arrow(&value(row.get(index)), out);
            }
        }
        Some(Old::Key(_)) | None => {
            rest.for_each(|(index, column)| paint.column(&column.name, &value(row.get(index)), out));
        }
    }
    out.push(b'\n');
}

/// A value that the update left out of the WAL did not change.
fn differs(before: Value<'_>, now: Value<'_>) -> bool {
    now != Value::Unchanged && before != now
}

fn opening(transaction: &Transaction, table: &Table, operation: &str, out: &mut Vec<u8>) {
    let Transaction { commit, xid, time, changes } = transaction;
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(time);
    let place = format!(r#"","commit":"{commit}","xid":{xid},"ordinal":{changes},"table":"#);
    out.extend_from_slice(place.as_bytes());
    json::string(format!("{}.{}", table.relation.schema, table.relation.name).as_bytes(), out);
    out.extend_from_slice(format!(r#","operation":"{operation}""#).as_bytes());
}

fn object(table: &Table, change: &Change<'_>, transaction: &Transaction, out: &mut Vec<u8>) {
    let key = |index: usize| table.key.get(index).copied().unwrap_or_default();
    let (operation, row) = match *change {
        Change::Insert(new) => ("insert", new),
        Change::Update { new, .. } => ("update", new),
        Change::Delete(Old::Key(row) | Old::Row(row)) => ("delete", row),
    };
    opening(transaction, table, operation, out);
    members("key", table, row, key, out);
    match *change {
        Change::Insert(new) => members("after", table, new, |_| true, out),
        Change::Update { old, new } => {
            match old {
                Some(Old::Row(before)) => members("before", table, before, |_| true, out),
                Some(Old::Key(before)) => members("before", table, before, key, out),
                None => {}
            }
            members("after", table, new, |_| true, out);
            unchanged(table, new, out);
        }
        Change::Delete(Old::Row(before)) => members("before", table, before, |_| true, out),
        Change::Delete(Old::Key(_)) => {}
    }
    out.extend_from_slice(b"}\n");
}

fn members(name: &str, table: &Table, row: Tuple<'_>, wanted: impl Fn(usize) -> bool, out: &mut Vec<u8>) {
    out.extend_from_slice(format!(",\"{name}\":{{").as_bytes());
    for (index, column) in table.relation.columns.iter().enumerate() {
        let text = match row.get(index) {
            Value::Text(text) if wanted(index) => Some(text),
            Value::Null if wanted(index) => None,
            _ => continue,
        };
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        json::string(column.name.as_bytes(), out);
        out.push(b':');
        match text {
            None => out.extend_from_slice(b"null"),
            Some(text) => member(column.type_oid, text, out),
        }
    }
    out.push(b'}');
}

/// A value that does not fit its type is rendered as text.
fn member(type_oid: u32, text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    if Form::natural(type_oid).write(text, &mut Vec::new(), out).is_err() {
        out.truncate(start);
        json::string(text, out);
    }
    // The type json keeps its line breaks, and an object must stay one line. Inside strings they are escaped.
    let value = out.get_mut(start..).unwrap_or_default();
    value.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
}

/// Columns whose large values this update left out of the WAL.
fn unchanged(table: &Table, row: Tuple<'_>, out: &mut Vec<u8>) {
    let left_out = |index: &usize| row.get(*index) == Value::Unchanged;
    let mut names = (0..row.len()).filter(left_out).filter_map(|index| table.relation.columns.get(index));
    let Some(first) = names.next() else { return };
    out.extend_from_slice(b",\"unchanged\":[");
    json::string(first.name.as_bytes(), out);
    for column in names {
        out.push(b',');
        json::string(column.name.as_bytes(), out);
    }
    out.push(b']');
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
