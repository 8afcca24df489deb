//! Reads which payments are not terminal: by age, by block, and by key.
//!
//! * By age through the block range index: it reads the rows of that time and no others.
//! * By block: a step of a walk through the whole table reads these blocks and no others.
//! * Rows of users that the database does not own are left out: they are being copied, or wait to be removed.

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::{self, Pool};
use tokio_postgres::Row;
use uuid::Uuid;

/// A payment that is not terminal. Older ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnsettledPayment {
    pub initiated_at: Timestamp,
    pub user_id: Uuid,
    pub payment_id: Uuid,
}

/// A step of a walk through the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkStep {
    pub found: Vec<UnsettledPayment>,
    /// The block at which the walk continues; `None` at the end of the table.
    pub next: Option<u64>,
}

const BY_AGE: &str = "
    select initiated_at, user_id, payment_id from payments
     where initiated_at >= $1 and initiated_at < $2 and status in ('initiated', 'authorized')
       and exists (select from owned_buckets o where o.bucket = bucket(payments.user_id) and o.owned)
     order by initiated_at, user_id, payment_id limit $3";

// A tid range scan: reads these blocks and no others.
const BY_BLOCK: &str = "
    select initiated_at, user_id, payment_id from payments
     where ctid >= ($1::text)::tid and ctid < ($2::text)::tid and status in ('initiated', 'authorized')
       and exists (select from owned_buckets o where o.bucket = bucket(payments.user_id) and o.owned)";

const BLOCKS: &str = "select pg_relation_size('payments') / current_setting('block_size')::int8";

const BY_KEY: &str = "
    select p.initiated_at, p.user_id, p.payment_id
      from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
      join payments p using (user_id, payment_id)
     where p.status in ('initiated', 'authorized')
       and exists (select from owned_buckets o where o.bucket = bucket(p.user_id) and o.owned)";

// An epoch only rises.
const OWNERSHIP_CHANGES: &str = "select sum(epoch)::int8 from owned_buckets";

/// The database's clock.
pub async fn clock(pool: &Pool) -> anyhow::Result<Timestamp> {
    let rows = postgres::query(pool, "select now()", &[], "cannot read the database's clock").await?;
    Ok(rows.first().context("the time is one row")?.get(0))
}

/// A number that changes when the database gets a user from another one, or gives one up.
pub async fn ownership_changes(pool: &Pool) -> anyhow::Result<i64> {
    let rows =
        postgres::query(pool, OWNERSHIP_CHANGES, &[], "cannot read which users the database owns").await?;
    Ok(rows.first().context("a sum is one row")?.get(0))
}

/// The payments accepted from `from` until before `until` that are not terminal, oldest first, at most `rows_max`.
pub async fn unsettled_by_age(
    pool: &Pool,
    from: Timestamp,
    until: Timestamp,
    rows_max: usize,
) -> anyhow::Result<Vec<UnsettledPayment>> {
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let failed = "cannot look for unsettled payments by age";
    let rows = postgres::query(pool, BY_AGE, &[&from, &until, &limit], failed).await?;
    Ok(rows.iter().map(unsettled).collect())
}

/// The payments in `blocks` blocks of the table from `from` on that are not terminal, whatever their age.
pub async fn unsettled_by_block(pool: &Pool, from: u64, blocks: u64) -> anyhow::Result<WalkStep> {
    let client = pool.get().await.context("no connection to the payments database")?;
    let size = client.prepare_cached(BLOCKS).await.context("cannot prepare the size of payments")?;
    let end: i64 = client.query_one(&size, &[]).await.context("cannot read the size of payments")?.get(0);
    let (statement, next) = (client.prepare_cached(BY_BLOCK).await?, from + blocks);
    let rows = client
        .query(&statement, &[&format!("({from},0)"), &format!("({next},0)")])
        .await
        .context("cannot look for unsettled payments by block")?;
    let next = (next < end.unsigned_abs()).then_some(next);
    Ok(WalkStep { found: rows.iter().map(unsettled).collect(), next })
}

/// Those of these payments that are not terminal.
pub async fn still_unsettled(
    pool: &Pool,
    payments: &[UnsettledPayment],
) -> anyhow::Result<Vec<UnsettledPayment>> {
    let (users, ids): (Vec<Uuid>, Vec<Uuid>) = payments.iter().map(|p| (p.user_id, p.payment_id)).unzip();
    let failed = "cannot look for unsettled payments by key";
    let rows = postgres::query(pool, BY_KEY, &[&users, &ids], failed).await?;
    Ok(rows.iter().map(unsettled).collect())
}

fn unsettled(row: &Row) -> UnsettledPayment {
    UnsettledPayment { initiated_at: row.get(0), user_id: row.get(1), payment_id: row.get(2) }
}
