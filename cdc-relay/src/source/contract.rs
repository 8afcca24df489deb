//! Checks the contract between routes, publication and tables.
//!
//! * The server is asked once (`facts`), and `fit` alone decides.
//! * The contract is checked before anything is made on the server. A publication that the relay will make is checked as if
//!   it existed.
//! * A publication of the relay's own publishes the operations that the routes take, and no update that the server would
//!   refuse.

mod advice;
pub mod existing;
pub mod fit;
pub mod identity;
pub mod literals;

use std::collections::BTreeMap;

pub use self::advice::{Fix, Mismatch, is_sql, make_full};
pub use self::fit::creation;
use crate::checkpoint::refusal::Refusal;
use crate::postgres::decode::relation::Relation;
use crate::postgres::error::PostgresError;
use crate::postgres::facts::{self, Facts, Question, ask};
use crate::postgres::session::Session;
use crate::postgres::sql::{identifier, literal};
use crate::routes::catalog::Catalog;
use crate::routes::{Routes, Source, TableName};

/// A contract that holds: the facts of the server, and the catalog, which the WAL does not have.
#[derive(Debug, Clone)]
pub struct Checked {
    pub facts: Facts,
    pub catalog: Catalog,
}

/// The result of a check, with every mismatch.
#[derive(Debug)]
pub struct Verdict {
    pub checked: Checked,
    pub mismatches: Vec<Mismatch>,
}

impl Verdict {
    /// # Errors
    /// The mismatches, if there are any.
    pub fn held(self) -> Result<Checked, Refusal> {
        if self.mismatches.is_empty() {
            return Ok(self.checked);
        }
        let problems: Vec<String> = self.mismatches.iter().map(Mismatch::to_string).collect();
        Err(Refusal::Contract(problems.join("; ")))
    }
}

/// Checks the contract at a start: `run` refuses the mismatches, `doctor` lists them. `has_slot`: there is a slot, so the
/// publication must exist. Without a slot, a publication that the relay will make is checked as if it existed.
pub fn at_start(
    session: &mut Session,
    (routes, source): (&Routes, &Source),
    has_slot: bool,
) -> Result<Verdict, PostgresError> {
    let facts = ask(session, &source.question())?;
    judge(session, (routes, source), (facts, has_slot))
}

/// Checks the contract of a source that has a slot.
pub fn check(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Checked, Refusal>, PostgresError> {
    Ok(at_start(session, (routes, source), true)?.held())
}

/// Checks the contract of a source that streams. A new table without routes is no mismatch then.
pub fn still_fits(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Checked, Refusal>, PostgresError> {
    let mut facts = ask(session, &source.question())?;
    facts.tables.retain(|table| {
        let found = (table.itself.schema.as_str(), table.itself.name.as_str());
        source.tables.iter().any(|routed| routed.qualified() == found)
    });
    Ok(judge(session, (routes, source), (facts, true))?.held())
}

fn judge(
    session: &mut Session,
    (routes, source): (&Routes, &Source),
    (facts, has_slot): (Facts, bool),
) -> Result<Verdict, PostgresError> {
    let mut relations: Vec<Relation> = facts.tables.iter().map(facts::Table::relation).collect();
    let mut catalog = Catalog::default();
    catalog.load_keys(&facts);
    catalog.load(session, &relations)?;
    relations.iter_mut().for_each(|relation| catalog.annotate(relation));
    let mut mismatches = fit::all((routes, source), (&facts, &relations), has_slot);
    mismatches.extend(literals::check(session, source)?);
    Ok(Verdict { checked: Checked { facts, catalog }, mismatches })
}

/// The keys that name and order the rows of routed tables.
#[derive(Debug, Clone, Default)]
pub struct Keys(BTreeMap<TableName, String>);

impl Keys {
    pub fn of(facts: &Facts, source: &Source) -> Keys {
        let tables = facts.tables.iter().map(|table| (table.itself.table_name(), table.key_text()));
        Keys(tables.filter(|(name, _)| source.table(name).is_some()).collect())
    }

    /// Says which key changed, if one did.
    pub fn changed(&self, now: &Keys) -> Option<String> {
        now.0.iter().find_map(|(table, key)| {
            let was = self.0.get(table).filter(|was| *was != key)?;
            Some(format!("the key of {table} was changed from {was} to {key}"))
        })
    }
}

/// Makes the relay's own publication if it is missing, in one transaction with the check of the contract. It must be called
/// before there is a slot: a publication that went missing later left a gap that nobody would see.
pub fn publish(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<(), Refusal>, PostgresError> {
    let name = source.publication.get_ref();
    let exists = format!("select 1 from pg_catalog.pg_publication where pubname = {}", literal(name));
    if !source.own_publication || !session.query(&exists)?.is_empty() {
        return Ok(Ok(()));
    }
    let sql = creation(source, session.version() * 10_000);
    session.query("begin")?;
    let made = session.query(&sql).and_then(|_| check(session, routes, source));
    let end = if matches!(made, Ok(Ok(_))) { "commit" } else { "rollback" };
    match made {
        Err(PostgresError::Server { code, message }) => {
            session.query(end)?;
            match code.as_str() {
                // Another relay made it first, and has checked it.
                DUPLICATE_OBJECT | UNIQUE_VIOLATION => Ok(Ok(())),
                code if code.starts_with(ACCESS_CLASS) => Ok(Err(Refusal::Contract(format!(
                    "publication {name} cannot be made: {message}. Have the owner of the tables run `{sql}`"
                )))),
                _ => Err(PostgresError::Server { code, message }),
            }
        }
        Err(error) => Err(error),
        Ok(checked) => {
            session.query(end)?;
            if checked.is_ok() {
                tracing::info!(source = source.name.get_ref(), publication = name, "publication created");
            }
            Ok(checked.map(|_| ()))
        }
    }
}

const DUPLICATE_OBJECT: &str = "42710";
const UNIQUE_VIOLATION: &str = "23505";
/// The class of SQLSTATEs for missing permissions and missing objects.
const ACCESS_CLASS: &str = "42";

/// Takes those tables out of the relay's own publication whose updates and deletes the server refuses because of it.
/// A table that cannot be taken out is refused by `check`.
pub fn withdraw_harmful(session: &mut Session, source: &Source) -> Result<(), PostgresError> {
    if !source.own_publication {
        return Ok(());
    }
    let facts = ask(session, &Question::of_publication(source.publication.get_ref()))?;
    for Withdrawal { sql, why } in withdrawals(&facts) {
        match session.query(&sql) {
            Ok(_) => log_withdrawn(source, &why),
            Err(PostgresError::Server { code, message }) => {
                tracing::error!(%why, "a table could not be taken out of the publication: `{sql}`: {message} (SQLSTATE {code})");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn log_withdrawn(source: &Source, why: &Mismatch) {
    let (source, publication) = (source.name.get_ref(), source.publication.get_ref());
    tracing::error!(source, publication, "a table was taken out of the publication: {why}");
}

/// The statement that takes a table out of a publication, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    pub sql: String,
    pub why: Mismatch,
}

/// Returns the tables whose updates and deletes the server refuses. Pure.
pub fn withdrawals(facts: &Facts) -> Vec<Withdrawal> {
    let Some(publication) = &facts.publication else { return Vec::new() };
    if !(publication.update || publication.delete) {
        return Vec::new();
    }
    let harmful = facts.tables.iter().filter_map(|table| {
        let why = advice::harms(facts, table).into_iter().next()?;
        let (name, table) = (identifier(&publication.name), advice::sql_name(&table.itself));
        Some(Withdrawal { sql: format!("alter publication {name} drop table {table}"), why })
    });
    harmful.collect()
}
