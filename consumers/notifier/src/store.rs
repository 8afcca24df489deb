//! All SQL of the notifier. Sets of rows come and go as JSON, which the statements take apart.
//!
//! * A batch of events is one insert, whatever its size; the primary key (payment, channel) makes it idempotent.
//! * Due rows are claimed by `for update skip locked`, so instances never wait for each other. A claim moves `due_at` to the
//!   end of its lease.
//! * A failure is recorded by compare-and-set on the attempt. A success is recorded whoever has claimed the row since.

mod operators;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use saga::consumer::BatchCounts;
use saga::parked::{self, Parked};
use saga::postgres::{Client, Pool};
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

pub use self::operators::{change, list, put_endpoint, statements};
use crate::render::Ended;
use crate::saga::Step;

async fn connect(pool: &Pool) -> Result<Client> {
    pool.get().await.context("no connection to the notifier database")
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Executes one statement by itself. `failed`: what it could not do.
async fn query(
    pool: &Pool,
    text: &str,
    parameters: Parameters<'_>,
    failed: &'static str,
) -> Result<Vec<Row>> {
    let client = connect(pool).await?;
    let statement = client.prepare_cached(text).await?;
    client.query(&statement, parameters).await.context(failed)
}

// A channel is notified of the payments that ended since it is there: reading the topic once more brings nothing new.
const INSERT: &str = "
    with inserted as (
        insert into notifications
              (payment_id, channel, user_id, version, event, service_id, amount, reason, ended_at)
        select e.payment_id, c.channel, e.user_id, e.version, e.event, e.service_id, e.amount, e.reason, e.ended_at
          from jsonb_to_recordset($1)
               as e (payment_id uuid, user_id uuid, version integer, event text, service_id text, amount bigint,
                     reason text, ended_at timestamptz)
         cross join lateral (
               select 'email' as channel from contacts
                where user_id = e.user_id and since <= e.ended_at
                union all
               select channel from endpoints where removed_at is null and since <= e.ended_at) c
        on conflict on constraint notifications_pkey do nothing
        returning payment_id)
    select count(distinct payment_id) from inserted";

/// Inserts the notifications of `events` and parks `unreadable`, in one transaction. An event counts as applied if it brought
/// a notification.
///
/// # Errors
/// When the database failed. Nothing was written then.
pub async fn insert(pool: &Pool, events: &[&Ended], unreadable: &[Parked]) -> Result<BatchCounts> {
    let mut client = connect(pool).await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let statement = transaction.prepare_cached(INSERT).await?;
    let row =
        transaction.query_one(&statement, &[&Json(events)]).await.context("cannot insert notifications")?;
    parked::insert(&transaction, unreadable).await?;
    transaction.commit().await.context("cannot commit")?;
    let applied = usize::try_from(row.get::<_, i64>(0))?;
    Ok(BatchCounts { applied, already: events.len() - applied, ..BatchCounts::default() })
}

/// The deliveries that an instance can begin.
pub struct Claim<'a> {
    /// Whether there is an SMTP server.
    pub email: bool,
    pub count: i64,
    pub per_channel: i32,
    /// Deliveries under way at this instance, by channel.
    pub busy: &'a HashMap<String, i32>,
}

/// A notification that this instance delivers now, as its row and those of its receiver say.
#[derive(Deserialize)]
pub struct Due {
    #[serde(flatten)]
    pub ended: Ended,
    pub channel: String,
    /// The number of this attempt, from 1.
    pub attempts: i32,
    /// `None` for a webhook, and when the address was erased.
    pub email: Option<String>,
    pub endpoint: Option<Endpoint>,
}

#[derive(Deserialize)]
pub struct Endpoint {
    pub url: String,
    pub secret: String,
}

/// The channels that may be claimed ($1: with e-mail; $2: per channel; $3: busy), each with how many more.
const CHANNELS: &str = "
    channels as materialized (
        select channel, $2::integer - coalesce(b.value::integer, 0) as free
          from (select 'email' as channel where $1::boolean
                 union all
                select channel from endpoints where disabled_at is null and removed_at is null) c
          left join jsonb_each_text($3) as b (channel, value) using (channel)
         where coalesce(b.value::integer, 0) < $2::integer)";

/// Claims due notifications until `lease` from now.
///
/// # Errors
/// When the database failed.
pub async fn claim(pool: &Pool, claim: &Claim<'_>, lease: Duration) -> Result<Vec<Due>> {
    // In random order, so that no channel is always the last to be served.
    let text = format!(
        "with {CHANNELS}, due as materialized (
            select n.payment_id, n.channel
              from (select * from channels order by random()) c
             cross join lateral (
                   select payment_id, channel from notifications
                    where channel = c.channel and delivered_at is null and failed_at is null and due_at <= now()
                    order by due_at limit c.free for update skip locked) n
             limit $4::bigint
        ), claimed as (
            update notifications n
               set due_at = now() + $5::double precision * interval '1 second', attempts = n.attempts + 1
              from due d where n.payment_id = d.payment_id and n.channel = d.channel
            returning n.*)
        select to_jsonb(n) || jsonb_build_object('email', c.email, 'endpoint', to_jsonb(e))
          from claimed n
          left join contacts c on n.channel = 'email' and c.user_id = n.user_id
          left join endpoints e on e.channel = n.channel"
    );
    let Claim { email, count, per_channel, busy } = claim;
    let parameters: Parameters<'_> = &[email, per_channel, &Json(busy), count, &lease.as_secs_f64()];
    let rows = query(pool, &text, parameters, "cannot claim notifications").await?;
    rows.iter().map(|row| Ok(row.try_get::<_, Json<Due>>(0)?.0)).collect()
}

/// How long until something is due that `claim` would take; `None` when nothing will be.
///
/// # Errors
/// When the database failed.
pub async fn next_due(pool: &Pool, claim: &Claim<'_>) -> Result<Option<Duration>> {
    let text = format!(
        "with {CHANNELS}
         select greatest(extract(epoch from min(n.due_at) - now()), 0)::double precision
           from channels c
          cross join lateral (
                select due_at from notifications
                 where channel = c.channel and delivered_at is null and failed_at is null
                 order by due_at limit 1) n
         having count(*) > 0"
    );
    let parameters: Parameters<'_> = &[&claim.email, &claim.per_channel, &Json(claim.busy)];
    let rows = query(pool, &text, parameters, "cannot look for the next notification").await?;
    Ok(rows.first().map(|row| Duration::try_from_secs_f64(row.get(0)).unwrap_or(Duration::MAX)))
}

/// The result of an attempt.
#[derive(Debug, Serialize)]
pub struct Outcome {
    payment_id: Uuid,
    channel: String,
    attempts: i32,
    /// The name of the step.
    step: &'static str,
    /// Seconds until the next attempt, if there is one.
    pause: f64,
    error: Option<String>,
}

impl Outcome {
    pub fn new(due: Due, step: Step, error: Option<String>) -> Self {
        let pause = match step {
            Step::Retry(pause) => pause.as_secs_f64(),
            // After `Disable` it is due as soon as the endpoint is enabled.
            Step::Delivered | Step::GiveUp | Step::Disable => 0.0,
        };
        let Due { ended, channel, attempts, .. } = due;
        Self { payment_id: ended.payment_id, channel, attempts, step: step.into(), pause, error }
    }
}

const RECORD: &str = "
    update notifications n
       set delivered_at = case when o.step = 'delivered' then now() end,
           failed_at = case when o.step = 'given_up' then now() end,
           due_at = now() + o.pause * interval '1 second',
           last_error = coalesce(o.error, n.last_error)
      from jsonb_to_recordset($1)
           as o (payment_id uuid, channel text, attempts integer, step text, pause double precision, error text)
     where n.payment_id = o.payment_id and n.channel = o.channel
       and n.delivered_at is null and (o.step = 'delivered' or n.attempts = o.attempts)";

// An endpoint is written only when it begins or ends to fail, or is disabled ($2: after so many seconds of failures).
const RECORD_ENDPOINTS: &str = "
    with o as (
        select channel, bool_or(step = 'delivered') as delivered, bool_or(step = 'disabled') as gone
          from jsonb_to_recordset($1) as a (channel text, step text) group by channel
    ), changed as (
        select e.channel, o.delivered and not o.gone as succeeds,
               case when o.gone then 'gone'
                    when not o.delivered and e.failing_since < now() - $2::double precision * interval '1 second'
                    then 'failing' end as disabled_reason
          from o join endpoints e using (channel)
         where e.disabled_at is null
    )
    update endpoints e
       set failing_since = case when not c.succeeds then coalesce(e.failing_since, now()) end,
           disabled_reason = c.disabled_reason,
           disabled_at = case when c.disabled_reason is not null then now() end
      from changed c
     where e.channel = c.channel and e.disabled_at is null
       and (c.disabled_reason is not null or c.succeeds = (e.failing_since is not null))
    returning case when e.disabled_at is not null then e.channel end";

/// Records the results of attempts, in one transaction. Returns the channels of the endpoints that it disabled.
///
/// # Errors
/// When the database failed. Nothing was written then.
pub async fn record(pool: &Pool, outcomes: &[Outcome], disable_after: Duration) -> Result<Vec<String>> {
    let mut client = connect(pool).await?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    let (notifications, endpoints) =
        (transaction.prepare_cached(RECORD).await?, transaction.prepare_cached(RECORD_ENDPOINTS).await?);
    transaction.execute(&notifications, &[&Json(outcomes)]).await.context("cannot record deliveries")?;
    let rows = transaction
        .query(&endpoints, &[&Json(outcomes), &disable_after.as_secs_f64()])
        .await
        .context("cannot record the state of endpoints")?;
    transaction.commit().await.context("cannot commit")?;
    Ok(rows.iter().filter_map(|row| row.get(0)).collect())
}
