//! Reads and writes what a restored database lacks of its own payments.
//!
//! * A batch is one read, one insert and one update, whatever its size. Rows travel as JSON, by the names of their columns, which
//!   are those of the events.
//! * A row is written to the bytes of its event. Its key is the one that its id stands for, see [`crate::request`].
//! * An update compares the version that was read. A row that is there is never replaced.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, ensure};
use saga::contract::{Payment, Service};
use saga::postgres::{Client, Transaction};
use saga::recovery::Emitted;
use saga::shards::Ownership;
use serde::Serialize;
use tokio_postgres::types::Json;
use uuid::Uuid;

use crate::recovery::plan::{Outdated, Plan, Refused, key, plan};
use crate::request::{fingerprint, recovered_key};

const READ: &str = "
    select to_jsonb(p) from unnest($1::uuid[], $2::uuid[]) as n (user_id, payment_id)
      join payments p using (user_id, payment_id)
     where require_ownership($3, $4)";

const INSERT: &str = "
    insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, status,
                          event, reason, version, traceparent, initiated_at, expires_at, authorized_at, completed_at,
                          rejected_at, failed_at, cancelled_at, cancel_requested_at)
    select user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, status,
           event, reason, version, traceparent, initiated_at, expires_at, authorized_at, completed_at,
           rejected_at, failed_at, cancelled_at, cancel_requested_at
      from jsonb_populate_recordset(null::payments, $1)
     where require_ownership($2, $3)
    on conflict do nothing
    returning payment_id";

const UPDATE: &str = "
    update payments p
       set status = n.status, event = n.event, reason = n.reason, version = n.version,
           authorized_at = n.authorized_at, completed_at = n.completed_at, rejected_at = n.rejected_at,
           failed_at = n.failed_at, cancelled_at = n.cancelled_at, cancel_requested_at = n.cancel_requested_at
      from jsonb_to_recordset($1) as n (
           user_id uuid, payment_id uuid, from_version integer, status text, event text, reason text, version integer,
           authorized_at timestamptz, completed_at timestamptz, rejected_at timestamptz, failed_at timestamptz,
           cancelled_at timestamptz, cancel_requested_at timestamptz)
     where p.user_id = n.user_id and p.payment_id = n.payment_id and p.version = n.from_version
       and require_ownership($2, $3)";

/// A row to insert: the published columns, and those that no event has.
#[derive(Debug, Serialize)]
struct NewRow<'a> {
    #[serde(flatten)]
    payment: &'a Payment,
    idempotency_key: String,
    /// As Postgres reads a `bytea`.
    fingerprint: String,
}

/// A row to update, and the version that it has.
#[derive(Debug, Serialize)]
struct NewVersion<'a> {
    #[serde(flatten)]
    payment: &'a Payment,
    from_version: i32,
}

/// Plans a batch on what the database has, and writes what it lacks, in a transaction of the caller.
///
/// # Errors
/// When the database failed, or a row changed meanwhile. Nothing may be committed then.
pub async fn recover(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    batch: &[Emitted<Payment>],
) -> anyhow::Result<Plan> {
    let rows = read(transaction, owned, batch).await?;
    let mut plan = plan(batch, rows);
    let made = insert(transaction, owned, &plan.lacking).await?;
    // The pure plan knows no other payment. One with the same key was accepted since the restore.
    let (made, taken): (Vec<_>, Vec<_>) =
        plan.lacking.drain(..).partition(|payment| made.contains(&payment.payment_id));
    plan.lacking = made;
    plan.refused.extend(taken.into_iter().map(|payment| Refused {
        payment_id: payment.payment_id,
        place: "PaymentTopic".to_owned(),
        why: "another payment of the same request is there".to_owned(),
    }));
    update(transaction, owned, &plan.outdated).await?;
    Ok(plan)
}

async fn read(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    batch: &[Emitted<Payment>],
) -> anyhow::Result<Vec<Payment>> {
    let keys: BTreeSet<(Uuid, Uuid)> = batch.iter().map(|emitted| key(&emitted.body)).collect();
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let (users, payments): (Vec<Uuid>, Vec<Uuid>) = keys.into_iter().unzip();
    let read = transaction.prepare_cached(READ).await?;
    let rows = transaction
        .query(&read, &[&users, &payments, &owned.buckets, &owned.epochs])
        .await
        .context("cannot read payments")?;
    rows.iter().map(|row| Ok(row.try_get::<_, Json<Payment>>(0)?.0)).collect()
}

/// Returns the ids of the payments that are made.
async fn insert(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    lacking: &[Payment],
) -> anyhow::Result<HashSet<Uuid>> {
    if lacking.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<NewRow<'_>> = lacking.iter().map(new_row).collect();
    let insert = transaction.prepare_cached(INSERT).await?;
    let made = transaction
        .query(&insert, &[&Json(rows), &owned.buckets, &owned.epochs])
        .await
        .context("cannot make payments again")?;
    Ok(made.iter().map(|row| row.get(0)).collect())
}

fn new_row(payment: &Payment) -> NewRow<'_> {
    let fingerprint = fingerprint(&payment.client_number, &payment.service_id, payment.amount);
    let digits: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    NewRow {
        payment,
        idempotency_key: recovered_key(payment.payment_id),
        fingerprint: format!("\\x{digits}"),
    }
}

async fn update(
    transaction: &Transaction<'_>,
    owned: &Ownership,
    outdated: &[Outdated],
) -> anyhow::Result<()> {
    if outdated.is_empty() {
        return Ok(());
    }
    let rows: Vec<NewVersion<'_>> = outdated
        .iter()
        .map(|Outdated { from_version, payment }| NewVersion { payment, from_version: *from_version })
        .collect();
    let update = transaction.prepare_cached(UPDATE).await?;
    let updated = transaction
        .execute(&update, &[&Json(rows), &owned.buckets, &owned.epochs])
        .await
        .context("cannot update payments")?;
    ensure!(
        updated == outdated.len() as u64,
        "payments changed meanwhile: the database is in use. Run this again"
    );
    Ok(())
}

/// Every service, as its event has it.
pub async fn published_services(client: &Client) -> anyhow::Result<Vec<Service>> {
    let rows =
        client.query("select to_jsonb(s) from services s", &[]).await.context("cannot read services")?;
    rows.iter().map(|row| Ok(row.try_get::<_, Json<Service>>(0)?.0)).collect()
}
