//! Records which keys the stream changes while a snapshot's window is open.

use super::Snapshots;
use crate::postgres::decode::pgoutput::{Message, Old, Tuple};
use crate::postgres::decode::relation::Relation;
use crate::routes::row::{Op, Row};

/// A table as the stream announced it.
pub struct StreamRelation {
    oid: u32,
    /// `schema.table`
    name: String,
    /// The indexes of the key columns in the stream's rows; `None` if a column is missing there.
    key: Option<Vec<usize>>,
}

/// The key of a table in the rows of the stream.
enum StreamKey<'a> {
    /// The snapshot is not reading this table.
    OtherTable,
    /// The stream lacks a column of the key.
    Unknown,
    Columns(&'a [usize]),
}

impl Snapshots {
    /// Records a message of the stream before it is emitted.
    pub fn receive(&mut self, message: &Message<'_>, xid: u32) {
        match message {
            Message::Relation(relation) => self.learn_relation(relation),
            Message::Insert { relation, new } => self.changed(*relation, *new, None, xid),
            Message::Update { relation, old, new } => {
                if let Some(Old::Key(old) | Old::Row(old)) = old {
                    self.changed(*relation, *old, None, xid);
                    self.changed(*relation, *new, Some(*old), xid);
                } else {
                    self.changed(*relation, *new, None, xid);
                }
            }
            Message::Delete { relation, old: Old::Key(old) | Old::Row(old) } => {
                self.changed(*relation, *old, None, xid);
            }
            Message::Truncate { relations, .. } => {
                let oids = relations.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid));
                for oid in oids {
                    if !matches!(self.key_of(oid), StreamKey::OtherTable) {
                        self.window.lose_track();
                    }
                }
            }
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Type { .. }
            | Message::Logical { .. } => {}
        }
    }

    fn learn_relation(&mut self, relation: &Relation) {
        // As the run names its table, which quotes some names.
        let name = relation.table_name().to_string();
        let Some(run) = self.runs.iter().find(|run| run.table.name() == name) else { return };
        let index_of = |name: &str| relation.columns.iter().position(|column| column.name == name);
        let key = run.table.key_columns().map(index_of).collect();
        self.relations.retain(|known| known.oid != relation.id);
        self.relations.push(StreamRelation { oid: relation.id, name, key });
    }

    /// Finds the key in the stream's rows of a table.
    fn key_of(&self, oid: u32) -> StreamKey<'_> {
        let Some(run) = self.runs.front() else { return StreamKey::OtherTable };
        let relation = self.relations.iter().find(|relation| relation.oid == oid);
        match relation.filter(|relation| relation.name == run.table.name()) {
            None => StreamKey::OtherTable,
            Some(StreamRelation { key: None, .. }) => StreamKey::Unknown,
            Some(StreamRelation { key: Some(columns), .. }) => StreamKey::Columns(columns),
        }
    }

    fn changed(&mut self, oid: u32, new: Tuple<'_>, old: Option<Tuple<'_>>, xid: u32) {
        if !self.window.is_open() {
            return;
        }
        let mut key = std::mem::take(&mut self.key);
        match self.key_of(oid) {
            StreamKey::OtherTable => {}
            StreamKey::Unknown => self.window.lose_track(),
            StreamKey::Columns(columns) => {
                let row = Row { op: Op::Update, new, old: old.map(Old::Row) };
                if write_key(&row, columns.iter().copied(), &mut key) {
                    self.window.changed(&key, xid);
                } else {
                    self.window.lose_track();
                }
            }
        }
        self.key = key;
    }
}

/// Writes the values of the key, each with its length. Returns false if one is not known.
pub fn write_key(row: &Row<'_>, columns: impl Iterator<Item = usize>, out: &mut Vec<u8>) -> bool {
    out.clear();
    for column in columns {
        let Ok(Some(value)) = row.text(column) else { return false };
        out.extend_from_slice(&(value.len() as u64).to_be_bytes());
        out.extend_from_slice(value);
    }
    true
}
