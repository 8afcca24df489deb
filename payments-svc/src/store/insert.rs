//! Inserts accepted payments: one statement per batch, one payment per idempotency key.
//!
//! * A payment that was made again after a restore has no key of its client, since events have none. It has the key that its id
//!   stands for ([`recovered_key`]), so each request is looked up by both.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use saga::postgres::{Client, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

use super::AcceptedPayment;
use crate::request::recovered_key;

/// A request to pay, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayment {
    pub user_id: Uuid,
    /// Derived from the user and the key, see [`crate::request`].
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
    owned: &Ownership,
    payments: &[NewPayment],
    ttl: Duration,
) -> anyhow::Result<Vec<Acceptance>> {
    let client = owned.client().await?;
    let mut created = insert(&client, owned, payments, ttl).await?;
    // The same request twice in a millisecond has one id, and one of the two made the payment.
    let created: Vec<(&NewPayment, Option<CreationTimes>)> = payments
        .iter()
        .map(|payment| (payment, created.remove(&(payment.payment_id, payment.fingerprint.to_vec()))))
        .collect();
    let left: Vec<&NewPayment> =
        created.iter().filter(|(_, times)| times.is_none()).map(|(payment, _)| *payment).collect();
    // The key counts before the service: its payment is replayed even when the service is disabled by now.
    let before = if left.is_empty() { HashMap::new() } else { by_key(&client, owned, &left).await? };
    if !before.is_empty() {
        confirm_visible(&client).await?;
    }
    let outcome = |(payment, times): (&NewPayment, Option<CreationTimes>)| match times {
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
    Ok(created.into_iter().map(outcome).collect())
}

/// The outcomes of these requests where no payment may be made: only those that were accepted before are given back.
pub async fn earlier_payments(owned: &Ownership, payments: &[NewPayment]) -> anyhow::Result<Vec<Acceptance>> {
    let client = owned.client().await?;
    let before = by_key(&client, owned, &payments.iter().collect::<Vec<_>>()).await?;
    if !before.is_empty() {
        confirm_visible(&client).await?;
    }
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

/// By id and fingerprint.
type Created = HashMap<(Uuid, Vec<u8>), CreationTimes>;

async fn insert(
    client: &Client,
    owned: &Ownership,
    payments: &[NewPayment],
    ttl: Duration,
) -> anyhow::Result<Created> {
    let statement = client
        .prepare_cached(
            // The same request at two instances in a millisecond conflicts by its id as well as by its key.
            "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id,
                                   amount, traceparent, expires_at)
             select n.user_id, n.payment_id, n.idempotency_key, n.fingerprint, n.client_number, n.service_id,
                    n.amount, n.traceparent, now() + make_interval(secs => $9)
             from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::bigint[], $8::text[],
                         $10::text[])
                  as n (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, traceparent,
                        recovered_key)
             where exists (select from services s where s.service_id = n.service_id and s.enabled)
               and not exists (
                   select from payments p where p.user_id = n.user_id and p.idempotency_key = n.recovered_key)
               and require_ownership($11, $12)
             on conflict do nothing
             returning payment_id, fingerprint, initiated_at, expires_at",
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
    let (ttl, recovered) = (ttl.as_secs_f64(), recovered_keys(payments.iter()));
    let rows = client
        .query(
            &statement,
            &[
                &users,
                &ids,
                &keys,
                &fingerprints,
                &numbers,
                &services,
                &amounts,
                &traces,
                &ttl,
                &recovered,
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot insert payments")?;
    let times = |row: &Row| CreationTimes { initiated_at: row.get(2), expires_at: row.get(3) };
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), times(row))).collect())
}

fn recovered_keys<'a>(payments: impl Iterator<Item = &'a NewPayment>) -> Vec<String> {
    payments.map(|payment| recovered_key(payment.payment_id)).collect()
}

/// A payment that was accepted before under a key.
struct EarlierPayment {
    fingerprint: Vec<u8>,
    payment: AcceptedPayment,
}

/// By user and idempotency key.
type ByKey = HashMap<(Uuid, String), EarlierPayment>;

async fn by_key(client: &Client, owned: &Ownership, payments: &[&NewPayment]) -> anyhow::Result<ByKey> {
    let statement = client
        .prepare_cached(
            // Each key is a row of its own, so that both columns of the index are compared. Should both be there, the payment
            // with the client's key comes last, and counts.
            "select n.user_id, n.idempotency_key, p.fingerprint, p.payment_id, p.client_number, p.service_id,
                    p.amount, p.initiated_at, p.expires_at
             from unnest($1::uuid[], $2::text[], $3::text[]) as n (user_id, idempotency_key, row_key)
             join payments p on p.user_id = n.user_id and p.idempotency_key = n.row_key
             where require_ownership($4, $5)
             order by n.row_key = n.idempotency_key",
        )
        .await?;
    let twice = || payments.iter().chain(payments);
    let users: Vec<Uuid> = twice().map(|p| p.user_id).collect();
    let keys: Vec<&str> = twice().map(|p| p.idempotency_key.as_str()).collect();
    let recovered = recovered_keys(payments.iter().copied());
    let row_keys: Vec<&str> = payments
        .iter()
        .map(|p| p.idempotency_key.as_str())
        .chain(recovered.iter().map(String::as_str))
        .collect();
    let rows = client
        .query(&statement, &[&users, &keys, &row_keys, &owned.buckets, &owned.epochs])
        .await
        .context("cannot look up idempotency keys")?;
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
