//! Compares the literals of the routes file (`when`, `names`) with the form in which Postgres prints their columns.
//!
//! * Rows are compared as Postgres prints them, so a literal must have that form: `paid      ` in a `char(10)`.
//! * The server prints each literal as its column's type, in a session with the settings of the stream.
//! * A literal that is printed differently is refused, with the form to write. A literal that loses a part in the cast, or
//!   is no value of the type, matches no row: it is refused without such a form.
//! * `doctor` warns of types that print equal values in several forms, since a literal matches only one of them.

use std::collections::BTreeMap;

use super::Mismatch;
use crate::nearest::hint;
use crate::postgres::error::{PostgresError, Result};
use crate::postgres::session::{Row, Session};
use crate::postgres::sql::literal;
use crate::routes::{Condition, Source, Table};

/// Literals in one statement. Each takes two columns, and a row has at most 1,664 columns.
const ASKED_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Clause {
    When,
    Names,
}

/// A literal and its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Literal<'a> {
    schema: &'a str,
    table: &'a str,
    column: &'a str,
    clause: Clause,
    text: &'a str,
}

/// The type of a column, in the form of a cast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kind {
    /// The declared type, with its length or precision.
    declared: String,
    /// The type below all domains, without length and precision.
    unlimited: String,
    /// Whether there is a length or a precision.
    limited: bool,
    /// The labels of an enum, or of an array of one.
    labels: Vec<String>,
    /// Equal values may have several printed forms.
    many_spellings: bool,
}

/// The server's answer for a literal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Printed(String),
    /// The cast cuts off or rounds a part.
    Cut,
    /// It is no value of the type, for this reason.
    Never(String),
}

/// Returns the literals of a source that match no row.
pub fn check(session: &mut Session, source: &Source) -> Result<Vec<Mismatch>> {
    let literals = of_source(source);
    let kinds = kinds(session, &literals)?;
    let mut found = Vec::new();
    let typed: Vec<(Literal<'_>, &Kind)> = typed(&literals, &kinds).collect();
    for part in typed.chunks(ASKED_MAX) {
        let answers = ask(session, part)?;
        let answers = part.iter().zip(answers);
        found.extend(answers.filter_map(|((literal, kind), answer)| mismatch(literal, kind, &answer)));
    }
    Ok(found)
}

/// Returns the literals of a source whose column may print equal values in other forms.
pub fn spellings(session: &mut Session, source: &Source) -> Result<Vec<Mismatch>> {
    let literals = of_source(source);
    let kinds = kinds(session, &literals)?;
    let several = typed(&literals, &kinds).filter(|(_, kind)| kind.many_spellings);
    Ok(several.map(|(literal, kind)| spelling(&literal, kind)).collect())
}

type Kinds = BTreeMap<(String, String, String), Kind>;

fn kinds(session: &mut Session, literals: &[Literal<'_>]) -> Result<Kinds> {
    if literals.is_empty() {
        return Ok(Kinds::new());
    }
    Ok(session.query(&columns_sql(literals))?.iter().map(kind).collect())
}

/// Adds the types of their columns. A column that does not exist is left to other checks.
fn typed<'l>(literals: &'l [Literal<'l>], kinds: &'l Kinds) -> impl Iterator<Item = (Literal<'l>, &'l Kind)> {
    literals.iter().filter_map(|l| {
        let kind = kinds.get(&(l.schema.to_owned(), l.table.to_owned(), l.column.to_owned()))?;
        let text = crate::routes::text_form::boolean(l.text, kind.unlimited == "boolean");
        Some((Literal { text, ..*l }, kind))
    })
}

/// Returns each literal once, in the order of table, column and clause.
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
        let literal = |text| Literal { schema, table, column, clause: Clause::Names, text };
        literals.extend(names.keys().map(|text| literal(text)));
    }
    for (column, condition) in of.routes.iter().flat_map(|route| &route.when) {
        let (Condition::In(texts) | Condition::Is { not: texts, .. }) = condition;
        let literal = |text| Literal { schema, table, column, clause: Clause::When, text };
        literals.extend(texts.iter().map(|text| literal(text.get_ref())));
    }
    literals
}

/// The query for the types of the columns, in the form of a cast.
fn columns_sql(literals: &[Literal<'_>]) -> String {
    let named =
        |l: &Literal<'_>| format!("({}, {}, {})", literal(l.schema), literal(l.table), literal(l.column));
    let mut names: Vec<String> = literals.iter().map(named).collect();
    names.dedup();
    include_str!("literals.sql").replace("{names}", &names.join(", "))
}

fn kind(row: &Row) -> ((String, String, String), Kind) {
    let text = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
    let column = (text(0).to_owned(), text(1).to_owned(), text(2).to_owned());
    let kind = Kind {
        declared: text(3).to_owned(),
        unlimited: text(4).to_owned(),
        limited: text(5) == "t",
        // The server's JSON is valid.
        labels: serde_json::from_str(text(6)).unwrap_or_default(),
        many_spellings: text(7) == "t",
    };
    (column, kind)
}

/// Two columns: the printed form, and whether the cast keeps the whole literal.
fn cast((l, kind): &(Literal<'_>, &Kind)) -> String {
    let (text, Kind { declared, unlimited, limited, .. }) = (literal(l.text), kind);
    let whole = if *limited {
        format!("{text}::{declared}::{unlimited} = {text}::{unlimited}")
    } else {
        "true".to_owned()
    };
    format!("{text}::{declared}, {whole}")
}

/// Asks for all literals at once, and one by one if one of them is no value of its type.
fn ask(session: &mut Session, literals: &[(Literal<'_>, &Kind)]) -> Result<Vec<Answer>> {
    let casts: Vec<String> = literals.iter().map(cast).collect();
    match session.query(&format!("select {}", casts.join(", "))) {
        Ok(rows) => Ok(rows.first().map(|row| row.chunks(2).map(answer).collect()).unwrap_or_default()),
        Err(PostgresError::Server { code, message }) if is_of_the_value(&code) => match literals {
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

fn answer(pair: &[Option<String>]) -> Answer {
    match pair {
        [printed, Some(whole)] if whole == "t" => Answer::Printed(printed.clone().unwrap_or_default()),
        _ => Answer::Cut,
    }
}

/// The SQLSTATEs, or classes, of errors that the value causes: data exceptions, constraints and functions of domains, and
/// unknown names, which `regclass` and similar types read.
const OF_THE_VALUE: [&str; 7] = ["22", "23", "P0", "3F", "42P01", "42704", "42883"];

fn is_of_the_value(code: &str) -> bool {
    OF_THE_VALUE.iter().any(|class| code.starts_with(class))
}

fn mismatch(literal: &Literal<'_>, kind: &Kind, answer: &Answer) -> Option<Mismatch> {
    let Literal { column, text, .. } = literal;
    let new = |found: String| {
        let compared = format!("compares {column} with `{text}`, which {found}");
        Mismatch::new("routes.literal", subject(literal), compared).loses()
    };
    match answer {
        Answer::Printed(printed) if printed == text => None,
        Answer::Printed(printed) => Some(
            new(format!("Postgres prints as `{printed}`"))
                .why("rows are compared as Postgres prints them, so no row would match it")
                .fix(format!("write `{printed}`")),
        ),
        Answer::Cut => Some(new(format!(
            "the column never holds: {column} is {}, and `{text}` can never be stored in it whole",
            kind.declared
        ))),
        Answer::Never(why) => {
            let mismatch = new(format!("the column never holds: {why}"));
            Some(if kind.labels.is_empty() { mismatch } else { mismatch.fix(one_of(text, &kind.labels)) })
        }
    }
}

fn one_of(text: &str, labels: &[String]) -> String {
    let near = hint(text, labels.iter().map(String::as_str));
    format!("write one of `{}`{near}", labels.join("`, `"))
}

fn spelling(literal: &Literal<'_>, kind: &Kind) -> Mismatch {
    let Literal { column, text, .. } = literal;
    let found = format!("compares {column} with `{text}`, and {column} is {}", kind.declared);
    let why = "values that are equal for this type may be printed in several ways, and rows are compared as they are printed";
    Mismatch::new("routes.literal_spelling", subject(literal), found).why(why).fix(
        "list every form that the application writes, or give the column a type with one form for each value",
    )
}

fn subject(Literal { schema, table, clause, .. }: &Literal<'_>) -> String {
    let clause = match clause {
        Clause::When => "`when`",
        Clause::Names => "`names`",
    };
    format!("{clause} of {schema}.{table}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &'static str) -> Literal<'static> {
        Literal { schema: "public", table: "t", column: "c", clause: Clause::When, text }
    }

    fn text_of(text: &'static str, kind: &Kind, answer: &Answer) -> Option<String> {
        mismatch(&literal(text), kind, answer).map(|mismatch| mismatch.to_string())
    }

    #[test]
    fn what_is_printed_as_it_is_written_is_fine() {
        assert_eq!(text_of("a", &Kind::default(), &Answer::Printed("a".to_owned())), None);
    }

    #[test]
    fn what_is_not_is_refused_with_the_form_to_write() {
        let padded = mismatch(&literal("a"), &Kind::default(), &Answer::Printed("a ".to_owned())).unwrap();
        assert!(padded.loses);
        assert_eq!(
            padded.to_string(),
            "`when` of public.t compares c with `a`, which Postgres prints as `a ` (rows are compared as Postgres prints \
             them, so no row would match it): write `a `"
        );
    }

    #[test]
    fn what_no_row_has_is_refused_and_an_enum_says_what_it_has() {
        let kind = Kind { declared: "character(2)".to_owned(), ..Kind::default() };
        let whole = "`when` of public.t compares c with `abc`, which the column never holds: c is character(2), and `abc` can \
                     never be stored in it whole";
        assert_eq!(text_of("abc", &kind, &Answer::Cut).as_deref(), Some(whole));
        let never = text_of("sad", &kind, &Answer::Never("no".to_owned()));
        assert_eq!(
            never.as_deref(),
            Some("`when` of public.t compares c with `sad`, which the column never holds: no")
        );
        let mood = Kind { labels: vec!["glad".to_owned(), "said".to_owned()], ..kind };
        let near = text_of("sad", &mood, &Answer::Never("no".to_owned())).unwrap();
        assert!(near.ends_with(": no: write one of `glad`, `said` (did you mean `said`?)"), "{near}");
    }

    #[test]
    fn only_what_has_a_length_or_a_precision_is_asked_whether_it_fits() {
        let kind = |limited| Kind {
            declared: "d".to_owned(),
            unlimited: "u".to_owned(),
            limited,
            ..Kind::default()
        };
        assert_eq!(cast(&(literal("a"), &kind(false))), "'a'::d, true");
        assert_eq!(cast(&(literal("a"), &kind(true))), "'a'::d, 'a'::d::u = 'a'::u");
    }
}
