//! Reads the relay's checkpoints, and the slots that they are about.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio_postgres::GenericClient;

use super::chain::lsn;

/// The compacted topic with the relay's checkpoints (`cdc-relay/relay.toml`).
pub const STATE_TOPIC: &str = "cdc-relay.state";
/// The topic with the rows that the relay could not emit (`cdc-relay/relay.toml`).
pub const DEAD_LETTER_TOPIC: &str = "cdc-relay.dead-letter";

/// The last record of a source on the state topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub source: String,
    pub slot: String,
    pub system_id: String,
    /// Nothing was emitted yet: the slot may not exist.
    pub creating: bool,
    /// Every sink has everything up to here.
    pub acknowledged: u64,
}

#[derive(Deserialize)]
struct Value {
    system_id: String,
    slot: String,
    phase: String,
    acknowledged: String,
}

/// The latest checkpoint of each source, from the records of the state topic in their order.
#[derive(Debug, Default)]
pub struct Checkpoints {
    by_key: BTreeMap<String, Checkpoint>,
}

impl Checkpoints {
    /// Adds the next record; without a value it is a tombstone.
    pub fn add(&mut self, key: &str, value: Option<&[u8]>) -> Result<()> {
        // A longer key than `source/slot` holds something else of the source: its publication, a table's snapshot.
        if key.matches('/').count() != 1 {
            return Ok(());
        }
        let Some(value) = value else {
            self.by_key.remove(key);
            return Ok(());
        };
        let Value { system_id, slot, phase, acknowledged } = serde_json::from_slice(value)
            .with_context(|| format!("the record {key:?} on the state topic is no checkpoint"))?;
        let checkpoint = Checkpoint {
            source: key.split('/').next().unwrap_or(key).to_owned(),
            slot,
            system_id,
            creating: phase == "creating",
            acknowledged: lsn(&acknowledged)?,
        };
        self.by_key.insert(key.to_owned(), checkpoint);
        Ok(())
    }

    pub fn all(self) -> Vec<Checkpoint> {
        self.by_key.into_values().collect()
    }
}

/// A logical slot of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub confirmed: u64,
    pub lost: bool,
}

/// A database as its cluster describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    pub system_id: String,
    pub slots: Vec<Slot>,
}

/// Reads the slots of a database. Read this before the checkpoints: those are written first.
pub async fn cluster(client: &impl GenericClient) -> Result<Cluster> {
    let identity = "select system_identifier::text from pg_control_system()";
    let system_id = client.query_one(identity, &[]).await.context("system identifier")?.get(0);
    let slots = "select slot_name::text, coalesce(confirmed_flush_lsn, '0/0')::text,
                        coalesce(wal_status, 'lost') = 'lost'
                   from pg_replication_slots where database = current_database() order by slot_name";
    let rows = client.query(slots, &[]).await.context("replication slots")?;
    let slots = rows.iter().map(|row| {
        let confirmed = lsn(row.get(1))?;
        Ok(Slot { name: row.get(0), confirmed, lost: row.get(2) })
    });
    Ok(Cluster { system_id, slots: slots.collect::<Result<_>>()? })
}

/// The present end of the WAL.
pub async fn wal_end(client: &impl GenericClient) -> Result<u64> {
    lsn(client.query_one("select pg_current_wal_lsn()::text", &[]).await.context("end of the WAL")?.get(0))
}
