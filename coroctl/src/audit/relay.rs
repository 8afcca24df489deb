//! What the relay remembers, and how far the slots are confirmed.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio_postgres::GenericClient;

use super::chain::{lsn, print_lsn};

/// The compacted topic with the relay's memory, and the one with what it could not tell (`cdc-relay/relay.toml`).
pub const STATE_TOPIC: &str = "cdc-relay.state";
pub const DEAD_LETTER_TOPIC: &str = "cdc-relay.dead-letter";

/// The last record of a source on the state topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub source: String,
    pub slot: String,
    pub system_id: String,
    /// Nothing was told yet: the slot may not be there.
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

/// The latest memory of each source, from the records of the state topic in their order.
#[derive(Debug, Default)]
pub struct Memories {
    by_key: BTreeMap<String, Memory>,
}

impl Memories {
    /// Takes the next record; without a value it is a tombstone.
    pub fn add(&mut self, key: &str, value: Option<&[u8]>) -> Result<()> {
        // Under a longer key than `source/slot` is something else of the source's: its publication, a table's snapshot.
        if key.matches('/').count() != 1 {
            return Ok(());
        }
        let Some(value) = value else {
            self.by_key.remove(key);
            return Ok(());
        };
        let Value { system_id, slot, phase, acknowledged } =
            serde_json::from_slice(value).with_context(|| format!("the relay's memory of {key}"))?;
        let memory = Memory {
            source: key.split('/').next().unwrap_or(key).to_owned(),
            slot,
            system_id,
            creating: phase == "creating",
            acknowledged: lsn(&acknowledged)?,
        };
        self.by_key.insert(key.to_owned(), memory);
        Ok(())
    }

    pub fn all(self) -> Vec<Memory> {
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

/// A database as its cluster sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    pub system_id: String,
    pub slots: Vec<Slot>,
}

/// How the slots stand. Read this before the memories: they are written first.
pub async fn cluster(client: &impl GenericClient) -> Result<Cluster> {
    let identity = "select system_identifier::text from pg_control_system()";
    let system_id = client.query_one(identity, &[]).await.context("system identifier")?.get(0);
    let slots = "select slot_name::text, coalesce(confirmed_flush_lsn, '0/0')::text,
                        coalesce(wal_status, 'lost') = 'lost'
                   from pg_replication_slots where database = current_database() order by slot_name";
    let rows = client.query(slots, &[]).await.context("slots")?;
    let slots = rows.iter().map(|row| {
        let confirmed = lsn(row.get(1))?;
        Ok(Slot { name: row.get(0), confirmed, lost: row.get(2) })
    });
    Ok(Cluster { system_id, slots: slots.collect::<Result<_>>()? })
}

/// Where the log of a database ends now.
pub async fn log_end(client: &impl GenericClient) -> Result<u64> {
    lsn(client.query_one("select pg_current_wal_lsn()::text", &[]).await.context("log end")?.get(0))
}

impl Memory {
    /// Why this does not fit the slot, if it does not.
    pub fn problem(&self, cluster: &Cluster) -> Option<String> {
        if self.creating {
            return None;
        }
        if self.system_id != cluster.system_id {
            let (told, found) = (&self.system_id, &cluster.system_id);
            return Some(format!("told from cluster {told}, this is cluster {found}"));
        }
        let Some(slot) = cluster.slots.iter().find(|slot| slot.name == self.slot) else {
            return Some("it is gone".to_owned());
        };
        if slot.lost {
            return Some("the server has removed log that it still needs".to_owned());
        }
        let (confirmed, acknowledged) = (print_lsn(slot.confirmed), print_lsn(self.acknowledged));
        (slot.confirmed > self.acknowledged)
            .then(|| format!("confirmed to {confirmed}, acknowledged only to {acknowledged}"))
    }
}
