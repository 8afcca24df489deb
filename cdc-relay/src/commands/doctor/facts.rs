//! Queries the facts of a server: twice, a moment apart, to measure the rate of its WAL.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio_postgres::Client;

use crate::checkpoint::state::{Cluster, Slot as AdmittedSlot};
use crate::postgres::lsn::Lsn;
use crate::source::contract::Mismatch;

/// How long the WAL is observed.
const WAL_WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Facts {
    pub version: u32,
    pub version_text: String,
    pub database: String,
    pub encoding: String,
    pub standby: bool,
    pub settings: BTreeMap<String, Setting>,
    pub role: Role,
    pub room: Room,
    pub system_id: String,
    pub timeline: u32,
    pub flush: String,
    pub slots: Vec<Slot>,
    pub senders: i64,
    pub standbys: Vec<String>,
    pub walsenders: Vec<Walsender>,
    pub publications: Vec<String>,
    /// By table oid, as text: the bytes of its values outside the row.
    pub toast: BTreeMap<String, i64>,
    pub unlogged: Vec<String>,
    /// Publication and tables.
    #[serde(skip)]
    pub contract: crate::postgres::facts::Facts,
    /// Where routes, publication and tables do not fit.
    #[serde(skip)]
    pub mismatches: Vec<Mismatch>,
    pub transactions: Vec<OpenTransaction>,
    pub prepared: Vec<Prepared>,
    /// Present bytes of WAL per second.
    #[serde(skip)]
    pub wal_rate: f64,
    /// By slot, from version 14 on.
    #[serde(skip)]
    pub spills: BTreeMap<String, Spill>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Setting {
    pub value: String,
    pub unit: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Role {
    pub name: String,
    pub superuser: bool,
    pub replication: bool,
    /// None: without a limit.
    pub connection_limit: Option<i64>,
    /// Besides the one that asks.
    pub connections: i64,
    /// Seconds until its password ends.
    pub valid_for: Option<i64>,
}

/// Connections besides the one that asks.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Room {
    /// None: without a limit.
    pub database_limit: Option<i64>,
    pub database_connections: i64,
    /// All of the server's, without walsenders and its own processes.
    pub connections: i64,
}

/// A row of pg_replication_slots, as far as this version has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Slot {
    pub slot_name: String,
    pub slot_type: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    pub active: bool,
    pub active_pid: Option<i32>,
    pub restart_lsn: Option<String>,
    pub confirmed_flush_lsn: Option<String>,
    pub wal_status: Option<String>,
    pub safe_wal_size: Option<i64>,
    pub two_phase: bool,
    pub failover: bool,
    pub invalidation_reason: Option<String>,
    /// From version 17 on, while nobody reads it.
    pub inactive_since: Option<String>,
}

/// A walsender that is not a logical one.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Walsender {
    /// None: the role may not see it.
    pub state: Option<String>,
    pub flushed: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct OpenTransaction {
    pub pid: i32,
    pub user: Option<String>,
    pub state: Option<String>,
    pub seconds: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Prepared {
    pub gid: String,
    pub database: String,
    pub seconds: i64,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Spill {
    pub transactions: i64,
    pub bytes: i64,
}

impl Facts {
    pub fn text(&self, setting: &str) -> &str {
        self.settings.get(setting).map_or("", |setting| &setting.value)
    }

    fn scaled(&self, setting: &str, units: &[(&str, i64)]) -> Option<i64> {
        let setting = self.settings.get(setting)?;
        let number: i64 = setting.value.parse().ok()?;
        let unit = units.iter().find(|(name, _)| *name == setting.unit).map_or(1, |(_, factor)| *factor);
        Some(if number < 0 { number } else { number.saturating_mul(unit) })
    }

    /// Negative stays as it is: it means "without a limit".
    pub fn bytes(&self, setting: &str) -> Option<i64> {
        self.scaled(setting, &[("B", 1), ("kB", 1 << 10), ("8kB", 8 << 10), ("MB", 1 << 20), ("GB", 1 << 30)])
    }

    pub fn milliseconds(&self, setting: &str) -> Option<i64> {
        self.scaled(setting, &[("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000)])
    }

    pub fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.slot_name == name)
    }

    /// As `state::admit` compares it with the checkpoint.
    pub fn cluster(&self) -> Cluster {
        let flush: Lsn = self.flush.parse().unwrap_or_default();
        Cluster { system_id: self.system_id.clone(), timeline: self.timeline, flush }
    }
}

impl Slot {
    /// As `state::admit` compares it with the checkpoint.
    pub fn admitted(&self) -> AdmittedSlot {
        AdmittedSlot {
            plugin: self.plugin.clone().unwrap_or_default(),
            database: self.database.clone().unwrap_or_default(),
            wal_status: self.wal_status.clone().unwrap_or_else(|| "lost".to_owned()),
            confirmed: self.confirmed_flush_lsn.as_deref().and_then(|lsn| lsn.parse().ok()),
            active_pid: self.active_pid,
        }
    }

    /// Bytes of WAL that the server retains for the slot.
    pub fn retained(&self, flush: &str) -> i64 {
        let parse = |lsn: &str| lsn.parse::<Lsn>().map_or(0, |lsn| lsn.0 as i64);
        self.restart_lsn.as_deref().map_or(0, |from| (parse(flush) - parse(from)).max(0))
    }
}

/// Queries the facts besides those of the contract.
pub async fn gather(
    client: &Client,
    contract: crate::postgres::facts::Facts,
    mismatches: Vec<Mismatch>,
) -> Result<Facts> {
    let version: i32 = client
        .query_one("select current_setting('server_version_num')::int", &[])
        .await
        .context("the server does not answer")?
        .get(0);
    anyhow::ensure!(version >= 130_000, "Postgres 13 or newer is needed; this is {}", version / 10_000);
    let oids: Vec<u32> = contract.tables.iter().map(|table| table.oid).collect();
    let row =
        client.query_one(include_str!("facts.sql"), &[&oids]).await.context("cannot look at the catalog")?;
    let mut facts: Facts = serde_json::from_value(row.get(0)).context("the catalog's answer")?;
    (facts.contract, facts.mismatches) = (contract, mismatches);
    if version >= 140_000 {
        let spills =
            "select slot_name::text, spill_txns, spill_bytes from pg_catalog.pg_stat_replication_slots";
        for row in client.query(spills, &[]).await.context("pg_stat_replication_slots")? {
            facts.spills.insert(row.get(0), Spill { transactions: row.get(1), bytes: row.get(2) });
        }
    }
    facts.wal_rate = wal_rate(client, facts.standby).await?;
    Ok(facts)
}

/// Observes the end of the WAL for a moment. Returns bytes per second.
pub async fn wal_rate(client: &Client, standby: bool) -> Result<f64> {
    let end = if standby { "pg_last_wal_replay_lsn()" } else { "pg_current_wal_insert_lsn()" };
    let query = format!("select coalesce(({end} - '0/0')::int8, 0)");
    let began = Instant::now();
    let from: i64 = client.query_one(&query, &[]).await.context("cannot query the end of the WAL")?.get(0);
    tokio::time::sleep(WAL_WATCH_INTERVAL).await;
    let to: i64 = client.query_one(&query, &[]).await.context("cannot query the end of the WAL")?.get(0);
    Ok((to - from).max(0) as f64 / began.elapsed().as_secs_f64())
}
