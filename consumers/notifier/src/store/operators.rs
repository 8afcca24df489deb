//! Statements of operators: contacts, endpoints, replay. Most are a text and its parameters.

use anyhow::{Context, Result};
use saga::postgres::{Pool, execute};

/// Those that are executed by themselves. The rows of one that reads are JSON.
pub mod statements {
    /// A changed address counts for what waits too. $1: user, $2: address.
    pub const PUT_CONTACT: &str = "
        insert into contacts (user_id, email) values ($1, $2)
        on conflict on constraint contacts_pkey do update
        set since = case when contacts.email is null then now() else contacts.since end, email = excluded.email";
    /// $1: user.
    pub const ERASE_CONTACT: &str =
        "update contacts set email = null, since = 'infinity' where user_id = $1 and email is not null";
    /// Once more, it changes nothing. $1: channel.
    pub const REMOVE_ENDPOINT: &str =
        "update endpoints set removed_at = coalesce(removed_at, now()) where channel = $1";
    /// The previous secret signs for another day. $1: channel, $2: the new secret.
    pub const ROTATE_SECRET: &str = "
        update endpoints
           set previous_secret = secret, previous_until = now() + interval '24 hours', secret = $2
         where channel = $1 and removed_at is null";
    /// All that has ended of a payment, delivered or not; what is under way keeps its lease. A removed endpoint gets
    /// nothing, and no other one in its place. $1: payment.
    pub const REPLAY_PAYMENT: &str = "
        update notifications n set delivered_at = null, failed_at = null, attempts = 0, due_at = now()
         where payment_id = $1 and (delivered_at is not null or failed_at is not null)
           and (channel = 'email' or exists (
                select from endpoints e
                 where e.channel = n.channel and e.removed_at is null and e.since <= n.ended_at))";
    /// The oldest that were given up, at most 10,000: what is left is for the next call. $1: channel, $2: ended since.
    pub const REPLAY_CHANNEL: &str = "
        with again as materialized (
            select payment_id from notifications
             where channel = $1 and failed_at is not null and ended_at >= $2
               and ended_at >= (select case when $1 = 'email' then '-infinity' else (
                                       select since from endpoints where channel = $1 and removed_at is null) end)
             order by ended_at limit 10000 for update)
        update notifications n set failed_at = null, attempts = 0, due_at = now()
          from again a where n.payment_id = a.payment_id and n.channel = $1";
    /// Without their secrets, which a path may be one of too: a URL is shown up to its host and port.
    pub const ENDPOINTS: &str = "
        select to_jsonb(e) from (
            select channel, substring(url from '^[^:]+://[^/?#]*') as origin, since, failing_since, disabled_at,
                   disabled_reason, case when previous_until > now() then previous_until end as previous_secret_until
              from endpoints where removed_at is null order by channel) e";
    /// $1: payment.
    pub const NOTIFICATIONS: &str = "
        select to_jsonb(n) from (
            select channel, event, attempts, due_at, delivered_at, failed_at, last_error
              from notifications where payment_id = $1 order by channel) n";
}

/// Endpoints that there may be: each is a row per payment, and a look at each claim.
const ENDPOINTS_MAX: i64 = 100;
/// Rows that one statement gives up, so that it ends long before the time-out of statements.
const GIVE_UP_ROWS: u64 = 10_000;

/// Gives up what waits of a removed endpoint, in steps; does nothing to one that is not removed. A row that somebody
/// has locked is left: nothing claims it either, nor gives it to an endpoint that takes the name.
///
/// # Errors
/// When the database failed. Repeated, it goes on.
pub async fn give_up_removed(pool: &Pool, channel: &str) -> Result<()> {
    let text = "
        update notifications set failed_at = now(), last_error = 'endpoint removed'
         -- By their place: a join may be planned as a loop in a loop.
         where ctid = any (array(
               select n.ctid from notifications n
                 join endpoints e on e.channel = n.channel and e.removed_at is not null
                where n.channel = $1 and n.delivered_at is null and n.failed_at is null
                order by n.due_at limit $2 for update of n skip locked))";
    let (rows, failed) = (i64::try_from(GIVE_UP_ROWS)?, "cannot give up what a removed endpoint had");
    while execute(pool, text, &[&channel, &rows], failed).await? == GIVE_UP_ROWS {}
    Ok(())
}

/// The effect of [`put_endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutEndpoint {
    /// It was created, or created anew after it was removed: it has the secret of this call.
    Created,
    /// It has this URL, is enabled, and keeps its secret.
    Changed,
    /// There are as many endpoints as there may be.
    TooMany,
}

/// Creates an endpoint with `secret`, or changes the URL of the one that is there and enables it. What still waits of a
/// removed one of its name is given up first.
///
/// # Errors
/// When the database failed.
pub async fn put_endpoint(pool: &Pool, channel: &str, url: &str, secret: &str) -> Result<PutEndpoint> {
    give_up_removed(pool, channel).await?;
    let mut client = pool.get().await.context("no connection to the database")?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    // One at a time, so that they are counted right.
    transaction.execute("select pg_advisory_xact_lock(hashtext('endpoints'))", &[]).await?;
    let text = "
        insert into endpoints as e (channel, url, secret)
        select $1, $2, $3
         where exists (select from endpoints where channel = $1 and removed_at is null)
            or (select count(*) from endpoints where removed_at is null) < $4
        on conflict on constraint endpoints_pkey do update
        set url = excluded.url, revision = e.revision + 1,
            secret = case when e.removed_at is null then e.secret else excluded.secret end,
            previous_secret = case when e.removed_at is null then e.previous_secret end,
            previous_until = case when e.removed_at is null then e.previous_until end,
            since = case when e.removed_at is null then e.since else now() end,
            removed_at = null, failing_since = null, disabled_at = null, disabled_reason = null
        returning secret = $3";
    let row = transaction.query_opt(text, &[&channel, &url, &secret, &ENDPOINTS_MAX]).await;
    let row = row.context("cannot set the endpoint")?;
    transaction.commit().await.context("cannot commit")?;
    Ok(match row.map(|row| row.get(0)) {
        Some(true) => PutEndpoint::Created,
        Some(false) => PutEndpoint::Changed,
        None => PutEndpoint::TooMany,
    })
}
