//! Decides which rows a route emits: by operation, column values and changes. Pure.
//!
//! * A filter is bound once per relation, and costs nothing where a route has no conditions.
//! * A condition on an unknown value is a problem, unless another condition decides.

use crate::postgres::decode::pgoutput::{Tuple, Value};
use crate::routes::problem::Problem;
use crate::routes::row::{Op, Row};
use crate::routes::scope::Scope;
use crate::routes::text_form::text_form;
use crate::routes::{Condition, Route, Text};

type Values = Vec<Box<[u8]>>;

#[derive(Debug, Clone)]
enum Test {
    /// One of these; null is none of them.
    In(Values),
    /// None of these; null is none of them.
    NotIn(Values),
    Null(bool),
}

impl Test {
    #[inline]
    fn holds(&self, row: &Row<'_>, index: usize) -> Result<bool, Problem> {
        let is_one_of = |values: &Values| {
            row.text(index).map(|text| text.is_some_and(|text| values.iter().any(|value| **value == *text)))
        };
        match self {
            Test::In(values) => is_one_of(values),
            Test::NotIn(values) => is_one_of(values).map(|listed| !listed),
            Test::Null(null) => Ok(row.is_null(index) == *null),
        }
    }
}

/// The conditions of a route. It emits a row for which all of them hold.
#[derive(Debug, Clone)]
pub struct Filter {
    /// By operation.
    ops: [bool; 3],
    tests: Vec<(usize, Test)>,
    /// An update must have changed one of these columns.
    changed: Vec<usize>,
}

impl Filter {
    /// Binds the conditions of a route. With `scope.deleted` they may name only columns that the WAL has of a deleted row.
    pub fn bind(route: &Route, scope: Scope<'_>) -> Result<Filter, Problem> {
        let listed = |op: &Op| route.op.is_empty() || route.op.iter().any(|listed| listed.get_ref() == op);
        let ops = [Op::Insert, Op::Update, Op::Delete].map(|op| listed(&op));
        let mut tests = Vec::new();
        for (name, condition) in &route.when {
            let index = scope.column(name)?;
            let values = |values: &Vec<Text>| {
                values
                    .iter()
                    .map(|value| text_form(value.get_ref(), scope.type_oid(index), name))
                    .collect::<Result<Values, _>>()
            };
            match condition {
                Condition::In(listed) => tests.push((index, Test::In(values(listed)?))),
                Condition::Is { not, null } => {
                    if !not.is_empty() {
                        tests.push((index, Test::NotIn(values(not)?)));
                    }
                    tests.extend(null.map(|null| (index, Test::Null(null))));
                }
            }
        }
        let relation = scope.relation;
        if !route.changed.is_empty() && !relation.is_full() {
            let (schema, name) = (&relation.schema, &relation.name);
            return Err(Problem(format!(
                "`changed` compares with the row before the update, which the WAL does not have for {schema}.{name}: \
                 `alter table {} replica identity full`",
                relation.sql()
            )));
        }
        let changed = route.changed.iter().map(|name| scope.column(name.get_ref()));
        Ok(Filter { ops, tests, changed: changed.collect::<Result<_, _>>()? })
    }

    #[inline]
    pub fn matches(&self, row: &Row<'_>) -> Result<bool, Problem> {
        if !self.ops[row.op as usize] {
            return Ok(false);
        }
        // An unknown value decides only if no other condition does.
        let mut unknown = None;
        for (index, test) in &self.tests {
            match test.holds(row, *index) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(problem) => unknown = Some(problem),
            }
        }
        match unknown {
            None => self.has_changed(row),
            Some(problem) if self.has_changed(row)? => Err(problem),
            Some(_) => Ok(false),
        }
    }

    #[inline]
    fn has_changed(&self, row: &Row<'_>) -> Result<bool, Problem> {
        if self.changed.is_empty() || row.op != Op::Update {
            return Ok(true);
        }
        let old = row.before().ok_or_else(|| {
            Problem(
                "`changed`: the WAL does not have the row before this update; replica identity full puts it there"
                    .to_owned(),
            )
        })?;
        Ok(self.changed.iter().any(|&index| has_changed(row.new, old, index)))
    }
}

#[inline]
fn has_changed(new: Tuple<'_>, old: Tuple<'_>, index: usize) -> bool {
    new.get(index) != Value::Unchanged && new.get(index) != old.get(index)
}
