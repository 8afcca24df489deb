//! Inserts accepted payments: one statement per batch, one payment per idempotency key.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::{Client, Pool};
use tokio_postgres::Row;
use uuid::Uuid;

use super::AcceptedPayment;

/// A request to pay, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayment {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub idempotency_key: String,
    /// SHA-256 over the parsed fields.
    pub fingerprint: [u8; 32],
    pub client_number: String,
    pub service_id: String,
    pub amount: i64,
    pub traceparent: String,
}

/// The outcome of a request to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    Created(AcceptedPayment),
    /// The same request was accepted before.
    Replayed(AcceptedPayment),
    /// The key was used for another request, which made this payment.
    KeyReused {
        payment_id: Uuid,
    },
    /// The service is unknown or disabled; nothing was written.
    ServiceRefused,
    /// New payments are refused for the moment; nothing was written.
    Shed,
}

/// Inserts all payments in one statement; returns their outcomes in the same order.
pub async fn insert_payments(
    pool: &Pool,
    payments: &[NewPayment],
    ttl: Duration,
) -> anyhow::Result<Vec<Acceptance>> {
    let client = pool.get().await.context("no connection to the payments database")?;
    let created = insert(&client, payments, ttl).await?;
    let left: Vec<&NewPayment> = payments.iter().filter(|p| !created.contains_key(&p.payment_id)).collect();
    // The key counts before the service: its payment is replayed even when the service is disabled by now.
    let before = if left.is_empty() { HashMap::new() } else { by_key(&client, &left).await? };
    let outcome = |payment: &NewPayment| match created.get(&payment.payment_id) {
        Some(times) => Acceptance::Created(AcceptedPayment {
            user_id: payment.user_id,
            payment_id: payment.payment_id,
            client_number: payment.client_number.clone(),
            service_id: payment.service_id.clone(),
            amount: payment.amount,
            initiated_at: times.initiated_at,
            expires_at: times.expires_at,
        }),
        None => earlier(&before, payment).unwrap_or(Acceptance::ServiceRefused),
    };
    Ok(payments.iter().map(outcome).collect())
}

/// The outcomes of these requests where no payment may be made: only those that were accepted before are given back.
pub async fn earlier_payments(pool: &Pool, payments: &[NewPayment]) -> anyhow::Result<Vec<Acceptance>> {
    let client = pool.get().await.context("no connection to the payments database")?;
    let before = by_key(&client, &payments.iter().collect::<Vec<_>>()).await?;
    Ok(payments.iter().map(|payment| earlier(&before, payment).unwrap_or(Acceptance::Shed)).collect())
}

/// The outcome of a request whose key was used before.
fn earlier(before: &ByKey, payment: &NewPayment) -> Option<Acceptance> {
    let earlier = before.get(&(payment.user_id, payment.idempotency_key.clone()))?;
    Some(if earlier.fingerprint == payment.fingerprint {
        Acceptance::Replayed(earlier.payment.clone())
    } else {
        Acceptance::KeyReused { payment_id: earlier.payment.payment_id }
    })
}

/// The columns that the database sets.
struct CreationTimes {
    initiated_at: Timestamp,
    expires_at: Timestamp,
}

type Created = HashMap<Uuid, CreationTimes>;

async fn insert(client: &Client, payments: &[NewPayment], ttl: Duration) -> anyhow::Result<Created> {
    let statement = client
        .prepare_cached(
            "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id,
                                   amount, traceparent, expires_at)
             select n.user_id, n.payment_id, n.idempotency_key, n.fingerprint, n.client_number, n.service_id,
                    n.amount, n.traceparent, now() + make_interval(secs => $9)
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::text[])
                  as n (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, traceparent)
             where exists (select from services s where s.service_id = n.service_id and s.enabled)
             on conflict on constraint payments_idempotency_key do nothing
             returning payment_id, initiated_at, expires_at",
        )
        .await
        .context("cannot prepare the insert of payments")?;
    let users: Vec<Uuid> = payments.iter().map(|p| p.user_id).collect();
    let ids: Vec<Uuid> = payments.iter().map(|p| p.payment_id).collect();
    let keys: Vec<&str> = payments.iter().map(|p| p.idempotency_key.as_str()).collect();
    let fingerprints: Vec<&[u8]> = payments.iter().map(|p| p.fingerprint.as_slice()).collect();
    let numbers: Vec<&str> = payments.iter().map(|p| p.client_number.as_str()).collect();
    let services: Vec<&str> = payments.iter().map(|p| p.service_id.as_str()).collect();
    let amounts: Vec<i64> = payments.iter().map(|p| p.amount).collect();
    let traces: Vec<&str> = payments.iter().map(|p| p.traceparent.as_str()).collect();
    let rows = client
        .query(
            &statement,
            &[&users, &ids, &keys, &fingerprints, &numbers, &services, &amounts, &traces, &ttl.as_secs_f64()],
        )
        .await
        .context("cannot insert payments")?;
    let times = |row: &Row| CreationTimes { initiated_at: row.get(1), expires_at: row.get(2) };
    Ok(rows.iter().map(|row| (row.get(0), times(row))).collect())
}

/// A payment that was accepted before under a key.
struct EarlierPayment {
    fingerprint: Vec<u8>,
    payment: AcceptedPayment,
}

/// By user and idempotency key.
type ByKey = HashMap<(Uuid, String), EarlierPayment>;

async fn by_key(client: &Client, payments: &[&NewPayment]) -> anyhow::Result<ByKey> {
    let statement = client
        .prepare_cached(
            "select p.user_id, p.idempotency_key, p.fingerprint, p.payment_id, p.client_number, p.service_id,
                    p.amount, p.initiated_at, p.expires_at
             from unnest($1::uuid[], $2::text[]) as n (user_id, idempotency_key)
             join payments p using (user_id, idempotency_key)",
        )
        .await?;
    let users: Vec<Uuid> = payments.iter().map(|p| p.user_id).collect();
    let keys: Vec<&str> = payments.iter().map(|p| p.idempotency_key.as_str()).collect();
    let rows = client.query(&statement, &[&users, &keys]).await.context("cannot look up idempotency keys")?;
    let payment = |row: &Row| AcceptedPayment {
        user_id: row.get(0),
        payment_id: row.get(3),
        client_number: row.get(4),
        service_id: row.get(5),
        amount: row.get(6),
        initiated_at: row.get(7),
        expires_at: row.get(8),
    };
    let earlier = |row: &Row| EarlierPayment { fingerprint: row.get(2), payment: payment(row) };
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), earlier(row))).collect())
}
