//! Records which keys the stream changes while a snapshot's window is open.

use super::Snapshots;
use crate::postgres::decode::pgoutput::{Message, Old, Tuple};
use crate::postgres::decode::relation::Relation;
use crate::routes::row::{Op, Row};
use crate::source::backfill::rows::Table;

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
                    if self.key_of(oid).is_some() {
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
        let name = format!("{}.{}", relation.schema, relation.name);
        let Some(run) = self.runs.iter().find(|run| run.table.name() == name) else { return };
        let index_of = |name: &str| relation.columns.iter().position(|column| column.name == name);
        let key = run.table.key_columns().map(index_of).collect();
        self.relations.retain(|(oid, _, _)| *oid != relation.id);
        self.relations.push((relation.id, name, key));
    }

    /// Where the key is in the stream's rows of the table that is being emitted; `None`: another table.
    fn key_of(&self, oid: u32) -> Option<Option<&[usize]>> {
        let run = self.runs.front()?;
        let (_, name, key) = self.relations.iter().find(|(id, _, _)| *id == oid)?;
        let Table { relation, .. } = &run.table;
        let same = name.split_once('.') == Some((relation.schema.as_str(), relation.name.as_str()));
        same.then_some(key.as_deref())
    }

    fn changed(&mut self, oid: u32, new: Tuple<'_>, old: Option<Tuple<'_>>, xid: u32) {
        if !self.window.is_open() {
            return;
        }
        let mut key = std::mem::take(&mut self.key);
        match self.key_of(oid) {
            None => {}
            Some(columns) => {
                let row = Row { op: Op::Update, new, old: old.map(Old::Row) };
                if columns.is_some_and(|columns| write_key(&row, columns.iter().copied(), &mut key)) {
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
