//! Judges a start of the relay as `run` does.
//!
//! * The relay's own session asks, since its settings decide how values are printed.
//! * The same functions decide.

use anyhow::{Context, Result};

use super::finding::Finding;
use crate::checkpoint::refusal::Break;
use crate::checkpoint::state::{Checkpoint, Slot, Start, admit};
use crate::postgres::connection_url::Database;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::source::contract::{Contract, Verdict};
use crate::source::coverage::record::Record;
use crate::source::coverage::{Coverage, query};
use crate::source::inspect;

use super::facts::Facts;

/// The records of a source on the state topic.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    pub checkpoint: Option<&'a Checkpoint>,
    pub record: Option<&'a Record>,
}

pub struct Judged {
    pub verdict: Verdict,
    /// The rows that the publication sends.
    pub coverage: Coverage,
}

pub async fn judge(database: &Database, routes: &Routes, source: &Source) -> Result<Judged> {
    let (database, routes, source) = (database.clone(), routes.clone(), source.clone());
    let ask = move || {
        let mut session = Session::connect_to_read(&database)?;
        let has_slot = inspect::slot(&mut session, source.slot.get_ref())?.is_some();
        let verdict = Contract { routes: &routes, source: &source }.verdict(&mut session, has_slot)?;
        let coverage = query::coverage(&mut session, &source)?;
        Ok(Judged { verdict, coverage })
    };
    tokio::task::spawn_blocking(ask).await.context("the check of the contract ended")?
}

/// Whether tables with routes may have sent less since `run` last streamed. A relay that streams now checks it itself.
pub fn coverage(facts: &Facts, source: &Source, saved: Saved<'_>, found: &Coverage) -> Option<Finding> {
    let (checkpoint, record) = (saved.checkpoint?, saved.record?);
    let name = source.slot.get_ref();
    let slot: Option<Slot> = facts.slot(name).map(super::facts::Slot::admitted);
    let start = admit(Some(checkpoint), &facts.cluster(), name, slot.as_ref(), &facts.database).ok()?;
    let broken = match start {
        Start::Create => None,
        Start::Adopt | Start::Resume { .. }
            if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) =>
        {
            record.broken.clone()
        }
        Start::Adopt | Start::Resume { .. } => record.judge(found, source, checkpoint.complete_until()),
    };
    let Break { what, since } = broken?;
    let subject = format!("publication {}", source.publication.get_ref());
    Some(
        Finding::would_lose_data("publication.coverage", &subject, what)
            .why(format!(
                "rows of tables with routes that were committed after {since} may not have been sent"
            ))
            .fix(format!(
                "cdc-relay resnapshot --source {}",
                crate::postgres::shell::quote(source.name.get_ref())
            )),
    )
}
