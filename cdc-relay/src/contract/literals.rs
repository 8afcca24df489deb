//! Literals of the routes file (`when`, `names`) against what Postgres prints of the columns that they are compared with.
//!
//! * Rows are compared as Postgres prints them, so a literal has to be written so: `paid      ` in a `char(10)`.
//! * The server is asked what each literal is as its column's type, in a session whose settings are the stream's.
//! * A literal that is printed otherwise, or that the column never holds, is refused with the form to write.

use std::collections::BTreeMap;

use super::Mismatch;
use crate::routes::{Condition, Source, Table};
use crate::sql::literal;
use crate::wire::{Result, Row, Session, WireError};

/// Literals in one statement; a row has at most 1,664 columns.
const ASKED_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    When,
    Names,
}

/// A literal, and the column that it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Literal<'a> {
    schema: &'a str,
    table: &'a str,
    column: &'a str,
    place: Place,
    text: &'a str,
}

/// What the server makes of a literal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Printed(String),
    /// It is no value of the type, and this is why.
    Never(String),
}

/// The literals of a source that no row will ever equal.
pub fn check(session: &mut Session, source: &Source) -> Result<Vec<Mismatch>> {
    let literals = of_source(source);
    if literals.is_empty() {
        return Ok(Vec::new());
    }
    let columns = session.query(&columns_sql(&literals))?;
    let kinds: BTreeMap<(&str, &str, &str), &str> = columns.iter().map(kind).collect();
    // A column that is not there is for others to say.
    let typed: Vec<(Literal<'_>, &str)> = literals
        .iter()
        .filter_map(|l| Some((*l, *kinds.get(&(l.schema, l.table, l.column))?)))
        .map(|(l, kind)| (Literal { text: crate::when::boolean(l.text, kind == "boolean"), ..l }, kind))
        .collect();
    let mut found = Vec::new();
    for part in typed.chunks(ASKED_MAX) {
        let answers = ask(session, part)?;
        found
            .extend(part.iter().zip(answers).filter_map(|((literal, _), answer)| mismatch(literal, &answer)));
    }
    Ok(found)
}

/// Each once, in the order of table, column and place.
fn of_source(source: &Source) -> Vec<Literal<'_>> {
    let mut literals: Vec<Literal<'_>> = source.tables.iter().flat_map(of_table).collect();
    literals.sort_unstable();
    literals.dedup();
    literals
}

fn of_table(of: &Table) -> Vec<Literal<'_>> {
    let (schema, table) = of.qualified();
    let mut literals = Vec::new();
    for (column, names) in of.names.iter().filter(|(column, _)| !column.starts_with('@')) {
        let literal = |text| Literal { schema, table, column, place: Place::Names, text };
        literals.extend(names.keys().map(|text| literal(text)));
    }
    for (column, condition) in of.routes.iter().flat_map(|route| &route.when) {
        let (Condition::In(texts) | Condition::Is { not: texts, .. }) = condition;
        let literal = |text| Literal { schema, table, column, place: Place::When, text };
        literals.extend(texts.iter().map(|text| literal(text.get_ref())));
    }
    literals
}

/// The types of the columns, as a cast names them in this session.
fn columns_sql(literals: &[Literal<'_>]) -> String {
    let named =
        |l: &Literal<'_>| format!("({}, {}, {})", literal(l.schema), literal(l.table), literal(l.column));
    let mut names: Vec<String> = literals.iter().map(named).collect();
    names.dedup();
    format!(
        "select n.nspname, c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) \
         from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
         where (n.nspname, c.relname, a.attname) in ({})",
        names.join(", ")
    )
}

fn kind(row: &Row) -> ((&str, &str, &str), &str) {
    let text = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
    ((text(0), text(1), text(2)), text(3))
}

fn cast((l, kind): &(Literal<'_>, &str)) -> String {
    format!("{}::{kind}", literal(l.text))
}

/// All at once; where one of them is no value of its type, one by one.
fn ask(session: &mut Session, literals: &[(Literal<'_>, &str)]) -> Result<Vec<Answer>> {
    let casts: Vec<String> = literals.iter().map(cast).collect();
    match session.query(&format!("select {}", casts.join(", "))) {
        Ok(rows) => {
            let row = rows.into_iter().next().unwrap_or_default();
            Ok(row.into_iter().map(|printed| Answer::Printed(printed.unwrap_or_default())).collect())
        }
        Err(WireError::Server { code, message }) if is_of_the_value(&code) => match literals {
            [_] => Ok(vec![Answer::Never(message)]),
            several => {
                let asked: Result<Vec<Vec<Answer>>> =
                    several.iter().map(|one| ask(session, std::slice::from_ref(one))).collect();
                Ok(asked?.concat())
            }
        },
        Err(error) => Err(error),
    }
}

/// The classes of SQLSTATEs that say that the value is at fault: data exceptions and integrity constraints, as those of
/// domains.
fn is_of_the_value(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23")
}

fn mismatch(literal: &Literal<'_>, answer: &Answer) -> Option<Mismatch> {
    let Literal { schema, table, column, place, text } = literal;
    let place = match place {
        Place::When => "`when`",
        Place::Names => "`names`",
    };
    let new = |found: String| {
        let compared = format!("compares {column} with `{text}`, which {found}");
        Mismatch::new("routes.literal", format!("{place} of {schema}.{table}"), compared).loses()
    };
    match answer {
        Answer::Printed(printed) if printed == text => None,
        Answer::Printed(printed) => Some(
            new(format!("Postgres prints as `{printed}`"))
                .why("rows are compared as Postgres prints them, so that none would equal it")
                .fix(format!("write `{printed}`")),
        ),
        Answer::Never(why) => Some(new(format!("the column never holds: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &'static str) -> Literal<'static> {
        Literal { schema: "public", table: "t", column: "c", place: Place::When, text }
    }

    #[test]
    fn what_is_printed_as_it_is_written_is_fine() {
        assert_eq!(mismatch(&literal("a"), &Answer::Printed("a".to_owned())), None);
    }

    #[test]
    fn what_is_not_is_refused_with_the_form_to_write() {
        let padded = mismatch(&literal("a"), &Answer::Printed("a ".to_owned())).unwrap();
        assert!(padded.loses);
        assert_eq!(
            padded.to_string(),
            "`when` of public.t compares c with `a`, which Postgres prints as `a ` (rows are compared as Postgres prints \
             them, so that none would equal it): write `a `"
        );
        let never = mismatch(&literal("a"), &Answer::Never("no".to_owned())).unwrap();
        assert_eq!(
            never.to_string(),
            "`when` of public.t compares c with `a`, which the column never holds: no"
        );
    }
}
