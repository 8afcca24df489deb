//! Parses names of tables and patterns of names, as the routes file and command lines write them.
//!
//! * `orders` is in schema public; `audit.log` names its schema. Upper case and spaces need no quotes.
//! * A part in double quotes is literal, as in SQL: `"my.schema"."a ""b"""`. A part with a dot, a quote or a `*` needs them.
//! * Outside quotes `*` stands for any characters of its part: `audit.*`, `*_tmp`, `*.*`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Schema and name of one table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

/// The tables that an entry matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    schema: Glob,
    name: Glob,
}

/// The texts between the stars. A single text has no star.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<String>);

impl TableName {
    pub fn new(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// The name without schema `public`, which the routes file need not name.
    pub fn short(&self) -> String {
        if self.schema == "public" { written(&self.name) } else { self.to_string() }
    }

    pub fn parts(&self) -> (&str, &str) {
        (&self.schema, &self.name)
    }
}

/// Writes the name with its schema, in the form that parses back to it.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", written(&self.schema), written(&self.name))
    }
}

fn written(part: &str) -> String {
    if part.is_empty() || part.contains(['.', '"', '*']) {
        format!("\"{}\"", part.replace('"', "\"\""))
    } else {
        part.to_owned()
    }
}

impl FromStr for TableName {
    type Err = String;

    /// The error describes the mistake.
    fn from_str(text: &str) -> Result<TableName, String> {
        let pattern: TablePattern = text.parse()?;
        pattern.exact().ok_or_else(|| {
            format!(
                "`{text}` is a pattern, and one table is meant: a `*` in its name stands in double quotes"
            )
        })
    }
}

impl FromStr for TablePattern {
    type Err = String;

    /// The error describes the mistake.
    fn from_str(text: &str) -> Result<TablePattern, String> {
        let (first, rest) = part(text, text)?;
        let Some(rest) = rest else {
            return Ok(TablePattern { schema: Glob(vec!["public".to_owned()]), name: first });
        };
        match part(text, rest)? {
            (name, None) => Ok(TablePattern { schema: first, name }),
            (_, Some(_)) => Err(format!(
                "`{text}` has more than one dot: a part that contains one stands in double quotes, as in \
                 \"\\\"my.schema\\\".orders\""
            )),
        }
    }
}

/// The first part of `text`, and the text behind its dot.
fn part<'t>(whole: &str, text: &'t str) -> Result<(Glob, Option<&'t str>), String> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (part, rest) = unquote(quoted).ok_or_else(|| format!("`{whole}` has a `\"` without its pair"))?;
        let rest = match rest.strip_prefix('.') {
            Some(rest) => Some(rest),
            None if rest.is_empty() => None,
            None => return Err(format!("`{whole}`: after `\"` comes a dot or the end, and not `{rest}`")),
        };
        return if part.is_empty() { Err(empty(whole)) } else { Ok((Glob(vec![part]), rest)) };
    }
    let (part, rest) = text.split_once('.').map_or((text, None), |(part, rest)| (part, Some(rest)));
    if part.is_empty() {
        return Err(empty(whole));
    }
    if part.contains('"') {
        return Err(format!(
            "`{whole}` has a `\"` inside a name: such a name stands in quotes, with `\"\"` for it"
        ));
    }
    Ok((Glob::new(part, "*"), rest))
}

fn empty(whole: &str) -> String {
    format!("`{whole}` is no name of a table: `table`, or `schema.table`")
}

/// The text up to the closing quote, with `""` as one quote, and the text behind it.
pub fn unquote(text: &str) -> Option<(String, &str)> {
    let mut read = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        read.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                read.push('"');
                rest = more;
            }
            None => return Some((read, after)),
        }
    }
}

impl TablePattern {
    /// The table, if the pattern has no star.
    pub fn exact(&self) -> Option<TableName> {
        let (schema, name) = (self.schema.exact()?, self.name.exact()?);
        Some(TableName::new(schema, name))
    }

    pub fn matches(&self, table: &TableName) -> bool {
        self.schema.matches(&table.schema) && self.name.matches(&table.name)
    }

    /// Schema and name with `star` for each `*`.
    pub fn parts(&self, star: &str) -> (String, String) {
        (self.schema.0.join(star), self.name.0.join(star))
    }

    /// The schema, if it has no star.
    pub fn schema(&self) -> Option<&str> {
        self.schema.exact()
    }
}

impl Glob {
    /// `star` stands for any characters.
    pub fn new(text: &str, star: &str) -> Glob {
        Glob(text.split(star).map(str::to_owned).collect())
    }

    fn exact(&self) -> Option<&str> {
        match self.0.as_slice() {
            [text] => Some(text),
            _ => None,
        }
    }

    pub fn matches(&self, text: &str) -> bool {
        let [first, between @ .., last] = self.0.as_slice() else { return self.exact() == Some(text) };
        let Some(mut rest) =
            text.strip_prefix(first.as_str()).and_then(|text| text.strip_suffix(last.as_str()))
        else {
            return false;
        };
        // The earliest match of each piece leaves the most text for the next ones.
        between.iter().all(|piece| match rest.split_once(piece.as_str()) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
