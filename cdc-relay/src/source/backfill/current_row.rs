//! Reads the current row of a table, to complete a dead letter that does not hold all of its row.
//!
//! * A dead letter lacks columns if the row was too long, or if the update left them out of the WAL.
//! * The current row replaces the dead letter's only if both are the same version of the row.

use crate::dead_letter::record::{ColumnText, DeadLetter};
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::DecodeError;
use crate::postgres::decode::relation::Relation;
use crate::postgres::decode::row_builder::RowBuilder;
use crate::postgres::error::PostgresError;
use crate::postgres::session::Session;
use crate::routes::problem::Problem;
use crate::routes::row::Row;
use crate::source::backfill::rows::{self, Table};

const TEXT: u32 = 25;
/// Limits of one query. The stream waits for it.
const SESSION_LIMITS: &str =
    "set lock_timeout = '2s'; set statement_timeout = '5s'; set default_transaction_read_only = on";

/// Why a dead letter is not emitted.
#[derive(Debug)]
pub enum DeadLetterError {
    /// The problem is this row's. The dead letter stays, and the release goes on.
    Row(Problem),
    /// The problem is not the row's. The session ends.
    Session(anyhow::Error),
}

impl From<Problem> for DeadLetterError {
    fn from(problem: Problem) -> DeadLetterError {
        DeadLetterError::Row(problem)
    }
}

impl From<anyhow::Error> for DeadLetterError {
    fn from(error: anyhow::Error) -> DeadLetterError {
        DeadLetterError::Session(error)
    }
}

impl From<DecodeError> for DeadLetterError {
    fn from(error: DecodeError) -> DeadLetterError {
        DeadLetterError::Session(error.into())
    }
}

/// Reads current rows of one database. It connects at the first query.
pub struct CurrentRows<'c> {
    database: &'c Database,
    publication: &'c str,
    session: Option<Session>,
    tables: Vec<Table>,
}

impl<'c> CurrentRows<'c> {
    pub fn new(database: &'c Database, publication: &'c str) -> CurrentRows<'c> {
        CurrentRows { database, publication, session: None, tables: Vec::new() }
    }

    /// Returns the table as it is published now. The tables are queried once.
    fn table(&mut self, name: &str) -> Result<Table, DeadLetterError> {
        let same = |table: &&Table| table.name() == name;
        if let Some(table) = self.tables.iter().find(same) {
            return Ok(table.clone());
        }
        let publication = self.publication;
        let tables = self.query(|session| rows::tables(session, publication))?;
        let table = tables.iter().find(same).cloned();
        let table = table.ok_or_else(|| Problem(format!("{name} is not published any more")))?;
        self.tables = tables;
        Ok(table)
    }

    /// Returns the table as it was when the dead letter was written. A dead letter of an older release has no column types;
    /// then they are those of the current table.
    pub fn relation_of(&mut self, dead_letter: &DeadLetter) -> Result<Relation, DeadLetterError> {
        if dead_letter.has_types() {
            return Ok(dead_letter.relation(|_| 0));
        }
        let table = self.table(&dead_letter.table)?;
        let columns = &table.relation.columns;
        let found = |name: &str| columns.iter().find(|column| column.name == name);
        Ok(dead_letter.relation(|name| found(name).map_or(TEXT, |column| column.type_oid)))
    }

    /// Fills `builder` with the row that has the dead letter's key, and returns the current table.
    pub fn fill(
        &mut self,
        dead_letter: &DeadLetter,
        builder: &mut RowBuilder,
    ) -> Result<Relation, DeadLetterError> {
        let table = self.table(&dead_letter.table)?;
        let statement = select(&table, dead_letter)?;
        let rows = self.query(|session| session.query(&statement))?;
        let row = rows.first().ok_or_else(|| Problem("the row is gone".to_owned()))?;
        builder.begin();
        for column in row {
            match column {
                Some(text) => builder.text(text.as_bytes()),
                None => builder.null(),
            }
        }
        Ok(table.relation)
    }

    fn query<T>(
        &mut self,
        question: impl FnOnce(&mut Session) -> Result<T, PostgresError>,
    ) -> Result<T, DeadLetterError> {
        let query = || {
            let session = match &mut self.session {
                Some(session) => session,
                None => {
                    let mut session = Session::connect_to_read(self.database)?;
                    session.query(SESSION_LIMITS)?;
                    self.session.insert(session)
                }
            };
            question(session)
        };
        query().map_err(|error| match error {
            PostgresError::Server { code, message } => {
                Problem(format!("its table cannot be read: {message} (SQLSTATE {code})")).into()
            }
            error => DeadLetterError::Session(error.into()),
        })
    }
}

fn select(table: &Table, dead_letter: &DeadLetter) -> Result<String, Problem> {
    if let Some(why) = &table.unreadable {
        return Err(Problem(why.clone()));
    }
    let condition = |name: &str| match dead_letter.column(name) {
        ColumnText::Text(text) => Ok(table.equals(name, text)),
        ColumnText::Null | ColumnText::Missing => {
            Err(Problem(format!("the dead letter lacks {name}, a column that identifies the row")))
        }
    };
    let conditions: Vec<String> = table.key_columns().map(condition).collect::<Result<_, _>>()?;
    if conditions.is_empty() {
        return Err(Problem(format!("{} has no published primary key to read the row by", table.name())));
    }
    Ok(table.select_where(&conditions.join(" and "), ""))
}

/// Whether the row is the same version as the dead letter's row. Two template ids decide it, since a template always
/// gives the same id; `id` is the row's. Without two ids, every column that the dead letter holds must be unchanged.
pub fn is_same_version(
    dead_letter: &DeadLetter,
    id: Option<&[u8]>,
    relation: &Relation,
    row: &Row<'_>,
) -> bool {
    if let (Some(known), Some(id)) = (&dead_letter.id, id) {
        return known.as_bytes() == id;
    }
    relation.columns.iter().enumerate().all(|(index, column)| {
        let now = row.text(index);
        match dead_letter.column(&column.name) {
            ColumnText::Missing => true,
            ColumnText::Null => now == Ok(None),
            ColumnText::Text(text) => now == Ok(Some(text.as_bytes())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::decode::relation::Column;

    fn dead_letter(text: &str) -> DeadLetter {
        DeadLetter::read(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_row_replaces_a_dead_letter_only_if_it_is_the_same_version() {
        let column = |name: &str| Column { name: name.to_owned(), type_oid: 25, key: false };
        let columns = ["id", "note", "new"].map(column).to_vec();
        let relation = Relation { schema: "public".into(), name: "t".into(), columns, ..Relation::default() };
        let mut builder = RowBuilder::default();
        builder.begin();
        [&b"7"[..], b"text", b"x"].iter().for_each(|text| builder.text(text));
        let row = Row::insert(builder.tuple().unwrap());
        let head = r#"{"source":"s","destination":"d","#;
        let cases: [(&str, Option<&[u8]>, bool); 8] = [
            // Two ids decide, whatever the columns.
            (r#""id":"t/7/1","row":{"id":"7","note":"other"}}"#, Some(b"t/7/1"), true),
            (r#""id":"t/7/1","row":{"id":"7","note":"text"}}"#, Some(b"t/7/2"), false),
            // Otherwise the columns that the dead letter holds decide.
            (r#""id":"t/7/1","row":{"id":"7"}}"#, None, true),
            (r#""row":{"id":"7","note":"text"}}"#, Some(b"t/7/1"), true),
            (r#""row":{"id":"7","note":"other"}}"#, Some(b"t/7/1"), false),
            (r#""row":{"id":"7","note":null}}"#, None, false),
            (r#""row":{"id":"7"},"omitted":"note"}"#, None, true),
            // A column that was dropped is not compared.
            (r#""row":{"id":"7","gone":"y"}}"#, None, true),
        ];
        for (rest, id, expected) in cases {
            let dead_letter = dead_letter(&format!("{head}{rest}"));
            assert_eq!(is_same_version(&dead_letter, id, &relation, &row), expected, "{rest} {id:?}");
        }
    }

    #[test]
    fn a_row_without_a_primary_key_is_not_read() {
        let dead_letter =
            dead_letter(r#"{"source":"s","destination":"d","table":"public.t","row":{"id":"7"}}"#);
        let why = select(&Table::default(), &dead_letter).unwrap_err().0;
        assert!(why.contains("no published primary key"), "{why}");
        let unreadable = Table { unreadable: Some("may not".into()), ..Table::default() };
        assert_eq!(select(&unreadable, &dead_letter).unwrap_err().0, "may not");
    }
}
