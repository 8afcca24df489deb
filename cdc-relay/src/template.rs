//! Text with columns in it: `payments/{payment_id}/{version}`. `{{` and `}}` stand for braces.
//!
//! Parsed once, bound to the columns of a relation when the server announces it, then written per row into a
//! reused buffer.

use std::collections::BTreeMap;

use toml::Spanned;

use crate::json;
use crate::pgoutput::{Relation, Tuple, Value};

/// A row to be told. Columns that an update left out of the log are taken from the row before it, if that is known.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub new: Tuple<'a>,
    pub old: Option<Tuple<'a>>,
}

/// Why a row cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl<'a> Row<'a> {
    /// The text of a column, `None` for null.
    #[inline]
    pub fn text(&self, index: usize) -> Result<Option<&'a [u8]>, Problem> {
        match self.new.get(index) {
            Value::Text(bytes) => Ok(Some(bytes)),
            Value::Null => Ok(None),
            Value::Unchanged => match self.old.map(|old| old.get(index)) {
                Some(Value::Text(bytes)) => Ok(Some(bytes)),
                _ => Err(Problem(format!(
                    "column {} holds a large value that this update left out of the log; \
                     `alter table … replica identity full` would carry it",
                    index + 1
                ))),
            },
            Value::Binary(_) => Err(Problem(format!("column {} came in binary form", index + 1))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Text(String),
    Column { name: String, json: bool },
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
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    literal.push(c);
                }
                '}' => return Err(format!("`{text}` has a `}}` without `{{`")),
                '{' => {
                    let mut inside = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) => inside.push(c),
                            None => return Err(format!("`{text}` has a `{{` without `}}`")),
                        }
                    }
                    let (name, json) = match inside.split_once(':') {
                        Some((name, "json")) => (name, true),
                        Some((_, how)) => return Err(format!("`{how}` is not a form; `json` is")),
                        None => (inside.as_str(), false),
                    };
                    if name.is_empty() {
                        return Err(format!("`{text}` has braces without a column"));
                    }
                    if !literal.is_empty() {
                        segments.push(Segment::Text(std::mem::take(&mut literal)));
                    }
                    segments.push(Segment::Column { name: name.to_owned(), json });
                }
                c => literal.push(c),
            }
        }
        if !literal.is_empty() || segments.is_empty() {
            segments.push(Segment::Text(literal));
        }
        Ok(Template { segments })
    }

    /// The text, if it names no column.
    pub fn constant(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The column, if the template is `{column:json}` and nothing else.
    pub fn json_column(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Column { name, json: true }] => Some(name),
            _ => None,
        }
    }

    /// Looks the columns up. `names` gives some columns' values other names.
    pub fn bind(&self, relation: &Relation, names: &Names) -> Result<Bound, Problem> {
        let bind = |segment: &Segment| match segment {
            Segment::Text(text) => Ok(Part::Text(text.as_bytes().into())),
            Segment::Column { name, .. } => {
                let index = column(relation, name)?;
                let how = match names.get(name) {
                    Some(names) => How::Named(
                        names
                            .iter()
                            .map(|(k, v)| (k.as_bytes().into(), v.get_ref().as_bytes().into()))
                            .collect(),
                    ),
                    None => How::of(relation.columns.get(index).map_or(0, |column| column.type_oid)),
                };
                Ok(Part::Column { index, how })
            }
        };
        Ok(Bound { parts: self.segments.iter().map(bind).collect::<Result<_, _>>()? })
    }
}

pub type Names = BTreeMap<String, BTreeMap<String, Spanned<String>>>;

/// Where the column is in its relation.
pub fn column(relation: &Relation, name: &str) -> Result<usize, Problem> {
    relation.columns.iter().position(|column| column.name == name).ok_or_else(|| {
        Problem(format!("column {name} of {}.{} is not published", relation.schema, relation.name))
    })
}

#[derive(Debug, Clone)]
enum How {
    Raw,
    /// `timestamp with time zone`, written as RFC 3339.
    Instant,
    Named(BTreeMap<Box<[u8]>, Box<[u8]>>),
}

impl How {
    fn of(type_oid: u32) -> How {
        if type_oid == json::TIMESTAMPTZ { How::Instant } else { How::Raw }
    }
}

#[derive(Debug, Clone)]
enum Part {
    Text(Box<[u8]>),
    Column { index: usize, how: How },
}

/// A template whose columns are found.
#[derive(Debug, Clone)]
pub struct Bound {
    parts: Vec<Part>,
}

impl Bound {
    pub fn constant(&self) -> Option<&[u8]> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text of this row. `Ok(false)`: a column is null, and nothing was appended.
    #[inline]
    pub fn write(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<bool, Problem> {
        let start = out.len();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Column { index, how } => {
                    let Some(text) = row.text(*index)? else {
                        out.truncate(start);
                        return Ok(false);
                    };
                    match how {
                        How::Raw => out.extend_from_slice(text),
                        How::Instant => json::instant(text, out),
                        How::Named(names) => out.extend_from_slice(named(names, text)?),
                    }
                }
            }
        }
        Ok(true)
    }

    /// As `write`, where null cannot be told.
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
mod tests {
    use super::*;

    #[test]
    fn a_template_without_columns_is_constant() {
        assert_eq!(Template::parse("a{{b}}").unwrap().constant(), Some("a{b}"));
        assert_eq!(Template::parse("").unwrap().constant(), Some(""));
        assert_eq!(Template::parse("{a}").unwrap().constant(), None);
    }

    #[test]
    fn only_a_lone_json_column_keeps_its_form() {
        assert_eq!(Template::parse("{a:json}").unwrap().json_column(), Some("a"));
        assert_eq!(Template::parse("x{a:json}").unwrap().json_column(), None);
        assert_eq!(Template::parse("{a}").unwrap().json_column(), None);
    }

    #[test]
    fn broken_templates_say_why() {
        for bad in ["{", "}", "{}", "a}b", "{a", "{a:int}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
