//! A table, as the stream announces it.

use crate::postgres::name::TableName;
use crate::postgres::sql;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The type; after `catalog` has annotated the relation, the built-in type that it prints like.
    pub type_oid: u32,
    /// Part of the replica identity. After `catalog` has annotated the relation: part of the columns that identify a row, under
    /// identity full or nothing too.
    pub key: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    pub schema: String,
    pub name: String,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub identity: u8,
    pub columns: Vec<Column>,
}

impl Relation {
    pub fn table_name(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    /// The table's name in SQL.
    pub fn sql(&self) -> String {
        sql::table(&self.schema, &self.name)
    }

    /// Whether updates and deletes have the whole row before.
    pub fn is_full(&self) -> bool {
        self.identity == b'f'
    }

    /// Whether the WAL has this column of a deleted row.
    pub fn known_when_deleted(&self, column: usize) -> bool {
        self.is_full() || (self.identity != b'n' && self.columns.get(column).is_some_and(|column| column.key))
    }
}
