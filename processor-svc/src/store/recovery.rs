//! The SQL of a recovery: what a restored database lacks of charges.
//!
//! * An outcome is written to the bytes of its event, its version included: emitted again, it is the same event.
//! * A charge that may have been called becomes `calling`, exposed, with a lease that begins now. Nobody calls it. When the
//!   lease is over, the sweeper finds it as it finds that of a process that died: unknown, and inquired about. An answer that
//!   a process has had since, and could not write, counts.
//! * Such a row has a version that was never emitted, and so has the outcome that follows.

use std::collections::HashMap;

use anyhow::Context;
use saga::contract::ChargeResult;
use saga::postgres::Transaction;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Store, column, millis};
use crate::charge::ChargeKey;
use crate::work::Job;

const READ: &str = "
    select payment_id, user_id, client_number, service_id, amount, status, attempt, reason, version,
           provider_reference, traceparent, expires_at, created_at, decided_at
      from charges where payment_id = any($1) and require_ownership($2, $3)";

// What was exposed stays so, unless the outcome proves that no call was made. An unknown charge gets the record of a call
// that ended now, so that the visibility delay of the gateway begins now.
const WRITE_OUTCOMES: &str = "
    with lacking as (
        insert into charges (payment_id, user_id, client_number, service_id, amount, status, attempt, reason, version,
                             provider_reference, traceparent, expires_at, created_at, decided_at, exposed, lease_until)
        select *, status = 'unknown', now() + $15::int8 * interval '1 millisecond'
          from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[], $6::text[], $7::int4[], $8::text[],
                      $9::int4[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[])
            as o (payment_id, user_id, client_number, service_id, amount, status, attempt, reason, version,
                  provider_reference, traceparent, expires_at, created_at, decided_at)
         where require_ownership($16, $17)
        on conflict on constraint charges_pkey do update
           set user_id = excluded.user_id, client_number = excluded.client_number, service_id = excluded.service_id,
               amount = excluded.amount, status = excluded.status, attempt = excluded.attempt, reason = excluded.reason,
               version = excluded.version, provider_reference = excluded.provider_reference,
               traceparent = excluded.traceparent, expires_at = excluded.expires_at, created_at = excluded.created_at,
               decided_at = excluded.decided_at, lease_until = excluded.lease_until,
               exposed = excluded.exposed or (charges.exposed and excluded.status in ('succeeded', 'declined'))
         where charges.version < excluded.version
        returning payment_id, user_id, attempt, status, reason
    ), noted as (
        insert into charge_attempts (payment_id, user_id, attempt, seq, kind, outcome, detail, next_at)
        select payment_id, user_id, attempt, 1, 'charge', 'unknown', reason, now() from lacking where status = 'unknown'
        on conflict do nothing
    )
    select count(*) from lacking";

// A row that waited may have been called since, whatever its deadline.
const EXPOSE: &str = "
    update charges
       set attempt = attempt + case status when 'waiting' then 1 else 0 end,
           version = version + case status when 'waiting' then 1 else 0 end,
           status = 'calling', reason = null, exposed = true,
           lease_until = now() + $1::int8 * interval '1 millisecond'
     where status in ('waiting', 'calling')
       and exists (select from owned_buckets o where o.bucket = bucket(charges.user_id) and o.owned)";

const INSERT_WORK: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
                         status, exposed, lease_until)
    select payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
           'calling', true, now() + $8::int8 * interval '1 millisecond'
      from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[], $6::text[], $7::timestamptz[])
        as job (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at)
     where require_ownership($9, $10)
    on conflict do nothing";

impl Store {
    /// The published columns of these charges.
    pub async fn published(
        &self,
        transaction: &Transaction<'_>,
        charges: &[ChargeKey],
    ) -> anyhow::Result<HashMap<Uuid, ChargeResult>> {
        let owned = self.owned(&column(charges, |charge| charge.user_id)).await?;
        let payments = column(charges, |charge| charge.payment_id);
        let read = transaction.prepare_cached(READ).await?;
        let rows = transaction.query(&read, &[&payments, &owned.buckets, &owned.epochs]).await;
        let rows = rows.context("cannot read charges")?;
        Ok(rows.iter().map(published).map(|row| (row.payment_id, row)).collect())
    }

    /// Writes outcomes of distinct charges whose rows are older or not there; returns the number written.
    pub async fn write_outcomes(
        &self,
        transaction: &Transaction<'_>,
        outcomes: &[&ChargeResult],
    ) -> anyhow::Result<u64> {
        if outcomes.is_empty() {
            return Ok(0);
        }
        let owned = self.owned(&column(outcomes, |o| o.user_id)).await?;
        let columns: [&(dyn ToSql + Sync); 17] = [
            &column(outcomes, |o| o.payment_id),
            &column(outcomes, |o| o.user_id),
            &column(outcomes, |o| o.client_number.as_str()),
            &column(outcomes, |o| o.service_id.as_str()),
            &column(outcomes, |o| o.amount),
            &column(outcomes, |o| o.status.as_str()),
            &column(outcomes, |o| o.attempt),
            &column(outcomes, |o| o.reason.as_deref()),
            &column(outcomes, |o| o.version),
            &column(outcomes, |o| o.provider_reference.as_deref()),
            &column(outcomes, |o| o.traceparent.as_deref()),
            &column(outcomes, |o| o.expires_at),
            &column(outcomes, |o| o.created_at),
            &column(outcomes, |o| o.decided_at),
            &millis(self.lease),
            &owned.buckets,
            &owned.epochs,
        ];
        let write = transaction.prepare_cached(WRITE_OUTCOMES).await?;
        let row = transaction.query_one(&write, &columns).await.context("cannot write outcomes")?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// Makes every charge that the database has as waiting or being called one that may have been called; returns their
    /// number. It reads the whole table, so it has no time-out.
    pub async fn expose_open(&self, transaction: &Transaction<'_>) -> anyhow::Result<u64> {
        transaction.batch_execute("set local statement_timeout = 0").await?;
        let expose = transaction.prepare_cached(EXPOSE).await?;
        transaction.execute(&expose, &[&millis(self.lease)]).await.context("cannot expose open charges")
    }

    /// Inserts charges that may have been called, for jobs of distinct payments without a row; returns their number.
    pub async fn insert_exposed(&self, transaction: &Transaction<'_>, jobs: &[&Job]) -> anyhow::Result<u64> {
        if jobs.is_empty() {
            return Ok(0);
        }
        let owned = self.owned(&column(jobs, |job| job.charge.user_id)).await?;
        let columns: [&(dyn ToSql + Sync); 10] = [
            &column(jobs, |job| job.charge.payment_id),
            &column(jobs, |job| job.charge.user_id),
            &column(jobs, |job| job.charge.client_number.as_str()),
            &column(jobs, |job| job.charge.service_id.as_str()),
            &column(jobs, |job| job.charge.amount),
            &column(jobs, |job| job.charge.traceparent.as_deref()),
            &column(jobs, |job| job.expires_at),
            &millis(self.lease),
            &owned.buckets,
            &owned.epochs,
        ];
        let insert = transaction.prepare_cached(INSERT_WORK).await?;
        transaction
            .execute(&insert, &columns)
            .await
            .context("cannot insert charges that may have been called")
    }
}

fn published(row: &Row) -> ChargeResult {
    ChargeResult {
        payment_id: row.get("payment_id"),
        user_id: row.get("user_id"),
        client_number: row.get("client_number"),
        service_id: row.get("service_id"),
        amount: row.get("amount"),
        status: row.get("status"),
        attempt: row.get("attempt"),
        reason: row.get("reason"),
        version: row.get("version"),
        provider_reference: row.get("provider_reference"),
        traceparent: row.get("traceparent"),
        expires_at: row.get("expires_at"),
        created_at: row.get("created_at"),
        decided_at: row.get("decided_at"),
    }
}
