//! The source, relation and names that a route is bound to.

use std::collections::BTreeMap;

use crate::nearest::hint;
use crate::postgres::decode::relation::Relation;
use crate::routes::Text;
use crate::routes::json;
use crate::routes::problem::Problem;
use crate::routes::row::Op;

pub type Names = BTreeMap<String, BTreeMap<String, Text>>;

/// The names that a template may use.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub source: &'a str,
    pub relation: &'a Relation,
    /// Other names of some columns' values.
    pub names: &'a Names,
    /// The row is deleted: only the columns of the replica identity are known.
    pub deleted: bool,
}

impl Scope<'_> {
    /// The index of the column in its relation.
    pub fn column(&self, name: &str) -> Result<usize, Problem> {
        let index = column(self.relation, name)?;
        if self.deleted && !self.relation.known_when_deleted(index) {
            return Err(Problem(format!(
                "column {name} of a deleted row of {}.{} is not in the WAL: \
                 `alter table {} replica identity full` puts it there",
                self.relation.schema,
                self.relation.name,
                self.relation.sql()
            )));
        }
        Ok(index)
    }

    pub fn type_oid(&self, index: usize) -> u32 {
        self.relation.columns.get(index).map_or(json::TEXT, |column| column.type_oid)
    }

    /// The names of the operations, by operation.
    pub fn operation_names(&self) -> Result<[Box<[u8]>; 3], Problem> {
        let names = self.names.get("@op");
        let name = |op: Op| match names {
            None => Ok(op.name().as_bytes().into()),
            Some(names) => match names.get(op.name()) {
                Some(name) => Ok(name.get_ref().as_bytes().into()),
                None if (op == Op::Delete) == self.deleted => {
                    Err(Problem(format!("`names` has no name for the @op `{}`", op.name())))
                }
                None => Ok(Box::default()),
            },
        };
        Ok([name(Op::Insert)?, name(Op::Update)?, name(Op::Delete)?])
    }
}

/// The index of the column in its relation.
pub fn column(relation: &Relation, name: &str) -> Result<usize, Problem> {
    relation.columns.iter().position(|column| column.name == name).ok_or_else(|| {
        let known = relation.columns.iter().map(|column| column.name.as_str());
        Problem(format!(
            "column {name} of {}.{} is not published{}",
            relation.schema,
            relation.name,
            hint(name, known)
        ))
    })
}
