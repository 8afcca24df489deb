//! The question to the catalog, as one SQL statement without parameters.

use crate::postgres::sql::literal;

const SQL: &str = include_str!("../facts.sql");

/// The tables that the server is asked about.
#[derive(Debug, Clone, Default)]
pub struct Question<'a> {
    /// The tables of this publication. If it does not exist, those of a publication of `named`.
    publication: Option<&'a str>,
    /// Tables with routes.
    named: Vec<(&'a str, &'a str)>,
    /// Every table that could be published; only without a publication.
    everything: bool,
    only: Option<u32>,
}

impl<'a> Question<'a> {
    /// The tables of a publication, or of a publication of `named` if it does not exist.
    pub fn of(publication: &'a str, named: Vec<(&'a str, &'a str)>) -> Question<'a> {
        Question { publication: Some(publication), named, ..Question::default() }
    }

    pub fn of_publication(name: &'a str) -> Question<'a> {
        Question { publication: Some(name), ..Question::default() }
    }

    /// One table of a publication.
    pub fn of_table(publication: &'a str, oid: u32) -> Question<'a> {
        Question { publication: Some(publication), only: Some(oid), ..Question::default() }
    }

    /// The tables of an imagined publication of `named`.
    pub fn of_named(named: Vec<(&'a str, &'a str)>) -> Question<'a> {
        Question { named, ..Question::default() }
    }

    /// Every table that could be published.
    pub fn of_everything() -> Question<'a> {
        Question { everything: true, ..Question::default() }
    }

    pub(super) fn sql(&self) -> String {
        let list = |names: &mut dyn Iterator<Item = &str>| {
            format!("array[{}]", names.map(literal).collect::<Vec<_>>().join(", "))
        };
        let value = |name: &str| match name {
            "publication" => self.publication.map_or_else(|| "null".to_owned(), literal),
            "schemas" => list(&mut self.named.iter().map(|(schema, _)| *schema)),
            "names" => list(&mut self.named.iter().map(|(_, name)| *name)),
            "everything" => self.everything.to_string(),
            "only" => self.only.map_or_else(|| "null".to_owned(), |oid| oid.to_string()),
            other => format!("${other}"),
        };
        // One pass only: a user's name may look like a placeholder.
        let mut parts = SQL.split('$');
        let mut sql = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(part.len());
            let (name, rest) = part.split_at(end);
            sql.push_str(&value(name));
            sql.push_str(rest);
        }
        sql
    }
}
