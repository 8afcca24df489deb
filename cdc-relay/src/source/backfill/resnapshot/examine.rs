//! Checks before a resnapshot that it can succeed, and lists the slot and the tables that it would change.

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use crate::checkpoint::state::{Cluster, Slot};
use crate::postgres::session::Session;
use crate::source::backfill::rows::{self, Table};
use crate::source::context::SourceContext;
use crate::source::contract::Contract;
use crate::source::inspect;

/// The slot that a resnapshot would drop, and the tables that it would emit.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub source: String,
    pub slot: String,
    /// Why `run` refuses the source; `None` if it does not.
    pub refusal: Option<String>,
    /// The slot that has to be dropped.
    pub drops: Dropped,
    pub tables: Vec<Planned>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    pub confirmed: Option<String>,
    pub wal_status: String,
    /// WAL after the confirmed position.
    pub lag_bytes: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    pub table: String,
    pub estimated_rows: Option<u64>,
}

/// Takes the lock under which one resnapshot or failover runs at a time: each changes the slot or the checkpoint.
/// The name of the lock is that of earlier releases, which may run beside this one.
pub fn lock_out_others(session: &mut Session, slot: &str) -> Result<()> {
    let key = crate::postgres::sql::literal(&format!("cdc-relay reconcile {slot}"));
    let rows =
        session.query(&format!("select pg_catalog.pg_try_advisory_lock(hashtextextended({key}, 0))"))?;
    let free = rows.first().is_some_and(|row| inspect::text(row, 0) == "t");
    ensure!(free, "another resnapshot or failover of slot {slot} is running. Wait until it ends");
    Ok(())
}

/// Checks slot, contract and permissions, and returns the routed tables.
pub fn examine(
    session: &mut Session,
    context: &SourceContext,
    slot: Option<&Slot>,
    database: &str,
) -> Result<Vec<Table>> {
    let source = &context.source;
    let name = source.slot.get_ref();
    if let Some(slot) = slot {
        if let Some(pid) = slot.active_pid {
            bail!(
                "slot {name} is being read (by the server's process {pid}). Stop the relay that reads it first"
            );
        }
        if slot.plugin != "pgoutput" || slot.database != database {
            let (plugin, of) = (&slot.plugin, &slot.database);
            bail!(
                "slot {name} is not ours (plugin {plugin}, database {of}). Give this source a slot of its own in the routes file"
            );
        }
    }
    Contract { routes: &context.routes, source }.check(session)?;
    let tables = routed(session, context)?;
    let unreadable: Vec<&str> = tables.iter().filter_map(|table| table.unreadable.as_deref()).collect();
    ensure!(unreadable.is_empty(), "{}", unreadable.join("; "));
    Ok(tables)
}

/// The published tables that have routes.
pub fn routed(session: &mut Session, context: &SourceContext) -> Result<Vec<Table>> {
    let source = &context.source;
    let mut tables = rows::tables(session, source.publication.get_ref())?;
    tables.retain(|table| source.table(&table.relation.table_name()).is_some());
    Ok(tables)
}

pub fn plan(
    context: &SourceContext,
    cluster: &Cluster,
    slot: &Slot,
    refusal: Option<String>,
    tables: &[Table],
) -> Plan {
    let planned = |table: &Table| Planned { table: table.name(), estimated_rows: table.estimate };
    Plan {
        source: context.source.name.get_ref().clone(),
        slot: context.source.slot.get_ref().clone(),
        refusal,
        drops: Dropped {
            confirmed: slot.confirmed.map(|lsn| lsn.to_string()),
            wal_status: slot.wal_status.clone(),
            lag_bytes: slot.confirmed.map(|lsn| cluster.flush.0.saturating_sub(lsn.0)),
        },
        tables: tables.iter().map(planned).collect(),
    }
}
