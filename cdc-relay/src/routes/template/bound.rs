//! A template bound to a relation, and written per row into a reused buffer.

use std::collections::BTreeMap;

use crate::postgres::decode::relation::Relation;
use crate::postgres::utf8;
use crate::routes::Text;
use crate::routes::json;
use crate::routes::problem::Problem;
use crate::routes::row::Row;
use crate::routes::scope::{Scope, column};
use crate::routes::text_form::text_form;

#[derive(Debug, Clone)]
pub(super) enum ColumnForm {
    /// The text as Postgres prints it.
    Raw,
    /// `timestamp with time zone`, written as RFC 3339.
    Instant,
    /// A JSON string.
    Quoted,
    /// Names by value.
    Named(BTreeMap<Box<[u8]>, Box<[u8]>>),
}

impl ColumnForm {
    /// The form of a type without names.
    fn natural(type_oid: u32) -> ColumnForm {
        if type_oid == json::TIMESTAMPTZ { ColumnForm::Instant } else { ColumnForm::Raw }
    }

    /// The form of the column in this scope.
    pub(super) fn of_column(name: &str, scope: &Scope<'_>) -> Result<ColumnForm, Problem> {
        let type_oid = scope.type_oid(column(scope.relation, name)?);
        let Some(names) = scope.names.get(name) else { return Ok(ColumnForm::natural(type_oid)) };
        let named = |(value, written): (&String, &Text)| {
            Ok((text_form(value, type_oid, name)?, written.get_ref().as_bytes().into()))
        };
        Ok(ColumnForm::Named(names.iter().map(named).collect::<Result<_, Problem>>()?))
    }
}

#[derive(Debug, Clone)]
pub(super) enum Part {
    Text(Box<[u8]>),
    Column {
        index: usize,
        form: ColumnForm,
        default: Option<Box<[u8]>>,
    },
    /// By operation.
    Op([Box<[u8]>; 3]),
}

/// A template bound to the columns of a relation.
#[derive(Debug, Clone)]
pub struct BoundTemplate {
    pub(super) parts: Vec<Part>,
}

impl BoundTemplate {
    /// The table's key: one column as text, several as a JSON array of texts, because no separator is safe.
    pub fn identity(relation: &Relation) -> Result<BoundTemplate, Problem> {
        let mut keys = relation.columns.iter().enumerate().filter(|(_, column)| column.key);
        match (keys.next(), keys.next()) {
            (Some((index, column)), None) => {
                let part = Part::Column { index, form: ColumnForm::natural(column.type_oid), default: None };
                Ok(BoundTemplate { parts: vec![part] })
            }
            _ => BoundTemplate::texts_of_key(relation),
        }
    }

    /// The table's key as a JSON array of texts.
    fn texts_of_key(relation: &Relation) -> Result<BoundTemplate, Problem> {
        let keys = relation.columns.iter().enumerate().filter(|(_, column)| column.key);
        let mut parts = Vec::new();
        for (index, _) in keys {
            let lead: &[u8] = if parts.is_empty() { b"[" } else { b"," };
            parts.extend([
                Part::Text(lead.into()),
                Part::Column { index, form: ColumnForm::Quoted, default: None },
            ]);
        }
        if parts.is_empty() {
            let (schema, name) = (&relation.schema, &relation.name);
            return Err(Problem(format!("{schema}.{name} has no primary key: give it a `key`")));
        }
        parts.push(Part::Text(b"]".as_slice().into()));
        Ok(BoundTemplate { parts })
    }

    /// The unique name of a row: its table, and the texts of its key. None: the table has no key.
    pub fn row_name(relation: &Relation) -> Option<BoundTemplate> {
        let mut bound = BoundTemplate::texts_of_key(relation).ok()?;
        let table = format!("{}.{}", relation.schema, relation.name);
        bound.parts.insert(0, Part::Text(table.into_bytes().into()));
        Some(bound)
    }

    /// Appends the text of this row. `Ok(false)`: a column is null. Then, and after an error, nothing is appended.
    #[inline]
    pub fn write(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<bool, Problem> {
        let start = out.len();
        let written = self.append(row, out);
        if written != Ok(true) {
            out.truncate(start);
        }
        written
    }

    #[inline]
    fn append(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<bool, Problem> {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Column { index, form, default } => {
                    let Some(text) = row.text(*index)? else {
                        if let Some(default) = default {
                            out.extend_from_slice(default);
                            continue;
                        }
                        return Ok(false);
                    };
                    match form {
                        ColumnForm::Raw => utf8::append(text, out),
                        ColumnForm::Instant => json::instant(text, out),
                        ColumnForm::Quoted => json::string(text, out),
                        ColumnForm::Named(names) => out.extend_from_slice(name_of(names, text)?),
                    }
                }
                Part::Op(names) => out.extend_from_slice(&names[row.op as usize]),
            }
        }
        Ok(true)
    }

    /// As `write`; a null column is a problem. `field` is the field of the event.
    pub fn require(&self, field: &str, row: &Row<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
        if self.write(row, out)? { Ok(()) } else { Err(Problem(format!("a column of `{field}` is null"))) }
    }
}

fn name_of<'n>(names: &'n BTreeMap<Box<[u8]>, Box<[u8]>>, value: &[u8]) -> Result<&'n [u8], Problem> {
    names.get(value).map(AsRef::as_ref).ok_or_else(|| {
        Problem(format!("the value `{}` has no name in the routes", String::from_utf8_lossy(value)))
    })
}
