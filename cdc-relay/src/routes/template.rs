//! Parses templates, text with columns in braces: `payments/{payment_id}/{version}`.
//!
//! * `{{` and `}}` are literal braces.
//! * `{column|text}` writes the text where the column is null; `{column:json}` alone writes the column's JSON form.
//! * `{@op}`, `{@table}`, `{@schema}` and `{@source}` need no column.
//! * Double quotes may enclose a column's name, with `""` for a quote in it: `{"a:b"}`. A name that begins with `@` or `"`, or
//!   contains `:`, `|` or `}`, needs them.
//! * A template is parsed once, and bound when the server announces its relation.

mod bound;

pub use self::bound::BoundTemplate;
use self::bound::{ColumnForm, Part};
use crate::nearest::hint;
use crate::postgres::name::unquote;
use crate::routes::problem::Problem;
use crate::routes::scope::Scope;

/// A placeholder that needs no column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Builtin {
    Op,
    Table,
    Schema,
    Source,
}

impl Builtin {
    const NAMES: [(&'static str, Builtin); 4] = [
        ("@op", Builtin::Op),
        ("@table", Builtin::Table),
        ("@schema", Builtin::Schema),
        ("@source", Builtin::Source),
    ];

    fn find(name: &str) -> Result<Builtin, String> {
        let found = Builtin::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|&(_, known)| known).ok_or_else(|| {
            format!("`{{{name}}}` is not known{}", hint(name, Builtin::NAMES.iter().map(|(known, _)| *known)))
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Text(String),
    Column { name: String, json: bool, default: Option<String> },
    Builtin(Builtin),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
}

/// A table of a source, as placeholders name it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TableOfSource<'a> {
    pub source: &'a str,
    pub schema: &'a str,
    pub table: &'a str,
}

impl Template {
    /// Parses a template. The error describes the mistake.
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

    /// The text, if it has no placeholder.
    pub fn constant(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text, if it depends only on the source and the table as the routes name them, on no row.
    pub fn of_table(&self, of: TableOfSource<'_>) -> Option<String> {
        let TableOfSource { source, schema, table } = of;
        let text = |segment: &Segment| match segment {
            Segment::Text(text) => Some(text.clone()),
            Segment::Builtin(Builtin::Source) => Some(source.to_owned()),
            Segment::Builtin(Builtin::Schema) => Some(schema.to_owned()),
            Segment::Builtin(Builtin::Table) => Some(table.to_owned()),
            Segment::Builtin(Builtin::Op) | Segment::Column { .. } => None,
        };
        self.segments.iter().map(text).collect()
    }

    /// The text for a source and a table, with `unknown` for every placeholder that depends on the row.
    pub fn resembling(&self, of: TableOfSource<'_>, unknown: &str) -> String {
        let TableOfSource { source, schema, table } = of;
        let text = |segment: &Segment| match segment {
            Segment::Text(text) => text.clone(),
            Segment::Builtin(Builtin::Source) => source.to_owned(),
            Segment::Builtin(Builtin::Schema) => schema.to_owned(),
            Segment::Builtin(Builtin::Table) => table.to_owned(),
            Segment::Builtin(Builtin::Op) | Segment::Column { .. } => unknown.to_owned(),
        };
        self.segments.iter().map(text).collect()
    }

    pub fn names_a_column(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Column { .. }))
    }

    pub fn names_op(&self) -> bool {
        self.segments.contains(&Segment::Builtin(Builtin::Op))
    }

    /// The column, if the template is `{column:json}` and nothing else.
    pub fn json_column(&self) -> Option<&str> {
        match self.segments.as_slice() {
            [Segment::Column { name, json: true, .. }] => Some(name),
            _ => None,
        }
    }

    /// Binds the template to the scope's relation.
    pub fn bind(&self, scope: &Scope<'_>) -> Result<BoundTemplate, Problem> {
        let bind = |segment: &Segment| {
            Ok(match segment {
                Segment::Text(text) => Part::Text(text.as_bytes().into()),
                Segment::Builtin(Builtin::Table) => Part::Text(scope.relation.name.as_bytes().into()),
                Segment::Builtin(Builtin::Schema) => Part::Text(scope.relation.schema.as_bytes().into()),
                Segment::Builtin(Builtin::Source) => Part::Text(scope.source.as_bytes().into()),
                Segment::Builtin(Builtin::Op) => Part::Op(scope.operation_names()?),
                Segment::Column { name, default, .. } => Part::Column {
                    index: scope.column(name)?,
                    form: ColumnForm::of_column(name, scope)?,
                    default: default.as_ref().map(|text| text.as_bytes().into()),
                },
            })
        };
        Ok(BoundTemplate { parts: self.segments.iter().map(bind).collect::<Result<_, _>>()? })
    }
}

/// The text between braces, and the text behind them.
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

/// Parses the text between braces: a column, `"a column"`, and its form or its default.
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
            Builtin::find(name).map(Segment::Builtin)
        } else {
            Err(format!("`{name}` is never null, and text"))
        };
    }
    if json && default.is_some() {
        return Err(format!("`{text}`: a column in its JSON form has no default; null is null there"));
    }
    Ok(Segment::Column { name: name.to_owned(), json, default })
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
