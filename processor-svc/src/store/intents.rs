//! Inserts jobs as intents.
//!
//! * The intents of a batch are one statement.
//! * A job whose payment has a row already is a duplicate, or a conflict if the charges differ.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail};
use saga::parked::{self, Parked};
use saga::postgres::{Transaction, confirm_visible};
use saga::shards::Ownership;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Store, charge, column, millis, state};
use crate::cause::Cause;
use crate::charge::Charge;
use crate::saga::State;
use crate::work::Job;

/// The outcome of inserting a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The intent is committed, and attempt 1 is ours: call.
    Calling,
    /// The row waits, since it cannot be called now. Nothing was attempted.
    Waiting,
    /// The deadline had passed by the clock of the database. The charge ended without a call.
    Expired,
    /// The row existed with the same charge: a duplicate message.
    Already,
    /// The row existed with a different charge.
    Conflict,
}

/// A job to insert.
#[derive(Clone, Debug)]
pub struct Intent<'a> {
    pub job: &'a Job,
    /// The reason why it is not called now. Without one the row is the intent to call.
    pub held_back: Option<HoldBack>,
}

/// The reason not to call a charge now.
#[derive(Clone, Debug)]
pub struct HoldBack {
    pub cause: Cause,
    /// The pause until the charge is called.
    pub pause: Duration,
}

const INSERT: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
                         status, reason, lease_until, decided_at)
    select payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
           case when late then 'expired' when held_back is not null then 'waiting' else 'calling' end,
           case when late then 'deadline_passed' else held_back end,
           now() + coalesce(pause_ms, $8::int8) * interval '1 millisecond',
           case when late then now() end
      from (select *, coalesce(expires_at <= now(), false) as late
              from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::int8[], $6::text[], $7::timestamptz[],
                          $9::text[], $10::int8[])
                as job (payment_id, user_id, client_number, service_id, amount, traceparent, expires_at,
                        held_back, pause_ms)) job
     where require_ownership($11, $12)
    on conflict do nothing
    returning payment_id, status, attempt, exposed";

const READ_CHARGES: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent from charges
     where payment_id = any($1) and require_ownership($2, $3)";

impl Store {
    /// Commits the intents to call `jobs`, as [`Store::admit_intents`] does.
    pub async fn admit(&self, jobs: &[&Job], unreadable: &[Parked]) -> anyhow::Result<Vec<Admission>> {
        let intents: Vec<Intent<'_>> = jobs.iter().map(|&job| Intent { job, held_back: None }).collect();
        self.admit_intents(&intents, unreadable).await
    }

    /// Commits intents (of distinct payments) and parks `unreadable`, all or nothing. Returns an outcome per intent, in
    /// order.
    pub async fn admit_intents(
        &self,
        intents: &[Intent<'_>],
        unreadable: &[Parked],
    ) -> anyhow::Result<Vec<Admission>> {
        let owned = self.owned(&column(intents, |i| i.job.charge.user_id)).await?;
        self.heeded(&owned, admit(&owned, intents, unreadable, self.lease).await).await
    }

    /// As [`Store::admit_intents`], in a transaction of the caller, who commits it.
    pub async fn admit_in(
        &self,
        transaction: &Transaction<'_>,
        intents: &[Intent<'_>],
    ) -> anyhow::Result<Vec<Admission>> {
        let owned = self.owned(&column(intents, |i| i.job.charge.user_id)).await?;
        let admitted = async {
            let inserted = insert(transaction, &owned, intents, self.lease).await?;
            answers(transaction, &owned, intents, &inserted).await
        };
        self.heeded(&owned, admitted.await).await
    }
}

async fn admit(
    owned: &Ownership,
    intents: &[Intent<'_>],
    unreadable: &[Parked],
    lease: Duration,
) -> anyhow::Result<Vec<Admission>> {
    let mut client = owned.client().await?;
    let inserted = if unreadable.is_empty() {
        insert(&client, owned, intents, lease).await?
    } else {
        let transaction = client.transaction().await.context("cannot begin a transaction")?;
        parked::insert(&transaction, unreadable).await?;
        let inserted = insert(&transaction, owned, intents, lease).await?;
        transaction.commit().await.context("cannot commit")?;
        inserted
    };
    let answers = answers(&client, owned, intents, &inserted).await?;
    if inserted.len() < intents.len() {
        confirm_visible(&client).await?;
    }
    Ok(answers)
}

/// The outcome of each intent, in order. A later statement sees the rows that the insert conflicted with. Their immutable
/// columns show whether the message is a duplicate.
async fn answers(
    client: &impl deadpool_postgres::GenericClient,
    owned: &Ownership,
    intents: &[Intent<'_>],
    inserted: &HashMap<Uuid, Admission>,
) -> anyhow::Result<Vec<Admission>> {
    let conflicting: Vec<Uuid> =
        intents.iter().map(|i| i.job.charge.payment_id).filter(|id| !inserted.contains_key(id)).collect();
    let mut existing = HashMap::new();
    if !conflicting.is_empty() {
        let read = client.prepare_cached(READ_CHARGES).await?;
        let rows = client.query(&read, &[&conflicting, &owned.buckets, &owned.epochs]).await;
        let rows = rows.context("cannot read charges")?;
        existing.extend(rows.iter().map(|row| (row.get("payment_id"), charge(row))));
    }
    intents.iter().map(|intent| admitted(intent.job, inserted, &existing)).collect()
}

async fn insert(
    client: &impl deadpool_postgres::GenericClient,
    owned: &Ownership,
    intents: &[Intent<'_>],
    lease: Duration,
) -> anyhow::Result<HashMap<Uuid, Admission>> {
    if intents.is_empty() {
        return Ok(HashMap::new());
    }
    let insert = client.prepare_cached(INSERT).await?;
    let rows = client
        .query(
            &insert,
            &[
                &column(intents, |i| i.job.charge.payment_id),
                &column(intents, |i| i.job.charge.user_id),
                &column(intents, |i| i.job.charge.client_number.as_str()),
                &column(intents, |i| i.job.charge.service_id.as_str()),
                &column(intents, |i| i.job.charge.amount),
                &column(intents, |i| i.job.charge.traceparent.as_deref()),
                &column(intents, |i| i.job.expires_at),
                &millis(lease),
                &column(intents, |i| i.held_back.as_ref().map(|held_back| held_back.cause.to_string())),
                &column(intents, |i| i.held_back.as_ref().map(|held_back| millis(held_back.pause))),
                &owned.buckets,
                &owned.epochs,
            ],
        )
        .await
        .context("cannot insert intents")?;
    let answer = |row: &Row| match state(row)? {
        State::Calling { .. } => Ok(Admission::Calling),
        State::Waiting { .. } => Ok(Admission::Waiting),
        State::Expired => Ok(Admission::Expired),
        other => bail!("a charge was inserted in the impossible state {other:?}; this is a defect"),
    };
    rows.iter().map(|row| Ok((row.get("payment_id"), answer(row)?))).collect()
}

fn admitted(
    job: &Job,
    inserted: &HashMap<Uuid, Admission>,
    existing: &HashMap<Uuid, Charge>,
) -> anyhow::Result<Admission> {
    let id = job.charge.payment_id;
    match (inserted.get(&id), existing.get(&id)) {
        (Some(inserted), _) => Ok(*inserted),
        (None, Some(row)) => {
            Ok(if job.charge.is_same(row) { Admission::Already } else { Admission::Conflict })
        }
        (None, None) => bail!(
            "charge {id} was neither inserted nor found; it was deleted meanwhile, and its message is tried again"
        ),
    }
}
