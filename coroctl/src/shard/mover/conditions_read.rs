//! Reads the facts that decide whether a move may begin.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::super::conditions::{Conditions, Databases, Resources};
use super::super::moves::Ownership;
use super::super::replication::{REFERRING, TABLES, WITHOUT_IDENTITY};
use super::relay_listener::{self, RelayListener};
use super::{Shard, observe, record};

// Migrations take this lock for themselves (`sql/src/admin.rs`); a move that is written down shares it for a moment.
const IS_MIGRATING: &str = "
    select exists (
        select from pg_locks l join pg_database d on d.oid = l.database
         where l.locktype = 'advisory' and l.granted and l.mode = 'ExclusiveLock' and d.datname = current_database()
           and l.objid = (hashtext('coro migrations')::bigint & 4294967295)::text::oid)";
const IS_OPEN: &str = "select exists (select from incarnations i where i.incarnation = incarnation())";
const STATE: &str = "
    select exists (select from incarnations i where i.incarnation = incarnation()),
           current_setting('wal_level') = 'logical', current_setting('server_version_num')::int";
const SOURCE_FREE: &str = "
    select current_setting('max_replication_slots')::bigint - (select count(*) from pg_replication_slots),
           current_setting('max_wal_senders')::bigint - (select count(*) from pg_stat_replication)";
const TARGET_FREE: &str = "
    select current_setting('max_logical_replication_workers')::bigint
               - (select count(*) from pg_stat_subscription where pid is not null),
           coalesce(current_setting('max_active_replication_origins', true),
                    current_setting('max_replication_slots'))::bigint - (select count(*) from pg_replication_origin)";
const BYTES: &str = "select coalesce(sum(pg_total_relation_size(quote_ident(t)::regclass)), 0)::bigint from unnest($1::text[]) as t";
const OWNED: &str = "select count(*) from owned_buckets where owned";
const BUSY: &str = "select count(*) from moving_buckets where bucket = any ($1::int2[])";
const CLOCK: &str = "select extract(epoch from clock_timestamp())::float8";

/// What cannot be read from the databases.
pub struct Given<'a> {
    pub relay: &'a RelayListener,
    pub source_bytes_free: Option<u64>,
    pub target_bytes_free: Option<u64>,
}

/// The tables of the move: those with a `user_id`.
///
/// # Errors
/// When the shard does not answer.
pub async fn tables(client: &Client) -> Result<Vec<String>> {
    let rows = client.query(TABLES, &[]).await.context("cannot list the tables")?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Whether services use the database: its history is known to be whole.
///
/// # Errors
/// When the shard does not answer.
pub async fn is_open(client: &Client) -> Result<bool> {
    Ok(client.query_one(IS_OPEN, &[]).await.context("incarnations")?.try_get(0)?)
}

/// # Errors
/// When a shard does not answer. A relay that does not is a refusal.
pub async fn read(source: &Shard, target: &Shard, buckets: &[i16], given: &Given<'_>) -> Result<Conditions> {
    let tables = tables(&source.client).await?;
    let names = async |query: &str| -> Result<Vec<String>> {
        let rows = source.client.query(query, &[&tables]).await.context("the catalog")?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    };
    let busy = count(&source.client, BUSY, buckets).await? + count(&target.client, BUSY, buckets).await?;
    let rows: Vec<Ownership> = record::ownership(&source.client, buckets).await?;
    Ok(Conditions {
        databases: databases(source, target).await?,
        resources: resources(source, target, &tables, buckets.len(), given).await?,
        without_identity: names(WITHOUT_IDENTITY).await?,
        referring: names(REFERRING).await?,
        relay_slots: observe::relay_slots(&source.client).await?,
        target_has_relay: !observe::relay_slots(&target.client).await?.is_empty(),
        halted_keys: given.relay.halted_keys(&relay_listener::client()?).await,
        clock_skew: clock_skew(&source.client, &target.client).await?,
        busy_buckets: busy,
        foreign_buckets: rows.iter().filter(|row| !row.owned).count(),
    })
}

async fn count(client: &Client, query: &str, buckets: &[i16]) -> Result<usize> {
    let count: i64 = client.query_one(query, &[&buckets]).await.context("moving_buckets")?.try_get(0)?;
    Ok(usize::try_from(count).unwrap_or_default())
}

async fn databases(source: &Shard, target: &Shard) -> Result<Databases> {
    let mut databases = Databases {
        is_migrating: false,
        source_version: 0,
        target_version: 0,
        closed: Vec::new(),
        source_server: 0,
        target_server: 0,
        is_logical: true,
    };
    for (shard, is_source) in [(source, true), (target, false)] {
        databases.is_migrating |= shard.client.query_one(IS_MIGRATING, &[]).await?.try_get::<_, bool>(0)?;
        let version = shard.client.query_one(record::SCHEMA_VERSION, &[]).await?.try_get(0)?;
        let state = shard.client.query_one(STATE, &[]).await?;
        if !state.try_get::<_, bool>(0)? {
            databases.closed.push(shard.name.clone());
        }
        if is_source {
            databases.source_version = version;
            databases.is_logical = state.try_get(1)?;
            databases.source_server = state.try_get(2)?;
        } else {
            databases.target_version = version;
            databases.target_server = state.try_get(2)?;
        }
    }
    Ok(databases)
}

async fn resources(
    source: &Shard,
    target: &Shard,
    tables: &[String],
    buckets: usize,
    given: &Given<'_>,
) -> Result<Resources> {
    let source_free = source.client.query_one(SOURCE_FREE, &[]).await.context("the source's settings")?;
    let target_free = target.client.query_one(TARGET_FREE, &[]).await.context("the target's settings")?;
    let bytes: i64 =
        source.client.query_one(BYTES, &[&tables]).await.context("the size of the tables")?.try_get(0)?;
    let owned: i64 = source.client.query_one(OWNED, &[]).await?.try_get(0)?;
    let part = bytes as f64 * buckets as f64 / owned.max(1) as f64;
    Ok(Resources {
        source_slots_free: source_free.try_get(0)?,
        source_walsenders_free: source_free.try_get(1)?,
        target_workers_free: target_free.try_get(0)?,
        target_origins_free: target_free.try_get(1)?,
        bytes: part as u64,
        source_bytes_free: given.source_bytes_free,
        target_bytes_free: given.target_bytes_free,
    })
}

/// The most by which the clocks may differ: what each question took could hide half of it.
async fn clock_skew(source: &Client, target: &Client) -> Result<Option<Duration>> {
    let began = Instant::now();
    let (source, target) = (offset(source, began).await?, offset(target, began).await?);
    let skew = (source.0 - target.0).abs() + source.1 + target.1;
    Ok(Duration::try_from_secs_f64(skew).ok())
}

/// The server's clock against ours, and by how much that may be wrong, in seconds.
async fn offset(client: &Client, began: Instant) -> Result<(f64, f64)> {
    let asked = began.elapsed().as_secs_f64();
    let clock: f64 = client.query_one(CLOCK, &[]).await.context("the clock")?.try_get(0)?;
    let answered = began.elapsed().as_secs_f64();
    Ok((clock - (asked + answered) / 2.0, (answered - asked) / 2.0))
}
