//! Which rows a route emits: operations, columns' values, changes. Pure, bound once, and without cost where unused.

use crate::postgres::decode::pgoutput::{Tuple, Value};
use crate::routes::json;
use crate::routes::template::{Op, Problem, Row, Scope};
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

/// The conditions of a route, all of which hold for the rows that it emits.
#[derive(Debug, Clone)]
pub struct Filter {
    /// By operation.
    ops: [bool; 3],
    tests: Vec<(usize, Test)>,
    /// Of an update, one of these columns has changed.
    changed: Vec<usize>,
}

impl Filter {
    /// `scope.deleted`: deleted rows have to pass too, so that only columns may be named that the WAL has of them.
    pub fn bind(route: &Route, scope: Scope<'_>) -> Result<Filter, Problem> {
        let listed = |op: &Op| route.op.is_empty() || route.op.iter().any(|listed| listed.get_ref() == op);
        let ops = Op::ALL.map(|op| listed(&op));
        let mut tests = Vec::new();
        for (name, condition) in &route.when {
            let index = scope.column(name)?;
            let values = |values: &Vec<Text>| {
                values
                    .iter()
                    .map(|value| printed(value.get_ref(), scope.type_oid(index), name))
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
                "`changed` compares with the row before the update, which the log of {schema}.{name} does not carry: \
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
        // A value that the WAL leaves open decides only if no other condition does.
        let mut open = None;
        for (index, test) in &self.tests {
            match test.holds(row, *index) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(problem) => open = Some(problem),
            }
        }
        match open {
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
                "`changed`: the log does not carry the row before this update: replica identity full"
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

/// A value as Postgres prints it: booleans may be written as in TOML and JSON. That all others are written as they are
/// printed, is checked before (`contract::literals`).
pub fn printed(value: &str, type_oid: u32, column: &str) -> Result<Box<[u8]>, Problem> {
    let text = boolean(value, type_oid == json::BOOL);
    if type_oid == json::BOOL && !matches!(text, "t" | "f") {
        return Err(Problem(format!("column {column} is a boolean, and never `{value}`")));
    }
    Ok(text.as_bytes().into())
}

/// A boolean as Postgres prints it.
pub fn boolean(value: &str, is_boolean: bool) -> &str {
    match value {
        "true" if is_boolean => "t",
        "false" if is_boolean => "f",
        _ => value,
    }
}
