//! The databases of one service: one, or its shards, each read in a snapshot that can only read.
//!
//! * Of shards a row counts on the one that owns its user's bucket ([`coroctl::owned_rows`]). The snapshots of all of them are taken
//!   before a row is read, and say themselves who owns what.
//! * What was known of the owners stays known: a shard that was restored, and claims what it has given up, is not believed.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use coroctl::databases::{self, NamedUrl};
use coroctl::owned_rows::{OwnedRows, Ownership};
use coroctl::shard::connections::owned_buckets;
use coroctl::shard::mover::observe::relay_slots;
use jiff::Timestamp;
use saga::postgres::{self, Client, Pool, Transaction};
use tokio_postgres::IsolationLevel;
use uuid::Uuid;

use crate::SERVICE;
use crate::progress::Position;

/// One pass at a time, and who asks whether the auditor is ready.
const CONNECTIONS_MAX: usize = 2;

#[derive(Clone)]
pub struct ServiceDatabases {
    pub service: &'static str,
    each: Vec<(Option<String>, Pool)>,
    /// Who owned what when it was read last, where there are several.
    known: Arc<Mutex<Option<Ownership>>>,
}

/// Who has which rows in the snapshots of a service's databases.
pub struct Owners {
    service: &'static str,
    /// `None`: there is one database, which has all.
    pub ownership: Option<Ownership>,
    /// Of each database.
    pub rows: Vec<OwnedRows>,
}

impl Owners {
    /// Whether the rows of a user are those of this database.
    pub fn has(&self, database: usize, user_id: Uuid) -> bool {
        self.ownership.as_ref().is_none_or(|ownership| ownership.owner_of(user_id) == Some(database))
    }

    /// Whether no database has the user's rows.
    pub fn is_undecided(&self, user_id: Uuid) -> bool {
        self.ownership.as_ref().is_some_and(|ownership| ownership.owner_of(user_id).is_none())
    }

    /// What fails on this database names it.
    pub fn name(&self, database: usize) -> String {
        databases::name(&format!("{} database", self.service), self.rows[database].shard())
    }
}

/// Where the shards of a service are, and who owns what.
pub struct Positions {
    pub service: &'static str,
    pub of_shards: Vec<Position>,
    pub ownership: Ownership,
}

const POSITION: &str = "
    select now(), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8,
           (select min(pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::int8)
              from pg_replication_slots where slot_name = any ($1::text[]))";

impl ServiceDatabases {
    /// # Errors
    /// When the setting is a malformed list, or a URL cannot be used.
    pub fn new(service: &'static str, setting: &str) -> Result<Self> {
        let pool = |NamedUrl { shard, url }| Ok((shard, postgres::pool(&url, CONNECTIONS_MAX, SERVICE)?));
        let urls = databases::urls(setting).with_context(|| format!("the {service} databases"))?;
        let each = urls.into_iter().map(pool).collect::<Result<_>>()?;
        Ok(Self { service, each, known: Arc::default() })
    }

    /// The number of databases.
    pub fn count(&self) -> usize {
        self.each.len()
    }

    /// The rows of a database that it owns by its own word.
    pub fn rows(&self, database: usize) -> OwnedRows {
        self.each[database].0.as_deref().map_or_else(OwnedRows::all, OwnedRows::of_shard)
    }

    /// One round trip to each database.
    ///
    /// # Errors
    /// When one does not answer; the text says which.
    pub async fn reachable(&self) -> Result<(), String> {
        for (shard, pool) in &self.each {
            let name = || databases::name(self.service, shard.as_deref());
            postgres::reachable(pool).await.map_err(|why| format!("{}: {why}", name()))?;
        }
        Ok(())
    }

    /// A connection to one database.
    ///
    /// # Errors
    /// When there is none.
    pub async fn client(&self, database: usize) -> Result<Client> {
        let (shard, pool) = &self.each[database];
        let name = || databases::name(&format!("{} database", self.service), shard.as_deref());
        pool.get().await.with_context(|| format!("no connection to the {}", name()))
    }

    /// A connection to each database.
    ///
    /// # Errors
    /// When there is none.
    pub async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(self.each.len());
        for database in 0..self.each.len() {
            clients.push(self.client(database).await?);
        }
        Ok(clients)
    }

    /// A snapshot of each database, and who has which rows in them.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn snapshots<'a>(&self, clients: &'a mut [Client]) -> Result<(Vec<Transaction<'a>>, Owners)> {
        let (mut snapshots, mut claims) = (Vec::new(), Vec::new());
        for (client, (shard, _)) in clients.iter_mut().zip(&self.each) {
            let snapshot = snapshot(client).await?;
            if let Some(shard) = shard {
                claims.push((shard.clone(), owned_buckets(&*snapshot).await.context("owned_buckets")?));
            }
            snapshots.push(snapshot);
        }
        if claims.is_empty() {
            let rows = vec![OwnedRows::all(); snapshots.len()];
            return Ok((snapshots, Owners { service: self.service, ownership: None, rows }));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ownership = Ownership::next(known.as_ref(), &claims);
        *known = Some(ownership.clone());
        let rows = (0..claims.len()).map(|shard| ownership.rows(shard, &claims[shard].1)).collect();
        Ok((snapshots, Owners { service: self.service, ownership: Some(ownership), rows }))
    }

    /// Where the shards are; nothing of a service with one database.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn positions(&self) -> Result<Option<Positions>> {
        if self.each.iter().all(|(shard, _)| shard.is_none()) {
            return Ok(None);
        }
        let mut clients = self.clients().await?;
        let (snapshots, Owners { ownership: Some(ownership), .. }) = self.snapshots(&mut clients).await?
        else {
            return Ok(None);
        };
        for snapshot in snapshots {
            snapshot.commit().await?;
        }
        let mut of_shards = Vec::with_capacity(clients.len());
        for client in &clients {
            let slots = relay_slots(client).await?;
            let row = client.query_one(POSITION, &[&slots]).await.context("the end of the WAL")?;
            let (at, wal, confirmed): (Timestamp, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
            let lsn = i64::unsigned_abs;
            of_shards.push(Position { at, wal: lsn(wal), confirmed: confirmed.map(lsn) });
        }
        Ok(Some(Positions { service: self.service, of_shards, ownership }))
    }
}

/// A transaction that sees one state, and can only read.
///
/// # Errors
/// When the database does not answer.
pub async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    transaction.read_only(true).start().await.context("cannot begin a snapshot")
}
