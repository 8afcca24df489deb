//! Reads the relay's checkpoints, and the slots that they are about.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio_postgres::{Client, GenericClient};

use super::chain::lsn;
use crate::shard::mover::observe::relay_slots;

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
    /// The name of the shard, where the service has several.
    pub shard: Option<String>,
    pub system_id: String,
    /// Of this database; of the whole server where the service has several, whose sources have names of their own.
    pub slots: Vec<Slot>,
}

/// Reads the slots of a database. Read this before the checkpoints: those are written first.
pub async fn cluster(client: &impl GenericClient, shard: Option<&str>) -> Result<Cluster> {
    let slots = "select slot_name::text, coalesce(confirmed_flush_lsn, '0/0')::text,
                        coalesce(wal_status, 'lost') = 'lost'
                   from pg_replication_slots where database = current_database() or ($1 and slot_type = 'logical')
                  order by slot_name";
    let rows = client.query(slots, &[&shard.is_some()]).await.context("replication slots")?;
    let slots = rows.iter().map(|row| {
        let confirmed = lsn(row.get(1))?;
        Ok(Slot { name: row.get(0), confirmed, lost: row.get(2) })
    });
    let slots = slots.collect::<Result<_>>()?;
    Ok(Cluster { shard: shard.map(str::to_owned), system_id: system_id(client).await?, slots })
}

async fn system_id(client: &impl GenericClient) -> Result<String> {
    let identity = "select system_identifier::text from pg_control_system()";
    Ok(client.query_one(identity, &[]).await.context("system identifier")?.get(0))
}

/// The end of a database's WAL, and how its sources are known.
pub struct WalEnd {
    pub service: &'static str,
    /// The name of the shard, where the service has several: then its source is known by its slots.
    pub shard: Option<String>,
    system_id: String,
    slots: Vec<String>,
    end: u64,
}

impl WalEnd {
    /// The present end.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn read(service: &'static str, shard: Option<&str>, client: &Client) -> Result<Self> {
        let (system_id, slots) = match shard {
            Some(_) => (system_id(client).await?, relay_slots(client).await?),
            None => (String::new(), Vec::new()),
        };
        let end = "select pg_current_wal_lsn()::text";
        let end = lsn(client.query_one(end, &[]).await.context("end of the WAL")?.get(0))?;
        Ok(Self { service, shard: shard.map(str::to_owned), system_id, slots, end })
    }

    /// Whether a checkpoint of this database is before the end.
    pub fn is_ahead_of(&self, checkpoint: &Checkpoint) -> bool {
        let is_of_this = match self.shard {
            None => checkpoint.source == self.service,
            Some(_) => checkpoint.system_id == self.system_id && self.slots.contains(&checkpoint.slot),
        };
        is_of_this && checkpoint.acknowledged < self.end
    }
}
