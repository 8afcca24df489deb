//! Reads the rows of the databases: all of them, or those of some payments.
//!
//! * Each database is read in the snapshot of the caller's transaction. What is read of several shards is added up.
//! * The rows of some payments are reached by primary key, whatever else is there.
//! * Some hundred bytes a payment stay in memory: of the published columns only a fingerprint, which is enough to see
//!   whether an event equals its row.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use saga::contract;
use serde::Serialize;
use tokio_postgres::{GenericClient, Row, RowStream};
use uuid::Uuid;

use super::money;
use crate::audit::finding::Tally;
use crate::audit::statuses::{ChargeStatus, EntryKind, PaymentStatus};
use crate::owned_rows::OwnedRows;

/// The terms that every row of a payment must agree on. Texts are kept as fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub user_id: Uuid,
    pub amount: i64,
    pub service: u64,
    /// The ledger has none.
    pub client_number: Option<u64>,
}

impl Terms {
    /// The first of them that differs, for people.
    pub fn difference(&self, other: &Terms) -> Option<String> {
        let numbers = self.client_number.zip(other.client_number);
        if self.amount != other.amount {
            Some(format!("amount {}, not {}", other.amount, self.amount))
        } else if self.user_id != other.user_id {
            Some(format!("user {}, not {}", other.user_id, self.user_id))
        } else if self.service != other.service {
            Some("another service".to_owned())
        } else if numbers.is_some_and(|(ours, theirs)| ours != theirs) {
            Some("another client number".to_owned())
        } else {
            None
        }
    }
}

#[derive(Clone, Debug)]
pub struct Payment {
    pub amount: i64,
    pub terms: Terms,
    pub status: PaymentStatus,
    pub version: u32,
    pub initiated_at: jiff::Timestamp,
    pub ended_at: Option<jiff::Timestamp>,
    /// The version that the columns account for; an outcome that was unknown once may have added one.
    pub shown: u32,
    pub fingerprint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    pub amount: i64,
    pub terms: Terms,
    pub fingerprint: u64,
}

/// The ledger's entries of one payment, or a deposit.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    pub first: Option<Entry>,
    pub second: Option<Entry>,
}

#[derive(Clone, Debug)]
pub struct Charge {
    pub amount: i64,
    pub terms: Terms,
    pub status: ChargeStatus,
    pub version: u32,
    pub has_reason: bool,
    pub fingerprint: u64,
}

/// A message that a service has parked.
#[derive(Clone, Debug)]
pub struct ParkedMessage {
    /// The shard on which it is parked, where the service has several.
    pub shard: Option<String>,
    pub parked_id: String,
    pub reason: String,
    /// The row that the message is about, as its headers say.
    pub subject: Option<String>,
    /// An operator has retried or dismissed it.
    pub is_dealt_with: bool,
}

impl Charges {
    /// The amounts that a line of the gateway may have: the charge's, and those that operators have replaced.
    pub fn amounts(&self, payment_id: Uuid, amount: i64) -> Vec<i64> {
        let replaced = self.resolved.get(&payment_id).into_iter().flatten();
        replaced.copied().chain([amount]).collect()
    }
}

impl ParkedMessage {
    pub fn payment_id(&self) -> Option<Uuid> {
        self.subject.as_ref()?.parse().ok()
    }
}

#[derive(Debug, Default)]
pub struct Payments {
    pub rows: HashMap<Uuid, Payment>,
    /// One per (user, idempotency key).
    pub keys: Tally,
    /// Counts a second row of the same payment.
    pub duplicate_rows: Tally,
    /// Version and fingerprint of each service, by its id.
    pub services: HashMap<String, (u32, u64)>,
    pub parked: Vec<ParkedMessage>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub rows: HashMap<Uuid, Entries>,
    pub duplicate_rows: Tally,
    pub parked: Vec<ParkedMessage>,
}

#[derive(Debug, Default)]
pub struct Charges {
    pub rows: HashMap<Uuid, Charge>,
    pub duplicate_rows: Tally,
    pub parked: Vec<ParkedMessage>,
    /// The charges that operators have resolved, each with the amounts that it had before.
    pub resolved: HashMap<Uuid, Vec<i64>>,
}

/// A fingerprint of the published columns: equal for equal data, within one process.
pub fn fingerprint<T: Serialize>(data: &T) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(data)?.hash(&mut hasher);
    Ok(hasher.finish())
}

const PAYMENTS: &str = "
    select user_id, payment_id, client_number, service_id, amount, status, event, reason, version, traceparent,
           initiated_at, expires_at, authorized_at, completed_at, rejected_at, failed_at, cancelled_at,
           cancel_requested_at
      from {payments} p";

const KEYS: &str = "
    select count(*), count(*) filter (where n > 1),
           (array_agg(format('user %s has %s payments under the key %s', user_id, n, idempotency_key)
                      order by payment_id) filter (where n > 1))[1],
           min(payment_id) filter (where n > 1)
      from (select user_id, idempotency_key, count(*) as n, min(payment_id::text) as payment_id
              from {payments} p group by user_id, idempotency_key) k";

const LEDGER: &str = "
    select user_id, payment_id, phase, kind, amount, service_id, reason, traceparent, created_at
      from {ledger} l";

const CHARGES: &str = "
    select payment_id, user_id, client_number, service_id, amount, status, attempt, reason, version,
           provider_reference, traceparent, expires_at, created_at, decided_at
      from {charges} c";

/// Appended to [`PAYMENTS`] and to [`LEDGER`].
const OF_KEYS: &str =
    " join unnest($1::uuid[], $2::uuid[]) as k (user_id, payment_id) using (user_id, payment_id)";

/// The primary keys of some payments: a user and an id at each index.
#[derive(Clone, Debug, Default)]
pub struct PaymentKeys {
    pub users: Vec<Uuid>,
    pub ids: Vec<Uuid>,
}

const RESOLVED: &str = "
    select r.payment_id, (c.before ->> 'amount')::bigint
      from {resolutions} r join resolution_confirmations c using (resolution_id)
     where c.outcome = 'applied'";

/// Adds the payments of a database that count, its services, and all that is parked there.
pub async fn payments(client: &impl GenericClient, owned: &OwnedRows, read: &mut Payments) -> Result<()> {
    let keys = money::tally(client, owned, KEYS).await.context("S3")?;
    read.keys = std::mem::take(&mut read.keys).and(&keys);
    for (id, service) in services(client).await? {
        // Each shard has all services. Where an operator has not changed each, the last version is the one that is emitted.
        let known = read.services.entry(id).or_insert(service);
        *known = if service.0 > known.0 { service } else { *known };
    }
    read.parked.extend(parked_and_acts(client, owned).await?);
    let statement = owned.statement(PAYMENTS);
    let rows = client.query_raw(&statement, std::iter::empty::<i32>()).await.context("payments")?;
    collect_payments(rows, read).await
}

/// Adds these payments only, which this database owns, and neither services nor parked messages.
pub async fn payments_of(client: &impl GenericClient, keys: &PaymentKeys, read: &mut Payments) -> Result<()> {
    let statement = format!("{}{OF_KEYS}", OwnedRows::all().statement(PAYMENTS));
    let rows = client.query_raw(statement.as_str(), [&keys.users, &keys.ids]).await.context("payments")?;
    collect_payments(rows, read).await
}

async fn collect_payments(rows: RowStream, read: &mut Payments) -> Result<()> {
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.context("payments")? {
        let (payment_id, payment) = payment(&row)?;
        read.duplicate_rows.count();
        if read.rows.insert(payment_id, payment).is_some() {
            read.duplicate_rows.violate(payment_id, || "two rows in payments".to_owned());
        }
    }
    Ok(())
}

async fn services(client: &impl GenericClient) -> Result<HashMap<String, (u32, u64)>> {
    let query = "select service_id, name, enabled, event, version from services";
    let rows = client.query(query, &[]).await.context("services")?;
    let service = |row: &Row| {
        let data = contract::Service {
            service_id: row.get(0),
            name: row.get(1),
            enabled: row.get(2),
            event: row.get(3),
            version: row.get(4),
        };
        let fingerprint = fingerprint(&data)?;
        Ok((data.service_id, (data.version.unsigned_abs(), fingerprint)))
    };
    rows.iter().map(service).collect()
}

fn payment(row: &Row) -> Result<(Uuid, Payment)> {
    let data = contract::Payment {
        user_id: row.get(0),
        payment_id: row.get(1),
        client_number: row.get(2),
        service_id: row.get(3),
        amount: row.get(4),
        status: row.get(5),
        event: row.get(6),
        reason: row.get(7),
        version: row.get(8),
        traceparent: row.get(9),
        initiated_at: row.get(10),
        expires_at: row.get(11),
        authorized_at: row.get(12),
        completed_at: row.get(13),
        rejected_at: row.get(14),
        failed_at: row.get(15),
        cancelled_at: row.get(16),
        cancel_requested_at: row.get(17),
    };
    let status =
        PaymentStatus::parse(&data.status).with_context(|| format!("payment status {}", data.status))?;
    let transitions = [data.authorized_at.is_some(), status.has_ended(), data.cancel_requested_at.is_some()];
    let terms = Terms {
        user_id: data.user_id,
        amount: data.amount,
        service: fingerprint(&data.service_id)?,
        client_number: Some(fingerprint(&data.client_number)?),
    };
    let payment = Payment {
        amount: data.amount,
        terms,
        status,
        version: data.version.unsigned_abs(),
        initiated_at: data.initiated_at,
        ended_at: data.ended_at(),
        shown: 1 + transitions.map(u32::from).iter().sum::<u32>(),
        fingerprint: fingerprint(&data)?,
    };
    Ok((data.payment_id, payment))
}

/// Adds the entries of a database that count, and all that is parked there.
pub async fn ledger(client: &impl GenericClient, owned: &OwnedRows, read: &mut Ledger) -> Result<()> {
    read.parked.extend(parked_and_acts(client, owned).await?);
    let statement = owned.statement(LEDGER);
    let rows = client.query_raw(&statement, std::iter::empty::<i32>()).await.context("ledger")?;
    collect_ledger(rows, read).await
}

/// Adds the entries of these payments or deposits only, whose users this database owns, and no parked messages.
pub async fn ledger_of(client: &impl GenericClient, keys: &PaymentKeys, read: &mut Ledger) -> Result<()> {
    let statement = format!("{}{OF_KEYS}", OwnedRows::all().statement(LEDGER));
    let rows = client.query_raw(statement.as_str(), [&keys.users, &keys.ids]).await.context("ledger")?;
    collect_ledger(rows, read).await
}

async fn collect_ledger(rows: RowStream, read: &mut Ledger) -> Result<()> {
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.context("ledger")? {
        let data = contract::LedgerEntry {
            user_id: row.get(0),
            payment_id: row.get(1),
            phase: row.get(2),
            kind: row.get(3),
            amount: row.get(4),
            service_id: row.get(5),
            reason: row.get(6),
            traceparent: row.get(7),
            created_at: row.get(8),
        };
        let kind = EntryKind::parse(&data.kind).with_context(|| format!("ledger kind {}", data.kind))?;
        let terms = Terms {
            user_id: data.user_id,
            amount: data.amount,
            service: fingerprint(&data.service_id.as_deref().unwrap_or_default())?,
            client_number: None,
        };
        let entry = Entry { kind, amount: data.amount, terms, fingerprint: fingerprint(&data)? };
        let entries = read.rows.entry(data.payment_id).or_default();
        let phase = if data.phase == 1 { &mut entries.first } else { &mut entries.second };
        read.duplicate_rows.count();
        if phase.replace(entry).is_some() {
            let what = || format!("two rows of phase {} in ledger", data.phase);
            read.duplicate_rows.violate(data.payment_id, what);
        }
    }
    Ok(())
}

/// Adds the charges of a database that count, with what operators have resolved of them, and all that is parked there.
pub async fn charges(client: &impl GenericClient, owned: &OwnedRows, read: &mut Charges) -> Result<()> {
    read.parked.extend(parked_and_acts(client, owned).await?);
    for row in client.query(&owned.statement(RESOLVED), &[]).await.context("resolutions")? {
        let before: Option<i64> = row.get(1);
        read.resolved.entry(row.get(0)).or_default().extend(before);
    }
    let statement = owned.statement(CHARGES);
    let rows = client.query_raw(&statement, std::iter::empty::<i32>()).await.context("charges")?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.context("charges")? {
        let (payment_id, charge) = charge(&row)?;
        read.duplicate_rows.count();
        if read.rows.insert(payment_id, charge).is_some() {
            read.duplicate_rows.violate(payment_id, || "two rows in charges".to_owned());
        }
    }
    Ok(())
}

/// Reads these charges into `read`, as they are by now.
pub async fn charges_again(
    client: &impl GenericClient,
    owned: &OwnedRows,
    ids: &[Uuid],
    read: &mut Charges,
) -> Result<()> {
    let statement = format!("{} where payment_id = any($1)", owned.statement(CHARGES));
    let rows = client.query_raw(statement.as_str(), [ids]).await.context("charges")?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.context("charges")? {
        let (payment_id, charge) = charge(&row)?;
        read.rows.insert(payment_id, charge);
    }
    Ok(())
}

/// Adds these charges only, with what operators have resolved of them, and no parked messages.
pub async fn charges_of(
    client: &impl GenericClient,
    owned: &OwnedRows,
    ids: &[Uuid],
    read: &mut Charges,
) -> Result<()> {
    charges_again(client, owned, ids, read).await?;
    let statement = format!("{} and r.payment_id = any($1)", owned.statement(RESOLVED));
    for row in client.query(statement.as_str(), &[&ids]).await.context("resolutions")? {
        let before: Option<i64> = row.get(1);
        read.resolved.entry(row.get(0)).or_default().extend(before);
    }
    Ok(())
}

/// The payments that a database has any row of in these buckets, whether or not it owns them. `table` is one of ours.
pub async fn ids_of_buckets(client: &impl GenericClient, table: &str, buckets: &[i16]) -> Result<Vec<Uuid>> {
    let statement = format!("select payment_id from {table} where bucket(user_id) = any($1)");
    let rows = client.query(&statement, &[&buckets]).await.with_context(|| table.to_owned())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn charge(row: &Row) -> Result<(Uuid, Charge)> {
    let data = contract::ChargeResult {
        payment_id: row.get(0),
        user_id: row.get(1),
        client_number: row.get(2),
        service_id: row.get(3),
        amount: row.get(4),
        status: row.get(5),
        attempt: row.get(6),
        reason: row.get(7),
        version: row.get(8),
        provider_reference: row.get(9),
        traceparent: row.get(10),
        expires_at: row.get(11),
        created_at: row.get(12),
        decided_at: row.get(13),
    };
    let terms = Terms {
        user_id: data.user_id,
        amount: data.amount,
        service: fingerprint(&data.service_id)?,
        client_number: Some(fingerprint(&data.client_number)?),
    };
    let charge = Charge {
        amount: data.amount,
        terms,
        status: ChargeStatus::parse(&data.status)
            .with_context(|| format!("charge status {}", data.status))?,
        version: data.version.unsigned_abs(),
        has_reason: data.reason.is_some(),
        fingerprint: fingerprint(&data)?,
    };
    Ok((data.payment_id, charge))
}

const PARKED: &str = "
    select parked_id, reason, headers ->> 'ce_subject', false from parked order by parked_at, parked_id";

const PARKED_AND_ACTS: &str = "
    select parked_id, reason, headers ->> 'ce_subject',
           exists (select from parked_acts a where a.parked_id = p.parked_id)
      from parked p order by parked_at, parked_id";

/// The messages that a subscriber has parked. Operators have no acts there.
pub async fn parked(client: &impl GenericClient) -> Result<Vec<ParkedMessage>> {
    parked_by(client, None, PARKED).await
}

/// The messages that a service of the saga has parked in one database. They stay where they are when buckets move.
async fn parked_and_acts(client: &impl GenericClient, owned: &OwnedRows) -> Result<Vec<ParkedMessage>> {
    parked_by(client, owned.shard(), PARKED_AND_ACTS).await
}

async fn parked_by(
    client: &impl GenericClient,
    shard: Option<&str>,
    query: &str,
) -> Result<Vec<ParkedMessage>> {
    let rows = client.query(query, &[]).await.context("parked")?;
    let parked = |row: &Row| ParkedMessage {
        shard: shard.map(str::to_owned),
        parked_id: row.get(0),
        reason: row.get(1),
        subject: row.get(2),
        is_dealt_with: row.get(3),
    };
    Ok(rows.iter().map(parked).collect())
}
