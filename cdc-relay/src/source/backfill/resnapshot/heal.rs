//! Repairs a broken publication by reading again only the tables that it left out, where the slot is intact.
//!
//! * The slot and the chain go on. The relay reads the rows of the tables in chunks beside the stream, as for `snapshot`:
//!   only this gives them a place among the changes that the slot still holds.
//! * Nobody watches a publication while its source is refused. So every other routed table is compared with the last
//!   known coverage; if one may have sent less, the whole source needs a resnapshot.
//! * The progress of the tables is saved before the publication's record. Until the record is saved, the source stays
//!   refused.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::{examine, load, lock_out_others};
use crate::checkpoint::state::{Start, admit};
use crate::postgres::facts::ask;
use crate::routes::{Source, TableName};
use crate::source::backfill::rows::Table;
use crate::source::backfill::snapshot::TableProgress;
use crate::source::clients::{KafkaClients, Loaded};
use crate::source::context::SourceContext;
use crate::source::contract::{Mismatch, existing};
use crate::source::coverage::baseline::baseline;
use crate::source::coverage::record::Record;
use crate::source::coverage::{Coverage, Replaced, losses};
use crate::source::inspect;

/// The first version whose sessions send a partition that is attached after it was written to.
const ATTACHED_IS_SENT: u32 = 150_000;
const WHOLE: &str = "run the resnapshot for the whole source, without --table";

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub source: String,
    pub tables: Vec<String>,
    /// The break, in words.
    pub healed: String,
    /// Rows are read in their state at this position or a later one.
    pub from: String,
}

/// Has the relay read the rows of these tables again.
///
/// # Errors
/// An error changes nothing.
pub fn run(context: SourceContext, names: &[TableName]) -> Result<Report> {
    let context = Arc::new(context);
    let mut clients = KafkaClients::new(&context);
    let Loaded { checkpoint, publication, .. } = load(&mut clients)?;
    let mut session = inspect::connect(&context.database, checkpoint.as_ref())?;
    let (cluster, database) = inspect::primary(&mut session)?;
    let slot_name = context.source.slot.get_ref();
    lock_out_others(&mut session, slot_name)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let all = examine::examine(&mut session, &context, slot.as_ref(), &database)?;
    let tables = named_tables(all, names)?;
    let facts = ask(&mut session, &context.source.question())?;
    let found = || names.iter().filter_map(|name| facts.table(name));
    let partitioned = found().find(|table| facts.version < ATTACHED_IS_SENT && table.itself.kind == 'p');
    if let Some(table) = partitioned {
        bail!(
            "{} is partitioned, and PostgreSQL 14 does not send a partition that was attached again; {WHOLE}",
            table.itself.table_name()
        );
    }
    let problems: Vec<String> =
        existing::of(found(), facts.version).iter().map(Mismatch::to_string).collect();
    ensure!(problems.is_empty(), "{}; or {WHOLE}", problems.join("; "));
    match admit(checkpoint.as_ref(), &cluster, slot_name, slot.as_ref(), &database) {
        Ok(Start::Resume { .. }) => {}
        Ok(_) => bail!(
            "nothing was emitted from slot {slot_name} yet, so there is nothing to heal. Start `cdc-relay run`"
        ),
        Err(refusal) => bail!("{refusal} One table alone does not heal that: {WHOLE}."),
    }
    let Some((record, broken)) = publication.and_then(|record| Some((record.clone(), record.broken?))) else {
        bail!(
            "the publication of source {} is not broken, so there is nothing to heal. `cdc-relay run` goes on",
            context.source.name.get_ref()
        )
    };
    // This position is taken before the query, so that the relay notices every later change of the publication.
    let from = cluster.flush;
    let coverage = baseline(&mut session, &context.routes, &context.source)?;
    ensure_others_whole(&record.coverage, &coverage, &context.source, names)?;
    for table in &tables {
        clients.save_progress(&table.name(), &TableProgress::beginning(table, &cluster.system_id, true))?;
    }
    let tables: Vec<String> = tables.iter().map(Table::name).collect();
    let coverage = coverage.after(&record.coverage);
    clients.save_publication(&Record::healed(Some(record), coverage, from, &tables))?;
    Ok(Report {
        source: context.source.name.get_ref().clone(),
        tables,
        healed: broken.what,
        from: from.to_string(),
    })
}

fn named_tables(all: Vec<Table>, names: &[TableName]) -> Result<Vec<Table>> {
    let known: Vec<TableName> = all.iter().map(|table| table.relation.table_name()).collect();
    for name in names {
        ensure!(known.contains(name), "--table {name}: the source has no routes for this table");
    }
    Ok(all.into_iter().filter(|table| names.contains(&table.relation.table_name())).collect())
}

/// Fails if a table that was not named may have sent less since its coverage was last known.
fn ensure_others_whole(
    before: &Coverage,
    now: &Coverage,
    source: &Source,
    names: &[TableName],
) -> Result<()> {
    let unknown = source.tables.iter().filter(|table| !names.contains(&table.table_name)).find(|table| {
        let (schema, name) = table.qualified();
        !before.tables.iter().any(|known| (known.schema.as_str(), known.name.as_str()) == (schema, name))
    });
    if let Some(table) = unknown {
        bail!(
            "the earlier coverage of {} is not known: {WHOLE}, or name this table with --table too",
            table.table_name
        );
    }
    // A table that a pattern matched, and that is not sent now, has no entry of its own in the routes.
    let mut before = before.clone().of(source);
    before.tables.retain(|table| !names.contains(&TableName::new(&table.schema, &table.name)));
    let losses = losses(&before, now, source, &Replaced::default());
    ensure!(losses.is_empty(), "{}: {WHOLE}, or name that table with --table too", losses.join("; "));
    Ok(())
}
