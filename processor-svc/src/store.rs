//! All SQL of processor-svc.
//!
//! * A batch is one statement, or one transaction when messages are parked, whatever its size.
//! * Rows change by compare-and-set on (payment, attempt, status): a transition is written only if the row is still in the
//!   state from which it was decided. The caller decides the others again.
//! * [`sweep`] has the SQL of the sweeper, [`cancel`] that of requests to cancel.

pub mod cancel;
pub mod sweep;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use saga::parked::{self, Parked};
use saga::postgres::{Client, Pool};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::cause::Cause;
use crate::charge::Charge;
use crate::saga::{State, To};
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
    pub held_back: Option<(Cause, Duration)>,
}

/// One transition to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub payment_id: Uuid,
    /// The state it was decided from.
    pub from: State,
    pub to: To,
    /// The pause until the next call of a waiting charge, or until the first inquiry about an unknown one.
    pub pause: Duration,
}

#[derive(Clone)]
pub struct Store {
    pool: Pool,
    lease: Duration,
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
    on conflict do nothing
    returning payment_id, status, attempt, exposed";

const READ_CHARGES: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent from charges
     where payment_id = any($1)";

const READ_ENDED: &str = "
    select payment_id, user_id, client_number, service_id, amount, traceparent from charges
     where payment_id = any($1) and status in ('succeeded', 'declined', 'expired', 'cancelled')";

const READ_STATES: &str = "
    select payment_id, status, attempt, exposed from charges where payment_id = any($1)";

// A first call after a pause is bound by the deadline, as a first call without one is.
const APPLY: &str = "
    with moved as (
        update charges c
           set status = w.status,
               attempt = w.attempt,
               exposed = c.exposed or w.status = 'unknown',
               reason = w.reason,
               version = c.version + 1,
               provider_reference = w.provider_reference,
               lease_until = coalesce(now() + w.lease_ms * interval '1 millisecond', c.lease_until),
               decided_at = case when w.status in ('succeeded', 'declined', 'expired', 'cancelled') then now() end
          from unnest($1::uuid[], $2::text[], $3::int4[], $4::text[], $5::int4[], $6::text[], $7::text[],
                      $8::int8[], $9::text[], $10::int8[])
               as w (payment_id, from_status, from_attempt, status, attempt, reason, provider_reference,
                     lease_ms, noted_kind, next_ms)
         where c.payment_id = w.payment_id and c.status = w.from_status and c.attempt = w.from_attempt
           and (w.status <> 'calling' or c.exposed or c.expires_at > now() or c.expires_at is null)
        returning c.payment_id, c.user_id, w.attempt, w.status, w.reason, w.noted_kind, w.next_ms
    ), noted as (
        insert into charge_attempts (payment_id, user_id, attempt, seq, kind, outcome, detail, next_at)
        select payment_id, user_id, attempt, 1, noted_kind,
               case status when 'waiting' then 'not_sent' else 'unknown' end, reason,
               now() + next_ms * interval '1 millisecond'
          from moved where noted_kind is not null
        on conflict do nothing
    )
    select payment_id from moved";

const IDENTITY: &str = "
    select system.system_identifier::text || '/' || checkpoint.timeline_id::text || '/' || d.oid::text
      from pg_control_system() system, pg_control_checkpoint() checkpoint, pg_database d
     where d.datname = current_database()";

impl Store {
    /// `lease`: how long a call belongs to its process.
    pub fn new(pool: Pool, lease: Duration) -> Store {
        Store { pool, lease }
    }

    pub async fn reachable(&self) -> Result<(), String> {
        saga::postgres::reachable(&self.pool).await
    }

    async fn client(&self) -> anyhow::Result<Client> {
        self.pool.get().await.context("no connection to the processor database")
    }

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
        let mut client = self.client().await?;
        let inserted = if unreadable.is_empty() {
            insert(&client, intents, self.lease).await?
        } else {
            let transaction = client.transaction().await.context("begin")?;
            parked::insert(&transaction, unreadable).await?;
            let inserted = insert(&transaction, intents, self.lease).await?;
            transaction.commit().await.context("commit")?;
            inserted
        };
        // A later statement sees the rows that the insert conflicted with. Their immutable columns show whether the
        // message is a duplicate.
        let conflicting: Vec<Uuid> =
            intents.iter().map(|i| i.job.charge.payment_id).filter(|id| !inserted.contains_key(id)).collect();
        let mut existing = HashMap::new();
        if !conflicting.is_empty() {
            let read = client.prepare_cached(READ_CHARGES).await?;
            let rows = client.query(&read, &[&conflicting]).await.context("read charges")?;
            existing.extend(rows.iter().map(|row| (row.get("payment_id"), charge(row))));
        }
        intents.iter().map(|intent| admitted(intent.job, &inserted, &existing)).collect()
    }

    /// Parks messages.
    pub async fn park(&self, messages: &[Parked]) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.context("begin")?;
        parked::insert(&transaction, messages).await?;
        transaction.commit().await.context("commit")
    }

    /// Writes transitions (of distinct payments); returns those that applied. The rows of the others have left the state
    /// from which they were decided, or are past their deadline.
    pub async fn apply(&self, writes: &[Write]) -> anyhow::Result<HashSet<Uuid>> {
        if writes.is_empty() {
            return Ok(HashSet::new());
        }
        transit(&self.client().await?, writes, self.lease).await
    }

    /// The current states of charges. Charges without a row are left out.
    pub async fn states(&self, payments: &[Uuid]) -> anyhow::Result<HashMap<Uuid, State>> {
        if payments.is_empty() {
            return Ok(HashMap::new());
        }
        let client = self.client().await?;
        let read = client.prepare_cached(READ_STATES).await?;
        let rows = client.query(&read, &[&payments]).await.context("read states")?;
        rows.iter().map(|row| Ok((row.get("payment_id"), state(row)?))).collect()
    }

    /// The payments of those of these charges that have ended. A row with a different charge does not count.
    pub async fn ended(&self, charges: &[&Charge]) -> anyhow::Result<HashSet<Uuid>> {
        let client = self.client().await?;
        let ids: Vec<Uuid> = charges.iter().map(|charge| charge.payment_id).collect();
        let read = client.prepare_cached(READ_ENDED).await?;
        let rows = client.query(&read, &[&ids]).await.context("read ended charges")?;
        let existing: HashMap<Uuid, Charge> =
            rows.iter().map(|row| (row.get("payment_id"), charge(row))).collect();
        let same =
            |charge: &&&Charge| existing.get(&charge.payment_id).is_some_and(|row| row.is_same(charge));
        Ok(charges.iter().filter(same).map(|charge| charge.payment_id).collect())
    }

    /// The identity of the database and its history: cluster, timeline (a restore or failover starts a new one), database.
    pub async fn identity(&self) -> anyhow::Result<String> {
        let client = self.client().await?;
        Ok(client.query_one(IDENTITY, &[]).await.context("database identity")?.get(0))
    }
}

/// One row of [`APPLY`].
struct Values<'a> {
    payment_id: Uuid,
    from: (&'static str, i32),
    to: (&'static str, i32),
    reason: Option<Cow<'a, str>>,
    provider_reference: Option<&'a str>,
    lease_ms: Option<i64>,
    noted_kind: Option<&'static str>,
    next_ms: Option<i64>,
}

/// Writes transitions; returns those that applied.
async fn transit(
    client: &impl deadpool_postgres::GenericClient,
    writes: &[Write],
    lease: Duration,
) -> anyhow::Result<HashSet<Uuid>> {
    if writes.is_empty() {
        return Ok(HashSet::new());
    }
    let mut rows: Vec<Values<'_>> = writes.iter().map(|write| values(write, lease)).collect();
    // One order everywhere, so that two batches with common rows seldom deadlock.
    rows.sort_unstable_by_key(|row| row.payment_id);
    let apply = client.prepare_cached(APPLY).await?;
    let moved = client
        .query(
            &apply,
            &[
                &column(&rows, |r| r.payment_id),
                &column(&rows, |r| r.from.0),
                &column(&rows, |r| r.from.1),
                &column(&rows, |r| r.to.0),
                &column(&rows, |r| r.to.1),
                &column(&rows, |r| r.reason.as_deref()),
                &column(&rows, |r| r.provider_reference),
                &column(&rows, |r| r.lease_ms),
                &column(&rows, |r| r.noted_kind),
                &column(&rows, |r| r.next_ms),
            ],
        )
        .await
        .context("write transitions")?;
    Ok(moved.iter().map(|row| row.get(0)).collect())
}

fn values(write: &Write, lease: Duration) -> Values<'_> {
    let from = match write.from {
        State::Waiting { attempt } => ("waiting", attempt),
        State::Calling { attempt, .. } => ("calling", attempt),
        State::Unknown { attempt } => ("unknown", attempt),
        // These states are never overwritten: the guard of the statement never matches.
        State::Absent | State::Succeeded | State::Declined | State::Expired | State::Cancelled => ("", 0),
    };
    let pause = millis(write.pause);
    let mut values = Values {
        payment_id: write.payment_id,
        from,
        to: ("", from.1),
        reason: None,
        provider_reference: None,
        lease_ms: None,
        noted_kind: None,
        next_ms: None,
    };
    match &write.to {
        To::Waiting { attempt, why } => {
            values.to = ("waiting", *attempt);
            values.reason = Some(why.to_string().into());
            values.lease_ms = Some(pause);
            values.noted_kind = Some("charge");
        }
        To::Calling { attempt } => {
            values.to = ("calling", *attempt);
            values.lease_ms = Some(millis(lease));
        }
        To::Unknown { attempt, why } => {
            values.to = ("unknown", *attempt);
            values.reason = Some(why.to_string().into());
            values.noted_kind = Some(if *why == Cause::LeaseLapsed { "sweep" } else { "charge" });
            values.next_ms = Some(pause);
        }
        To::Succeeded { provider_reference } => {
            values.to.0 = "succeeded";
            values.provider_reference = Some(provider_reference);
        }
        To::Declined { code } => {
            values.to.0 = "declined";
            values.reason = Some(code.as_str().into());
        }
        To::Expired => {
            values.to.0 = "expired";
            values.reason = Some("deadline_passed".into());
        }
        To::Cancelled => {
            values.to.0 = "cancelled";
            values.reason = Some("cancel_requested".into());
        }
    }
    values
}

async fn insert(
    client: &impl deadpool_postgres::GenericClient,
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
                &column(intents, |i| i.held_back.as_ref().map(|(cause, _)| cause.to_string())),
                &column(intents, |i| i.held_back.as_ref().map(|(_, pause)| millis(*pause))),
            ],
        )
        .await
        .context("insert intents")?;
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

fn charge(row: &Row) -> Charge {
    Charge {
        payment_id: row.get("payment_id"),
        user_id: row.get("user_id"),
        client_number: row.get("client_number"),
        service_id: row.get("service_id"),
        amount: row.get("amount"),
        traceparent: row.get("traceparent"),
    }
}

fn state(row: &Row) -> anyhow::Result<State> {
    let (attempt, exposed) = (row.get("attempt"), row.get("exposed"));
    Ok(match row.get("status") {
        "waiting" => State::Waiting { attempt },
        "calling" => State::Calling { attempt, exposed },
        "unknown" => State::Unknown { attempt },
        "succeeded" => State::Succeeded,
        "declined" => State::Declined,
        "expired" => State::Expired,
        "cancelled" => State::Cancelled,
        other => bail!(
            "a charge has the unknown status {other:?}; database and service versions do not fit each other"
        ),
    })
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
