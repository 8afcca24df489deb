//! A row change, as routes see it.
//!
//! * A large value that an update did not change is not in the WAL. It is taken from the row before, or is unknown.
//! * An unknown value is never emitted as null.

use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::postgres::decode::pgoutput::{Old, Tuple, Value};
use crate::routes::problem::Problem;

/// The operation of a row change, as the routes file and dead letters name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Op {
    /// Also a row that is emitted again: its operation is not known then.
    Insert,
    Update,
    Delete,
}

impl Op {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A row to be emitted. A column that an update left out of the WAL has the value of the row before, if that is known.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub op: Op,
    /// The row after the change. Of a deleted row it has the columns that the WAL has: those of the replica identity.
    pub new: Tuple<'a>,
    /// The row before an update: its key if that changed, or the whole row.
    pub old: Option<Old<'a>>,
}

impl<'a> Row<'a> {
    pub fn insert(new: Tuple<'a>) -> Row<'a> {
        Row { op: Op::Insert, new, old: None }
    }

    pub fn delete((Old::Key(old) | Old::Row(old)): Old<'a>) -> Row<'a> {
        Row { op: Op::Delete, new: old, old: None }
    }

    /// The whole row before an update, if the WAL has it.
    #[inline]
    pub fn before(&self) -> Option<Tuple<'a>> {
        match self.old {
            Some(Old::Row(row)) => Some(row),
            Some(Old::Key(_)) | None => None,
        }
    }

    /// The value of an unchanged column in the row before. The key before has the key's columns, and null for all others.
    #[inline]
    fn unchanged(&self, index: usize) -> Option<&'a [u8]> {
        let (Old::Row(old) | Old::Key(old)) = self.old?;
        if let Value::Text(bytes) = old.get(index) { Some(bytes) } else { None }
    }

    /// Whether the column is null. A value left out of the WAL is large, hence not null.
    #[inline]
    pub fn is_null(&self, index: usize) -> bool {
        self.new.get(index) == Value::Null
    }

    /// The text of a column, `None` for null.
    #[inline]
    pub fn text(&self, index: usize) -> Result<Option<&'a [u8]>, Problem> {
        match self.new.get(index) {
            Value::Text(bytes) => Ok(Some(bytes)),
            Value::Null => Ok(None),
            Value::Unchanged => self.unchanged(index).map(Some).ok_or_else(|| {
                Problem(format!(
                    "column {} holds a large value that this update left out of the WAL; \
                     `alter table … replica identity full` would carry it, and `toast = \"omit\"` on the route would \
                     leave it out",
                    index + 1
                ))
            }),
            Value::Binary(_) => Err(Problem(format!("column {} came in binary form", index + 1))),
        }
    }

    /// Whether the column's value is unknown: large, unchanged, and not in the row before either.
    #[inline]
    pub fn is_unknown(&self, index: usize) -> bool {
        self.new.get(index) == Value::Unchanged && self.unchanged(index).is_none()
    }
}
