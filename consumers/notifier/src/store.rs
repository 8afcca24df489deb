//! All SQL of the notifier. Sets of rows come and go as JSON, which the statements take apart.
//!
//! * A batch of events is one insert, whatever its size; the primary key (payment, channel) makes it idempotent.
//! * Due rows are claimed by `for update skip locked`, so instances never wait for each other. A claim moves `due_at`
//!   to the end of its lease.
//! * A failure is recorded by compare-and-set on the attempt, and not on a row that was given up meanwhile. A success
//!   is recorded whoever has claimed the row since.
//! * An endpoint that was removed ends with it: whatever becomes of its rows, an endpoint that takes its name is only
//!   given payments that ended since it is there itself.

mod operators;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use saga::consumer::BatchCounts;
use saga::parked::{self, Parked};
use saga::postgres::{Parameters, Pool, query};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Json;
use uuid::Uuid;

pub use self::operators::{PutEndpoint, give_up_removed, put_endpoint, statements};
use crate::render::PaymentEnd;

// A channel is notified of the payments that ended since it is there: reading the topic once more brings nothing new.
const INSERT: &str = "
    with inserted as (
        insert into notifications
              (payment_id, channel, user_id, version, event, service_id, amount, reason, ended_at)
        -- In one order, so that instances that insert the same rows wait for each other in no circle.
        select e.payment_id, c.channel, e.user_id, e.version, e.status, e.service_id, e.amount, e.reason, e.ended_at
          from jsonb_to_recordset($1)
               as e (payment_id uuid, user_id uuid, version integer, status text, service_id text, amount bigint,
                     reason text, ended_at timestamptz)
         cross join lateral (
               select 'email' as channel from contacts
                where user_id = e.user_id and since <= e.ended_at
                union all
               select channel from endpoints where removed_at is null and since <= e.ended_at) c
         order by e.payment_id, c.channel
        on conflict on constraint notifications_pkey do nothing
        returning payment_id)
    select count(distinct payment_id) from inserted";

/// Inserts the notifications of `events` and parks `unreadable`, in one transaction. An event counts as applied if it
/// brought a notification.
///
/// # Errors
/// When the database failed. Nothing was written then.
pub async fn insert(pool: &Pool, events: &[&PaymentEnd], unreadable: &[Parked]) -> Result<BatchCounts> {
    let mut client = pool.get().await.context("no connection to the database")?;
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
    /// How many of `count` are kept for channels that have nothing under way and do not fail.
    pub kept: i64,
    pub per_channel: i32,
    /// Deliveries under way at this instance, by channel.
    pub busy: &'a HashMap<String, i32>,
    /// How long an e-mail belongs to the instance that claimed it, and how long a webhook does.
    pub leases: [Duration; 2],
}

/// A notification that this instance delivers now, as its row and those of its receiver say.
#[derive(Deserialize)]
pub struct ClaimedNotification {
    #[serde(flatten)]
    pub end: PaymentEnd,
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
    /// The result of this attempt is one of this revision.
    pub revision: i32,
    /// The present one, and while it is being rotated the previous one.
    pub secrets: Vec<String>,
}

/// The channels that may be claimed ($1: with e-mail; $2: per channel; $3: busy; $4: count; $5: kept), each with how
/// many more. An endpoint that fails has a share of one: it may hang in each of them.
const CHANNELS: &str = "
    channels as materialized (
        select channel, since, busy, fails, share - busy as free
          from (select c.channel, c.since, c.fails, coalesce(b.value::integer, 0) as busy,
                       case when c.fails then 1 else $2::integer end as share
                  from (select 'email' as channel, timestamptz '-infinity' as since, false as fails
                         where $1::boolean
                         union all
                        select channel, since, failing_since is not null
                          from endpoints where disabled_at is null and removed_at is null) c
                  left join jsonb_each_text($3) as b (channel, value) using (channel)) c
         where busy < share and (busy = 0 and not fails or $4::bigint > $5::bigint))";

/// Claims due notifications until their lease ends, counted from now.
///
/// # Errors
/// When the database failed.
pub async fn claim(pool: &Pool, claim: &Claim<'_>) -> Result<Vec<ClaimedNotification>> {
    // Channels take turns, in random order: those that do not fail and have nothing under way are first.
    let text = format!(
        "with {CHANNELS}, due as materialized (
            select n.payment_id, n.channel, c.fails,
                   c.busy + row_number() over (partition by c.channel order by n.due_at) as turn
              from channels c
             cross join lateral (
                   select payment_id, channel, due_at from notifications
                    where channel = c.channel and ended_at >= c.since
                      and delivered_at is null and failed_at is null and due_at <= now()
                    order by due_at limit least(c.free, $4::bigint) for update skip locked) n
        ), chosen as (
            select payment_id, channel
              from (select *, row_number() over (order by first desc, turn, random()) as place
                      from (select *, turn = 1 and not fails as first from due) d) d
             where place <= $4::bigint - case when first then 0 else $5::bigint end
        ), claimed as (
            update notifications n
               set due_at = now() + case n.channel when 'email' then $6::double precision
                                                   else $7::double precision end * interval '1 second',
                   attempts = n.attempts + 1
              from chosen c where n.payment_id = c.payment_id and n.channel = c.channel
            returning n.*)
        select to_jsonb(n) || jsonb_build_object('email', c.email, 'endpoint', case when e.channel is not null then
                   jsonb_build_object('url', e.url, 'revision', e.revision, 'secrets',
                       jsonb_build_array(e.secret) || case when e.previous_until > now()
                                                           then jsonb_build_array(e.previous_secret)
                                                           else '[]' end) end)
          from claimed n
          left join contacts c on n.channel = 'email' and c.user_id = n.user_id
          left join endpoints e on e.channel = n.channel"
    );
    let Claim { email, count, kept, per_channel, busy, leases } = claim;
    let [of_email, of_webhook] = leases.map(|lease| lease.as_secs_f64());
    let parameters: Parameters<'_> = &[email, per_channel, &Json(busy), count, kept, &of_email, &of_webhook];
    let rows = query(pool, &text, parameters, "cannot claim notifications").await?;
    rows.iter().map(|row| Ok(row.try_get::<_, Json<ClaimedNotification>>(0)?.0)).collect()
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
                 where channel = c.channel and ended_at >= c.since
                   and delivered_at is null and failed_at is null
                 order by due_at limit 1) n"
    );
    let Claim { email, count, kept, per_channel, busy, .. } = claim;
    let parameters: Parameters<'_> = &[email, per_channel, &Json(busy), count, kept];
    let rows = query(pool, &text, parameters, "cannot look for the next notification").await?;
    let seconds: Option<f64> = rows.first().and_then(|row| row.get(0));
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
}

/// How long e-mails and webhooks have been due that no instance has claimed yet, the oldest of each; zero without any.
/// What waits for an SMTP server that is not set (`email`), or for a disabled endpoint, does not count.
///
/// # Errors
/// When the database failed.
pub async fn oldest_due(pool: &Pool, email: bool) -> Result<[Duration; 2]> {
    let text = "
        select coalesce(extract(epoch from now() - min(due_at) filter (where channel = 'email')), 0)::double precision,
               coalesce(extract(epoch from now() - min(due_at) filter (where channel <> 'email')), 0)::double precision
          from (select 'email' as channel, timestamptz '-infinity' as since where $1::boolean
                 union all
                select channel, since from endpoints where disabled_at is null and removed_at is null) c
         cross join lateral (
               select due_at from notifications
                where channel = c.channel and ended_at >= c.since and delivered_at is null and failed_at is null
                order by due_at limit 1) n";
    let rows = query(pool, text, &[&email], "cannot look for the oldest notification").await?;
    let row = rows.first().context("the oldest notifications are one row")?;
    // What is due in the future is not due.
    Ok([0, 1].map(|column| Duration::try_from_secs_f64(row.get(column)).unwrap_or_default()))
}

/// The result of an attempt, as it is recorded.
#[derive(Debug, Serialize)]
pub struct AttemptRecord {
    pub payment_id: Uuid,
    pub channel: String,
    pub attempts: i32,
    /// That of the endpoint; `None` for an e-mail.
    pub revision: Option<i32>,
    /// The name of the step.
    pub step: &'static str,
    /// Seconds until the next attempt, if there is one.
    pub pause: f64,
    pub error: Option<String>,
}

// An endpoint is written only when it begins or ends to fail, or is disabled ($2: after so many seconds of failures).
// An attempt at an earlier revision says nothing about this one. All is decided in the update, on the row as it is
// then.
const RECORD: &str = "
    with recorded as (
        update notifications n
           set delivered_at = case when a.step = 'delivered' then now() end,
               failed_at = case when a.step = 'given_up' then now() end,
               due_at = now() + a.pause * interval '1 second',
               last_error = coalesce(a.error, n.last_error)
          from jsonb_to_recordset($1)
               as a (payment_id uuid, channel text, attempts integer, step text, pause double precision, error text)
         where n.payment_id = a.payment_id and n.channel = a.channel and n.delivered_at is null
           and (a.step = 'delivered' or (n.failed_at is null and n.attempts = a.attempts))
    ), o as (
        select channel, revision, bool_or(step = 'delivered') as delivered, bool_or(step = 'disabled') as gone
          from jsonb_to_recordset($1) as a (channel text, revision integer, step text)
         where revision is not null group by channel, revision
    )
    update endpoints e
       set failing_since = case when o.gone or not o.delivered then coalesce(e.failing_since, now()) end,
           disabled_reason = case when o.gone then 'gone'
                                  when not o.delivered and e.failing_since < now() - $2 * interval '1 second'
                                  then 'failing' end,
           disabled_at = case when o.gone
                                or not o.delivered and e.failing_since < now() - $2 * interval '1 second'
                              then now() end
      from o
     where e.channel = o.channel and e.revision = o.revision and e.disabled_at is null and e.removed_at is null
       and (o.gone or o.delivered = (e.failing_since is not null)
            or e.failing_since < now() - $2::double precision * interval '1 second')
    returning case when e.disabled_at is not null then e.channel end";

/// Records the results of attempts. Returns the channels of the endpoints that it disabled.
///
/// # Errors
/// When the database failed. Nothing was written then.
pub async fn record(pool: &Pool, attempts: &[AttemptRecord], disable_after: Duration) -> Result<Vec<String>> {
    let parameters: Parameters<'_> = &[&Json(attempts), &disable_after.as_secs_f64()];
    let rows = query(pool, RECORD, parameters, "cannot record deliveries").await?;
    Ok(rows.iter().filter_map(|row| row.get(0)).collect())
}
