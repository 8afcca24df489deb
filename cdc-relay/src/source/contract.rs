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
mod operations;
mod unpublished;

use std::collections::BTreeMap;

pub use self::advice::{Fix, Mismatch, is_sql, make_full};
pub use self::fit::{PublishedTables, creation};
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
    pub fn into_result(self) -> Result<Checked, Refusal> {
        if self.mismatches.is_empty() {
            return Ok(self.checked);
        }
        let problems: Vec<String> = self.mismatches.iter().map(Mismatch::to_string).collect();
        Err(Refusal::Contract(problems.join("; ")))
    }
}

/// Routes and one of their sources, to be checked against the server.
#[derive(Debug, Clone, Copy)]
pub struct Contract<'a> {
    pub routes: &'a Routes,
    pub source: &'a Source,
}

/// Why a contract cannot be relied on.
#[derive(Debug)]
pub enum ContractError {
    Refused(Refusal),
    Postgres(PostgresError),
}

impl From<Refusal> for ContractError {
    fn from(refusal: Refusal) -> ContractError {
        ContractError::Refused(refusal)
    }
}

impl From<PostgresError> for ContractError {
    fn from(error: PostgresError) -> ContractError {
        ContractError::Postgres(error)
    }
}

/// A refusal can be downcast from the error.
impl From<ContractError> for anyhow::Error {
    fn from(error: ContractError) -> anyhow::Error {
        match error {
            ContractError::Refused(refusal) => refusal.into(),
            ContractError::Postgres(error) => error.into(),
        }
    }
}

impl Contract<'_> {
    /// Checks the contract at a start: `run` refuses the mismatches, `doctor` lists them. `has_slot`: there is a slot, so the
    /// publication must exist. Without a slot, a publication that the relay will make is checked as if it existed.
    pub fn verdict(self, session: &mut Session, has_slot: bool) -> Result<Verdict, PostgresError> {
        let facts = ask(session, &self.source.question())?;
        self.judge(session, facts, has_slot)
    }

    /// Checks the contract of a source that has a slot.
    pub fn check(self, session: &mut Session) -> Result<Checked, ContractError> {
        Ok(self.verdict(session, true)?.into_result()?)
    }

    /// Checks the contract of a source that streams. A new table without routes is no mismatch then.
    pub fn check_streaming(self, session: &mut Session) -> Result<Checked, ContractError> {
        let mut facts = ask(session, &self.source.question())?;
        facts.tables.retain(|table| {
            let found = (table.itself.schema.as_str(), table.itself.name.as_str());
            self.source.tables.iter().any(|routed| routed.qualified() == found)
        });
        Ok(self.judge(session, facts, true)?.into_result()?)
    }

    fn judge(self, session: &mut Session, facts: Facts, has_slot: bool) -> Result<Verdict, PostgresError> {
        let mut relations: Vec<Relation> = facts.tables.iter().map(facts::Table::relation).collect();
        let mut catalog = Catalog::default();
        catalog.load_keys(&facts);
        catalog.load(session, &relations)?;
        relations.iter_mut().for_each(|relation| catalog.annotate(relation));
        let published = PublishedTables { facts: &facts, relations: &relations };
        let mut mismatches = fit::all(self, published, has_slot);
        mismatches.extend(literals::check(session, self.source)?);
        Ok(Verdict { checked: Checked { facts, catalog }, mismatches })
    }

    /// Makes the relay's own publication if it is missing, in one transaction with the check of the contract. It must be
    /// called before there is a slot: a publication that went missing later left a gap that nobody would see.
    pub fn publish(self, session: &mut Session) -> Result<(), ContractError> {
        let name = self.source.publication.get_ref();
        let exists = format!("select 1 from pg_catalog.pg_publication where pubname = {}", literal(name));
        if !self.source.own_publication || !session.query(&exists)?.is_empty() {
            return Ok(());
        }
        let sql = creation(self.source, session.version() * 10_000);
        session.query("begin")?;
        let checked = match session.query(&sql) {
            Ok(_) => self.check(session),
            Err(error) => Err(error.into()),
        };
        match checked {
            Ok(_) => {
                session.query("commit")?;
                tracing::info!(
                    source = self.source.name.get_ref(),
                    publication = name,
                    "publication created"
                );
                Ok(())
            }
            Err(ContractError::Refused(refusal)) => {
                session.query("rollback")?;
                Err(refusal.into())
            }
            Err(ContractError::Postgres(PostgresError::Server { code, message })) => {
                session.query("rollback")?;
                match code.as_str() {
                    // Another relay made it first, and has checked it.
                    DUPLICATE_OBJECT | UNIQUE_VIOLATION => Ok(()),
                    code if code.starts_with(ACCESS_CLASS) => Err(Refusal::Contract(format!(
                        "publication {name} cannot be made: {message}. Have the owner of the tables run `{sql}`"
                    ))
                    .into()),
                    _ => Err(PostgresError::Server { code, message }.into()),
                }
            }
            Err(error) => Err(error),
        }
    }
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
