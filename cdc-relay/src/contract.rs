//! The contract between routes, publication and tables: asked of the server once, judged in one place.
//!
//! * It is checked as if the publication existed, before anything is made on the server.
//! * A publication of the relay's own publishes what the routes take, and no update that the server would refuse.
//! * Whoever needs to know which columns leave, or what identifies a row, has it from `facts`.

mod advice;
pub mod facts;
pub mod fit;
pub mod identity;
pub mod literals;

pub use self::advice::{Mismatch, is_sql, make_full};
use self::facts::{Facts, Question, ask};
pub use self::fit::creation;
use crate::catalog::Catalog;
use crate::pgoutput::Relation;
use crate::routes::{Routes, Source};
use crate::sql::{identifier, literal};
use crate::state::Refusal;
use crate::wire::{Session, WireError};

/// A contract that holds: what it was judged by, and what the log does not say of the tables.
#[derive(Debug, Clone)]
pub struct Checked {
    pub facts: Facts,
    pub catalog: Catalog,
}

/// Whether what is published can be told. `Ok(Err(_))` says what does not fit.
pub fn check(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Checked, Refusal>, WireError> {
    let facts = ask(session, &Question::of_source(source))?;
    if facts.publication.is_none() && facts.wal_level == "logical" {
        return Ok(Err(missing(source, facts.version)));
    }
    judge(session, (routes, source), facts)
}

/// As `check`, where there is no slot yet: a publication that the relay will make is judged as if it existed.
pub fn foresee(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Checked, Refusal>, WireError> {
    if !source.own_publication {
        return check(session, routes, source);
    }
    let facts = ask(session, &Question::of_source(source))?;
    judge(session, (routes, source), facts)
}

/// As `check`, while it streams: a table without routes that is published meanwhile ends nothing.
pub fn still_fits(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Checked, Refusal>, WireError> {
    let mut facts = ask(session, &Question::of_source(source))?;
    facts.tables.retain(|table| {
        let found = (table.itself.schema.as_str(), table.itself.name.as_str());
        source.tables.iter().any(|routed| routed.qualified() == found)
    });
    judge(session, (routes, source), facts)
}

fn judge(
    session: &mut Session,
    (routes, source): (&Routes, &Source),
    facts: Facts,
) -> Result<Result<Checked, Refusal>, WireError> {
    let mut relations: Vec<Relation> = facts.tables.iter().map(facts::Table::relation).collect();
    let mut catalog = Catalog::default();
    catalog.learn_keys(&facts);
    catalog.learn(session, &relations)?;
    relations.iter_mut().for_each(|relation| catalog.settle(relation));
    let mut mismatches = fit::server(&facts);
    mismatches.extend(fit::mismatches(routes, source, (&facts, &relations)));
    mismatches.extend(literals::check(session, source)?);
    if mismatches.is_empty() {
        return Ok(Ok(Checked { facts, catalog }));
    }
    let problems: Vec<String> = mismatches.iter().map(Mismatch::to_string).collect();
    Ok(Err(Refusal::Contract(problems.join("; "))))
}

fn missing(source: &Source, version: u32) -> Refusal {
    let (name, sql) = (source.publication.get_ref(), creation(source, version));
    Refusal::Contract(format!("publication {name} does not exist: create it before the slot, `{sql}`"))
}

/// Makes the publication that the routes leave to the relay, if it is missing, and only if the contract then holds:
/// the tables cannot change in between. Only before there is a slot: one that went missing later has a gap that nobody
/// would see. `Ok(Err(_))` says what has to be done.
pub fn publish(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<(), Refusal>, WireError> {
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
        Err(WireError::Server { code, message }) => {
            session.query(end)?;
            match code.as_str() {
                // Another relay was faster, and has checked it.
                DUPLICATE_OBJECT | UNIQUE_VIOLATION => Ok(Ok(())),
                code if code.starts_with(NOT_PERMITTED_OR_THERE) => Ok(Err(Refusal::Contract(format!(
                    "publication {name} cannot be made ({message}): have the owner of the tables run `{sql}`"
                )))),
                _ => Err(WireError::Server { code, message }),
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
/// The class of SQLSTATEs that say so.
const NOT_PERMITTED_OR_THERE: &str = "42";

/// Takes those tables out of the relay's own publication whose updates and deletes the server refuses because of it.
/// What may not be altered stays, and is for `check` to refuse.
pub fn withdraw_harmful(session: &mut Session, source: &Source) -> Result<(), WireError> {
    if !source.own_publication {
        return Ok(());
    }
    let facts = ask(session, &Question::of_publication(source.publication.get_ref()))?;
    for Withdrawal { sql, why } in withdrawals(&facts) {
        match session.query(&sql) {
            Ok(_) => log_withdrawn(source, &why),
            Err(WireError::Server { code, message }) => {
                tracing::error!(%why, "`{sql}`: {message} (SQLSTATE {code})");
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

/// A table that has to leave a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    pub sql: String,
    pub why: Mismatch,
}

/// The tables that harm. Pure.
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
