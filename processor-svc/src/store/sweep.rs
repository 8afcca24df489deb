//! The SQL of the sweeper: due charges, claims of inquiries, their results, charges that are not terminal.
//!
//! * A claim is the insert of the inquiry's row, so one processor makes each inquiry.
//! * A scan reads by age, a walk reads by block.
//! * Rows of users that the database does not own are left out: they are being copied, or wait to be removed. A charge that is
//!   left out leaves the due queue, and the sweeper of the database that owns it finds it.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::Parameters;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Store, charge, column, millis, state};
use crate::charge::Charge;
use crate::saga::State;

/// When a charge needs work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    After(Duration),
}

/// A charge as the sweeper reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeView {
    pub charge: Charge,
    pub state: State,
    /// When its lease or pause is over, or its inquiry is due.
    pub due: Due,
    pub past_deadline: bool,
}

/// A charge that is not terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveCharge {
    pub payment_id: Uuid,
    pub created_at: Timestamp,
}

/// The age of a charge that is not terminal, by the clock of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChargeAge {
    pub payment_id: Uuid,
    /// `waiting`, `calling` or `unknown`.
    pub status: String,
    pub age: Duration,
}

/// The right to make one inquiry, and its charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub charge: Charge,
    pub attempt: i32,
    /// The number of its row in `charge_attempts`.
    pub seq: i32,
    /// The visibility delay of the gateway has passed since the attempt ended.
    pub conclusive: bool,
}

/// The result of an inquiry, for its row in `charge_attempts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InquiryResult {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub attempt: i32,
    pub seq: i32,
    pub outcome: &'static str,
    pub detail: Option<String>,
    /// The pause until the next inquiry; `None` after a definite answer.
    pub next: Option<Duration>,
}

const READ_VIEWS: &str = "
    select c.payment_id, c.user_id, c.client_number, c.service_id, c.amount, c.traceparent,
           c.status, c.attempt, c.exposed,
           coalesce(c.expires_at <= now(), false) as past_deadline,
           greatest(0, ceil(1000 * extract(epoch from
               case c.status when 'unknown' then coalesce(a.next_at, now())
                             when 'waiting' then least(c.lease_until, c.expires_at)
                             else c.lease_until end - now())))::int8 as due_ms
      from charges c
      left join lateral (select next_at from charge_attempts a
                          where a.payment_id = c.payment_id and a.attempt = c.attempt
                          order by seq desc limit 1) a on c.status = 'unknown'
     where c.payment_id = any($1)
       and exists (select from owned_buckets o where o.bucket = bucket(c.user_id) and o.owned)";

// The claim is the insert: when several processors find the same inquiry due, one of them inserts its row.
const CLAIM: &str = "
    with claimed as (
        insert into charge_attempts (payment_id, user_id, attempt, seq, kind, outcome, next_at)
        select c.payment_id, c.user_id, c.attempt, coalesce(a.seq, 0) + 1, 'inquiry', 'asking',
               now() + $2::int8 * interval '1 millisecond'
          from charges c
          left join lateral (select seq, next_at from charge_attempts a
                              where a.payment_id = c.payment_id and a.attempt = c.attempt
                              order by seq desc limit 1) a on true
         where c.payment_id = any($1) and c.status = 'unknown' and coalesce(a.next_at <= now(), true)
           and exists (select from owned_buckets o where o.bucket = bucket(c.user_id) and o.owned)
        on conflict do nothing
        returning payment_id, attempt, seq
    )
    select c.payment_id, c.user_id, c.client_number, c.service_id, c.amount, c.traceparent,
           claimed.attempt, claimed.seq,
           coalesce(ended.at <= now() - $3::int8 * interval '1 millisecond', false) as settled
      from claimed
      join charges c on c.payment_id = claimed.payment_id
      left join charge_attempts ended
        on ended.payment_id = claimed.payment_id and ended.attempt = claimed.attempt and ended.seq = 1";

const RECORD_INQUIRIES: &str = "
    update charge_attempts a
       set outcome = n.outcome, detail = n.detail, next_at = now() + n.next_ms * interval '1 millisecond'
      from unnest($1::uuid[], $2::int4[], $3::int4[], $4::text[], $5::text[], $6::int8[])
        as n (payment_id, attempt, seq, outcome, detail, next_ms)
     where a.payment_id = n.payment_id and a.attempt = n.attempt and a.seq = n.seq and require_ownership($7, $8)";

// An inquiry under way is left alone: its answer is on the way.
const HASTEN: &str = "
    update charge_attempts a set next_at = now()
      from charges c
     where c.payment_id = $1 and c.status = 'unknown'
       and exists (select from owned_buckets o where o.bucket = bucket(c.user_id) and o.owned)
       and a.payment_id = c.payment_id and a.attempt = c.attempt
       and a.outcome <> 'asking' and a.next_at > now()
       and a.seq = (select max(seq) from charge_attempts
                     where payment_id = c.payment_id and attempt = c.attempt)";

// By age, through the block range index.
const SCAN: &str = "
    select payment_id, created_at from charges
     where created_at >= $1 and status in ('waiting', 'calling', 'unknown')
       and exists (select from owned_buckets o where o.bucket = bucket(charges.user_id) and o.owned)
     order by created_at, payment_id limit $2";

// A tid range scan: reads these blocks and no others.
const WALK: &str = "
    select payment_id, created_at from charges
     where ctid >= ($1::text)::tid and ctid < ($2::text)::tid
       and status in ('waiting', 'calling', 'unknown')
       and exists (select from owned_buckets o where o.bucket = bucket(charges.user_id) and o.owned)";

const BLOCKS: &str = "
    select pg_relation_size('charges') / current_setting('block_size')::int8";

const LIVE: &str = "
    select payment_id, status, extract(epoch from now() - created_at)::float8 as age from charges
     where payment_id = any($1) and status in ('waiting', 'calling', 'unknown')
       and exists (select from owned_buckets o where o.bucket = bucket(charges.user_id) and o.owned)";

/// A step of a walk through the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkStep {
    pub live: Vec<LiveCharge>,
    /// The block at which the walk continues; `None` at the end of the table.
    pub next: Option<u64>,
}

impl Store {
    /// Reads these charges for the sweeper.
    pub async fn views(&self, payments: &[Uuid]) -> anyhow::Result<Vec<ChargeView>> {
        let client = self.client().await?;
        let views = client.prepare_cached(READ_VIEWS).await?;
        let rows = client.query(&views, &[&payments]).await.context("cannot read the due charges")?;
        let view = |row: &Row| -> anyhow::Result<ChargeView> {
            let due = match row.get("due_ms") {
                ..=0i64 => Due::Now,
                millis => Due::After(Duration::from_millis(millis.unsigned_abs())),
            };
            Ok(ChargeView {
                charge: charge(row),
                state: state(row)?,
                due,
                past_deadline: row.get("past_deadline"),
            })
        };
        rows.iter().map(view).collect()
    }

    /// Claims inquiries that are due. Another processor may inquire after `claim` if this one records no result. A charge
    /// that was made is found after `visibility`.
    pub async fn claim(
        &self,
        payments: &[Uuid],
        claim: Duration,
        visibility: Duration,
    ) -> anyhow::Result<Vec<Claim>> {
        let client = self.client().await?;
        let statement = client.prepare_cached(CLAIM).await?;
        let rows = client
            .query(&statement, &[&payments, &millis(claim), &millis(visibility)])
            .await
            .context("cannot claim inquiries")?;
        let claim = |row: &Row| Claim {
            charge: charge(row),
            attempt: row.get("attempt"),
            seq: row.get("seq"),
            conclusive: row.get("settled"),
        };
        Ok(rows.iter().map(claim).collect())
    }

    /// Makes the next inquiry about an unknown charge due now. False when there is none.
    pub async fn hasten(&self, payment_id: Uuid) -> anyhow::Result<bool> {
        let client = self.client().await?;
        let hasten = client.prepare_cached(HASTEN).await?;
        let rows = client.execute(&hasten, &[&payment_id]).await.context("cannot make an inquiry due")?;
        Ok(rows > 0)
    }

    /// Records the results of inquiries.
    pub async fn record_inquiries(&self, results: &[InquiryResult]) -> anyhow::Result<()> {
        if results.is_empty() {
            return Ok(());
        }
        let owned = self.owned(&column(results, |n| n.user_id)).await?;
        let parameters: Parameters<'_> = &[
            &column(results, |n| n.payment_id),
            &column(results, |n| n.attempt),
            &column(results, |n| n.seq),
            &column(results, |n| n.outcome),
            &column(results, |n| n.detail.as_deref()),
            &column(results, |n| n.next.map(millis)),
            &owned.buckets,
            &owned.epochs,
        ];
        let failed = "cannot record the results of inquiries";
        self.query(&owned, RECORD_INQUIRIES, parameters, failed).await.map(drop)
    }

    /// Charges that are not terminal, created at `from` or later, oldest first, at most `rows_max`; and the clock of the
    /// database. It may read the whole table, so it has no time-out.
    pub async fn scan(
        &self,
        from: Timestamp,
        rows_max: usize,
    ) -> anyhow::Result<(Vec<LiveCharge>, Timestamp)> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.context("cannot begin a transaction")?;
        transaction
            .batch_execute("set local statement_timeout = 0")
            .await
            .context("cannot lift the time-out of the scan")?;
        let now: Timestamp = transaction
            .query_one("select now()", &[])
            .await
            .context("cannot read the clock of the database")?
            .get(0);
        let scan = transaction.prepare_cached(SCAN).await?;
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let rows = transaction.query(&scan, &[&from, &limit]).await.context("cannot scan the charges")?;
        transaction.commit().await.context("cannot commit")?;
        Ok((rows.iter().map(live).collect(), now))
    }

    /// Charges that are not terminal in `blocks` blocks of the table from `from` on, whatever their age.
    pub async fn walk(&self, from: u64, blocks: u64) -> anyhow::Result<WalkStep> {
        let client = self.client().await?;
        let size = client.prepare_cached(BLOCKS).await?;
        let end: i64 =
            client.query_one(&size, &[]).await.context("cannot read the size of the table charges")?.get(0);
        let (walk, next) = (client.prepare_cached(WALK).await?, from + blocks);
        let rows = client
            .query(&walk, &[&format!("({from},0)"), &format!("({next},0)")])
            .await
            .context("cannot walk through the table charges")?;
        let next = (next < end.unsigned_abs()).then_some(next);
        Ok(WalkStep { live: rows.iter().map(live).collect(), next })
    }

    /// Those of these charges that exist and are not terminal.
    pub async fn live(&self, payments: &[Uuid]) -> anyhow::Result<Vec<ChargeAge>> {
        let client = self.client().await?;
        let statement = client.prepare_cached(LIVE).await?;
        let rows = client.query(&statement, &[&payments]).await.context("cannot read the oldest charges")?;
        let age = |row: &Row| ChargeAge {
            payment_id: row.get("payment_id"),
            status: row.get("status"),
            // Negative after the database's clock was set back.
            age: Duration::try_from_secs_f64(row.get("age")).unwrap_or_default(),
        };
        Ok(rows.iter().map(age).collect())
    }
}

fn live(row: &Row) -> LiveCharge {
    LiveCharge { payment_id: row.get("payment_id"), created_at: row.get("created_at") }
}
