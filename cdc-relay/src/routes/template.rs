//! Text with columns in it: `payments/{payment_id}/{version}`. `{{` and `}}` stand for braces.
//!
//! `{column|text}` is the text where the column is null. `{@op}`, `{@table}`, `{@schema}` and `{@source}` are what is
//! known without a column. A column's name may stand in double quotes, one in it doubled: `{"a:b"}`; one that begins
//! with `@` or `"`, or has `:`, `|` or `}` in it, has to.
//!
//! Parsed once, bound to the columns of a relation when the server announces it, then written per row into a
//! reused buffer.

use std::collections::BTreeMap;

use crate::nearest::hint;
use crate::postgres::decode::pgoutput::{Old, Relation, Tuple, Value};
use crate::postgres::utf8;
use crate::routes::json;
use crate::routes::when::printed;
use crate::routes::{Text, unquote};

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Also a row that is emitted again, since what once happened to it is not known then.
    Insert,
    Update,
    Delete,
}

impl Op {
    pub const ALL: [Op; 3] = [Op::Insert, Op::Update, Op::Delete];

    pub fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        }
    }
}

/// A row to be emitted. Columns that an update left out of the WAL are taken from the row before it, if that is known.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub op: Op,
    /// Of a deleted row, what the WAL says of it: the columns of the replica identity.
    pub new: Tuple<'a>,
    /// Of an update: the key, if it changed, or the whole row.
    pub old: Option<Old<'a>>,
}

/// Why a row cannot be emitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl<'a> Row<'a> {
    pub fn insert(new: Tuple<'a>) -> Row<'a> {
        Row { op: Op::Insert, new, old: None }
    }

    pub fn delete((Old::Key(old) | Old::Row(old)): Old<'a>) -> Row<'a> {
        Row { op: Op::Delete, new: old, old: None }
    }

    /// The whole row before an update.
    #[inline]
    pub fn before(&self) -> Option<Tuple<'a>> {
        match self.old {
            Some(Old::Row(row)) => Some(row),
            Some(Old::Key(_)) | None => None,
        }
    }

    /// What the row before has of a column that the update did not change. The key before has the key's columns, and
    /// null for all others.
    #[inline]
    fn unchanged(&self, index: usize) -> Option<&'a [u8]> {
        let (Old::Row(old) | Old::Key(old)) = self.old?;
        if let Value::Text(bytes) = old.get(index) { Some(bytes) } else { None }
    }

    /// Whether the column is null. What is left out of the WAL is large, and so is not.
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
                    "column {} holds a large value that this update left out of the log; \
                     `alter table … replica identity full` would carry it, and `toast = \"omit\"` on the route would \
                     leave it out",
                    index + 1
                ))
            }),
            Value::Binary(_) => Err(Problem(format!("column {} came in binary form", index + 1))),
        }
    }

    /// Whether the WAL leaves the column's value open: large, unchanged, and not in the row before either.
    #[inline]
    pub fn is_unknown(&self, index: usize) -> bool {
        self.new.get(index) == Value::Unchanged && self.unchanged(index).is_none()
    }
}

/// What is known of a row without its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Op,
    Table,
    Schema,
    Source,
}

impl Known {
    const NAMES: [(&'static str, Known); 4] = [
        ("@op", Known::Op),
        ("@table", Known::Table),
        ("@schema", Known::Schema),
        ("@source", Known::Source),
    ];

    fn find(name: &str) -> Result<Known, String> {
        let found = Known::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|&(_, known)| known).ok_or_else(|| {
            format!("`{{{name}}}` is not known{}", hint(name, Known::NAMES.iter().map(|(known, _)| *known)))
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Text(String),
    Column { name: String, json: bool, default: Option<String> },
    Known(Known),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
}

impl Template {
    /// The error says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.as_str().starts_with(c) => {
                    chars.next();
                    literal.push(c);
                }
                '}' => return Err(format!("`{text}` has a `}}` without `{{`")),
                '{' => {
                    let (inside, rest) = braces(text, chars.as_str())?;
                    chars = rest.chars();
                    if !literal.is_empty() {
                        segments.push(Segment::Text(std::mem::take(&mut literal)));
                    }
                    segments.push(segment(text, inside)?);
                }
                c => literal.push(c),
            }
        }
        if !literal.is_empty() || segments.is_empty() {
            segments.push(Segment::Text(literal));
        }
        Ok(Template { segments })
    }

    /// The text, if it depends on nothing.
    pub fn constant(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text, if it depends on no row: only on the source and the table as the routes name them.
    pub fn of_table(&self, source: &str, (schema, table): (&str, &str)) -> Option<String> {
        let text = |segment: &Segment| match segment {
            Segment::Text(text) => Some(text.clone()),
            Segment::Known(Known::Source) => Some(source.to_owned()),
            Segment::Known(Known::Schema) => Some(schema.to_owned()),
            Segment::Known(Known::Table) => Some(table.to_owned()),
            Segment::Known(Known::Op) | Segment::Column { .. } => None,
        };
        self.segments.iter().map(text).collect()
    }

    /// The text with what is known of the row's source and table, and `unknown` for all else of the row.
    pub fn resembling(&self, source: &str, (schema, table): (&str, &str), unknown: &str) -> String {
        let text = |segment: &Segment| match segment {
            Segment::Text(text) => text.clone(),
            Segment::Known(Known::Source) => source.to_owned(),
            Segment::Known(Known::Schema) => schema.to_owned(),
            Segment::Known(Known::Table) => table.to_owned(),
            Segment::Known(Known::Op) | Segment::Column { .. } => unknown.to_owned(),
        };
        self.segments.iter().map(text).collect()
    }

    pub fn names_a_column(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Column { .. }))
    }

    pub fn names_op(&self) -> bool {
        self.segments.contains(&Segment::Known(Known::Op))
    }

    /// The column, if the template is `{column:json}` and nothing else.
    pub fn json_column(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Column { name, json: true, .. }] => Some(name),
            _ => None,
        }
    }

    /// Looks the columns up.
    pub fn bind(&self, scope: &Scope<'_>) -> Result<BoundTemplate, Problem> {
        let bind = |segment: &Segment| {
            Ok(match segment {
                Segment::Text(text) => Part::Text(text.as_bytes().into()),
                Segment::Known(Known::Table) => Part::Text(scope.relation.name.as_bytes().into()),
                Segment::Known(Known::Schema) => Part::Text(scope.relation.schema.as_bytes().into()),
                Segment::Known(Known::Source) => Part::Text(scope.source.as_bytes().into()),
                Segment::Known(Known::Op) => Part::Op(scope.ops()?),
                Segment::Column { name, default, .. } => Part::Column {
                    index: scope.column(name)?,
                    how: scope.how(name)?,
                    default: default.as_ref().map(|text| text.as_bytes().into()),
                },
            })
        };
        Ok(BoundTemplate { parts: self.segments.iter().map(bind).collect::<Result<_, _>>()? })
    }
}

/// What stands between braces, and what comes after them.
fn braces<'t>(text: &str, after: &'t str) -> Result<(&'t str, &'t str), String> {
    let open = || format!("`{text}` has a `{{` without `}}`");
    // A name in quotes may hold braces too.
    let quoted = match after.strip_prefix('"') {
        Some(name) => {
            let (_, rest) = unquote(name).ok_or_else(|| format!("`{text}` has a `\"` without its pair"))?;
            after.len() - rest.len()
        }
        None => 0,
    };
    let end = after.get(quoted..).and_then(|rest| rest.find('}')).ok_or_else(open)? + quoted;
    let (inside, rest) = after.split_at_checked(end).ok_or_else(open)?;
    Ok((inside, rest.get(1..).unwrap_or_default()))
}

/// The inside of braces: a column, `"a column"`, and its form or its default.
fn segment(text: &str, inside: &str) -> Result<Segment, String> {
    if let Some((name, how)) = inside.strip_prefix('"').and_then(unquote) {
        let (json, default) = match (how, how.strip_prefix('|')) {
            ("", _) => (false, None),
            (":json", _) => (true, None),
            (_, Some(default)) => (false, Some(default.to_owned())),
            _ => return Err(format!("`{text}`: `:json` or `|` and a text may follow `\"`, and not `{how}`")),
        };
        if name.is_empty() {
            return Err(format!("`{text}` has braces without a column"));
        }
        return Ok(Segment::Column { name, json, default });
    }
    let (inside, default) = match inside.split_once('|') {
        Some((inside, default)) => (inside, Some(default.to_owned())),
        None => (inside, None),
    };
    let (name, json) = match inside.split_once(':') {
        Some((name, "json")) => (name, true),
        Some((_, how)) => return Err(format!("`{how}` is not a form; `json` is")),
        None => (inside, false),
    };
    if name.is_empty() {
        return Err(format!("`{text}` has braces without a column"));
    }
    if name.starts_with('@') {
        let plain = default.is_none() && !json;
        return if plain {
            Known::find(name).map(Segment::Known)
        } else {
            Err(format!("`{name}` is never null, and text"))
        };
    }
    if json && default.is_some() {
        return Err(format!("`{text}`: a column in its JSON form has no default; null is null there"));
    }
    Ok(Segment::Column { name: name.to_owned(), json, default })
}

pub type Names = BTreeMap<String, BTreeMap<String, Text>>;

/// What a template's names are looked up in.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub source: &'a str,
    pub relation: &'a Relation,
    /// Gives some columns' values other names.
    pub names: &'a Names,
    /// Of a deleted row only the columns of the replica identity are known.
    pub deleted: bool,
}

impl Scope<'_> {
    /// Where the column is in its relation.
    pub fn column(&self, name: &str) -> Result<usize, Problem> {
        let index = column(self.relation, name)?;
        if self.deleted && !self.relation.known_when_deleted(index) {
            return Err(Problem(format!(
                "column {name} of a deleted row of {}.{} is not in the log: \
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

    fn how(&self, name: &str) -> Result<ColumnForm, Problem> {
        Ok(match self.names.get(name) {
            Some(names) => {
                let type_oid = self.type_oid(column(self.relation, name)?);
                let named = |(k, v): (&String, &Text)| {
                    Ok((printed(k, type_oid, name)?, v.get_ref().as_bytes().into()))
                };
                ColumnForm::Named(names.iter().map(named).collect::<Result<_, Problem>>()?)
            }
            None => ColumnForm::of(self.type_oid(column(self.relation, name)?)),
        })
    }

    /// What the operations are called.
    fn ops(&self) -> Result<[Box<[u8]>; 3], Problem> {
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

/// Where the column is in its relation.
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

#[derive(Debug, Clone)]
enum ColumnForm {
    Raw,
    /// `timestamp with time zone`, written as RFC 3339.
    Instant,
    /// A JSON string.
    Quoted,
    Named(BTreeMap<Box<[u8]>, Box<[u8]>>),
}

impl ColumnForm {
    fn of(type_oid: u32) -> ColumnForm {
        if type_oid == json::TIMESTAMPTZ { ColumnForm::Instant } else { ColumnForm::Raw }
    }
}

#[derive(Debug, Clone)]
enum Part {
    Text(Box<[u8]>),
    Column {
        index: usize,
        how: ColumnForm,
        default: Option<Box<[u8]>>,
    },
    /// By operation.
    Op([Box<[u8]>; 3]),
}

/// A template whose columns are found.
#[derive(Debug, Clone)]
pub struct BoundTemplate {
    parts: Vec<Part>,
}

impl BoundTemplate {
    /// The table's key: one column as text, several as a JSON array of texts, since no separator is safe.
    pub fn identity(relation: &Relation) -> Result<BoundTemplate, Problem> {
        let mut keys = relation.columns.iter().enumerate().filter(|(_, column)| column.key);
        match (keys.next(), keys.next()) {
            (Some((index, column)), None) => {
                let part = Part::Column { index, how: ColumnForm::of(column.type_oid), default: None };
                Ok(BoundTemplate { parts: vec![part] })
            }
            _ => BoundTemplate::texts_of_key(relation),
        }
    }

    /// The texts of the table's key as a JSON array, however many they are.
    fn texts_of_key(relation: &Relation) -> Result<BoundTemplate, Problem> {
        let keys = relation.columns.iter().enumerate().filter(|(_, column)| column.key);
        let mut parts = Vec::new();
        for (index, _) in keys {
            let lead: &[u8] = if parts.is_empty() { b"[" } else { b"," };
            parts.extend([
                Part::Text(lead.into()),
                Part::Column { index, how: ColumnForm::Quoted, default: None },
            ]);
        }
        if parts.is_empty() {
            let (schema, name) = (&relation.schema, &relation.name);
            return Err(Problem(format!("{schema}.{name} has no primary key: give it a `key`")));
        }
        parts.push(Part::Text(b"]".as_slice().into()));
        Ok(BoundTemplate { parts })
    }

    /// The name of a row among all rows: its table, and the texts of its key. `None`: the table has no key.
    pub fn row_name(relation: &Relation) -> Option<BoundTemplate> {
        let mut bound = BoundTemplate::texts_of_key(relation).ok()?;
        let table = format!("{}.{}", relation.schema, relation.name);
        bound.parts.insert(0, Part::Text(table.into_bytes().into()));
        Some(bound)
    }

    /// Appends the text of this row. `Ok(false)`: a column is null. Then, and after an error, nothing was appended.
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
                Part::Column { index, how, default } => {
                    let Some(text) = row.text(*index)? else {
                        if let Some(default) = default {
                            out.extend_from_slice(default);
                            continue;
                        }
                        return Ok(false);
                    };
                    match how {
                        ColumnForm::Raw => utf8::append(text, out),
                        ColumnForm::Instant => json::instant(text, out),
                        ColumnForm::Quoted => json::string(text, out),
                        ColumnForm::Named(names) => out.extend_from_slice(named(names, text)?),
                    }
                }
                Part::Op(names) => out.extend_from_slice(&names[row.op as usize]),
            }
        }
        Ok(true)
    }

    /// As `write`, where null cannot be emitted.
    pub fn require(&self, what: &str, row: &Row<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
        if self.write(row, out)? { Ok(()) } else { Err(Problem(format!("a column of `{what}` is null"))) }
    }
}

fn named<'n>(names: &'n BTreeMap<Box<[u8]>, Box<[u8]>>, value: &[u8]) -> Result<&'n [u8], Problem> {
    names.get(value).map(AsRef::as_ref).ok_or_else(|| {
        Problem(format!("the value `{}` has no name in the routes", String::from_utf8_lossy(value)))
    })
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
