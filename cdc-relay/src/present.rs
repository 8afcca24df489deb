//! The row that a table has now, for a dead letter that does not hold all of its row: too long for a letter, or
//! left out of the log by the update. It stands in for the letter's if it is the very same version.

use anyhow::Result;
use tokio_postgres::Config;

use crate::inspect::{self, literal};
use crate::letter::Letter;
use crate::made::Made;
use crate::pgoutput::Relation;
use crate::routes::qualified;
use crate::template::{Problem, Row};
use crate::wire::{Session, WireError};

const TEXT: u32 = 25;
/// How long the database may take for one row. The stream waits meanwhile.
const LIMITS: &str =
    "set lock_timeout = '2s'; set statement_timeout = '5s'; set default_transaction_read_only = on";

/// Looks up current rows of one database; connects when it is first asked.
pub struct Present<'c> {
    config: &'c Config,
    publication: &'c str,
    session: Option<Session>,
    tables: Vec<Table>,
}

/// A published table.
#[derive(Debug, Clone)]
struct Table {
    relation: Relation,
    key: Vec<String>,
}

impl<'c> Present<'c> {
    pub fn new(config: &'c Config, publication: &'c str) -> Present<'c> {
        Present { config, publication, session: None, tables: Vec::new() }
    }

    /// The table as it is published now, asked once. What the server says against it is the letter's problem; that
    /// the server cannot be reached is not.
    fn table(&mut self, name: &str) -> Result<Result<Table, Problem>> {
        let (schema, name) = qualified(name);
        let same = |table: &&Table| table.relation.schema == schema && table.relation.name == name;
        if let Some(table) = self.tables.iter().find(same) {
            return Ok(Ok(table.clone()));
        }
        let publication = self.publication;
        let found = self.ask(|session| {
            let relations = inspect::published(session, publication)?;
            let Some(relation) = relations.into_iter().find(|r| r.schema == schema && r.name == name) else {
                return Ok(None);
            };
            let key = primary_key(session, &relation)?;
            Ok(Some(Table { relation, key }))
        })?;
        Ok(match found {
            Ok(Some(table)) => {
                self.tables.push(table.clone());
                Ok(table)
            }
            Ok(None) => Err(Problem(format!("{schema}.{name} is not published any more"))),
            Err(problem) => Err(problem),
        })
    }

    /// The table as it was when the letter was written. An older letter does not say its columns' types.
    pub fn relation_of(&mut self, letter: &Letter) -> Result<Result<Relation, Problem>> {
        if letter.has_types() {
            return Ok(Ok(letter.relation(|_| 0)));
        }
        Ok(self.table(&letter.table)?.map(|table| {
            let columns = &table.relation.columns;
            let found = |name: &str| columns.iter().find(|column| column.name == name);
            letter.relation(|name| found(name).map_or(TEXT, |column| column.type_oid))
        }))
    }

    /// Fills in the row that has the letter's primary key, and answers the table as it is now.
    pub fn fill(&mut self, letter: &Letter, made: &mut Made) -> Result<Result<Relation, Problem>> {
        let statement = self.table(&letter.table)?.and_then(|table| Ok((select(&table, letter)?, table)));
        let (statement, table) = match statement {
            Ok(found) => found,
            Err(problem) => return Ok(Err(problem)),
        };
        let rows = match self.ask(|session| session.query(&statement))? {
            Ok(rows) => rows,
            Err(problem) => return Ok(Err(problem)),
        };
        let Some(row) = rows.first() else { return Ok(Err(Problem("the row is gone".to_owned()))) };
        made.begin();
        for column in row {
            match column {
                Some(text) => made.text(text.as_bytes()),
                None => made.null(),
            }
        }
        Ok(Ok(table.relation))
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&mut Session) -> Result<T, WireError>,
    ) -> Result<Result<T, Problem>> {
        let ask = || {
            let session = match &mut self.session {
                Some(session) => session,
                None => {
                    let mut session = Session::connect(self.config)?;
                    session.query(LIMITS)?;
                    self.session.insert(session)
                }
            };
            question(session)
        };
        match ask() {
            Ok(answer) => Ok(Ok(answer)),
            Err(WireError::Server { code, message }) => {
                let problem = format!("its table cannot be read: {message} (SQLSTATE {code})");
                Ok(Err(Problem(problem)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn primary_key(session: &mut Session, relation: &Relation) -> Result<Vec<String>, WireError> {
    let rows = session.query(&format!(
        "select a.attname from pg_catalog.pg_index i \
         join pg_catalog.pg_class c on c.oid = i.indrelid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey) \
         where i.indisprimary and n.nspname = {} and c.relname = {}",
        literal(&relation.schema),
        literal(&relation.name)
    ))?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// A name in SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn select(table: &Table, letter: &Letter) -> Result<String, Problem> {
    let Table { relation, key } = table;
    if key.is_empty() {
        let problem = format!("{}.{} has no primary key to read the row by", relation.schema, relation.name);
        return Err(Problem(problem));
    }
    let condition = |name: &String| match letter.column(name) {
        Some(Some(text)) => Ok(format!("{} = {}", identifier(name), literal(text))),
        _ => Err(Problem(format!("the letter lacks {name}, a column of the primary key"))),
    };
    let conditions: Vec<String> = key.iter().map(condition).collect::<Result<_, _>>()?;
    let columns: Vec<String> = relation.columns.iter().map(|column| identifier(&column.name)).collect();
    Ok(format!(
        "select {} from {}.{} where {}",
        columns.join(", "),
        identifier(&relation.schema),
        identifier(&relation.name),
        conditions.join(" and ")
    ))
}

/// Whether a row is the letter's, told as it is now. If both have an id of a template, `id` being the row's, that
/// decides: it is equal at every telling. Otherwise all that the letter holds must still be so.
pub fn stands_for(letter: &Letter, id: Option<&[u8]>, (relation, row): (&Relation, &Row<'_>)) -> bool {
    if let (Some(known), Some(id)) = (&letter.id, id) {
        return known.as_bytes() == id;
    }
    relation.columns.iter().enumerate().all(|(index, column)| {
        let now = row.text(index);
        letter.column(&column.name).is_none_or(|then| now == Ok(then.map(str::as_bytes)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::Column;

    fn table(key: &[&str]) -> Table {
        let column = |name: &&str| Column { name: (*name).to_owned(), type_oid: 25, key: false };
        let (schema, name) = ("public".to_owned(), "a\"b".to_owned());
        let columns = ["id", "it's", "note"].iter().map(column).collect();
        let relation = Relation { id: 0, schema, name, identity: b'd', columns };
        Table { relation, key: key.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn a_row_is_read_by_its_whole_primary_key() {
        let letter =
            br#"{"source":"s","destination":"d","table":"public.a\"b","row":{"id":"7","it's":"o'x"}}"#;
        let letter = Letter::read(letter).unwrap().unwrap();
        assert_eq!(
            select(&table(&["id", "it's"]), &letter).unwrap(),
            r#"select "id", "it's", "note" from "public"."a""b" where "id" = '7' and "it's" = 'o''x'"#
        );
        assert!(select(&table(&[]), &letter).unwrap_err().0.contains("no primary key"));
        assert!(select(&table(&["note"]), &letter).unwrap_err().0.contains("lacks note"));
    }
}
