//! Statements of operators: contacts, endpoints, replay. Most are a text and its parameters.

use anyhow::Context;
use saga::postgres::Pool;
use serde_json::Value;

use super::{Parameters, connect, query};

/// The statements of [`change`] and [`list`].
pub mod statements {
    /// A changed address counts for what waits too. $1: user, $2: address.
    pub const PUT_CONTACT: &str = "
        insert into contacts (user_id, email) values ($1, $2)
        on conflict on constraint contacts_pkey do update
        set since = case when contacts.email is null then now() else contacts.since end, email = excluded.email";
    /// $1: user.
    pub const ERASE_CONTACT: &str =
        "update contacts set email = null, since = 'infinity' where user_id = $1 and email is not null";
    /// $1: channel.
    pub const REMOVE_ENDPOINT: &str =
        "update endpoints set removed_at = now() where channel = $1 and removed_at is null";
    /// What waits of a removed endpoint: another of its name does not get it. $1: channel.
    pub const GIVE_UP_CHANNEL: &str = "
        update notifications set failed_at = now(), last_error = 'endpoint removed'
         where channel = $1 and delivered_at is null and failed_at is null";
    /// All that has ended of a payment, delivered or not; what is under way keeps its lease. $1: payment.
    pub const REPLAY_PAYMENT: &str = "
        update notifications set delivered_at = null, failed_at = null, attempts = 0, due_at = now()
         where payment_id = $1 and (delivered_at is not null or failed_at is not null)";
    /// The oldest that were given up, at most 10,000: what is left is for the next call. $1: channel, $2: ended since.
    pub const REPLAY_CHANNEL: &str = "
        with again as materialized (
            select payment_id from notifications
             where channel = $1 and failed_at is not null and ended_at >= $2
             order by ended_at limit 10000 for update)
        update notifications n set failed_at = null, attempts = 0, due_at = now()
          from again a where n.payment_id = a.payment_id and n.channel = $1";
    /// Without their secrets.
    pub const ENDPOINTS: &str = "
        select channel, url, since, failing_since, disabled_at, disabled_reason
          from endpoints where removed_at is null order by channel";
    /// $1: payment.
    pub const NOTIFICATIONS: &str = "
        select channel, event, attempts, due_at, delivered_at, failed_at, last_error
          from notifications where payment_id = $1 order by channel";
}

/// Executes one of the [`statements`] that change rows; returns how many it changed.
///
/// # Errors
/// When the database failed.
pub async fn change(pool: &Pool, text: &str, parameters: Parameters<'_>) -> anyhow::Result<u64> {
    let client = connect(pool).await?;
    let statement = client.prepare_cached(text).await?;
    client.execute(&statement, parameters).await.context("cannot change rows for an operator")
}

/// The rows of one of the [`statements`] that read, as JSON.
///
/// # Errors
/// When the database failed.
pub async fn list(pool: &Pool, text: &str, parameters: Parameters<'_>) -> anyhow::Result<Value> {
    let text = format!("select to_jsonb(r) from ({text}) r");
    let rows = query(pool, &text, parameters, "cannot read rows for an operator").await?;
    Ok(rows.iter().map(|row| row.get::<_, Value>(0)).collect())
}

/// Creates an endpoint with `secret`, or changes the URL of the one that is there and enables it; it keeps its own. True when it was
/// created, or created anew after it was removed.
///
/// # Errors
/// When the database failed.
pub async fn put_endpoint(pool: &Pool, channel: &str, url: &str, secret: &str) -> anyhow::Result<bool> {
    let text = "
        insert into endpoints as e (channel, url, secret) values ($1, $2, $3)
        on conflict on constraint endpoints_pkey do update
        set url = excluded.url,
            secret = case when e.removed_at is null then e.secret else excluded.secret end,
            since = case when e.removed_at is null then e.since else now() end,
            removed_at = null, failing_since = null, disabled_at = null, disabled_reason = null
        returning secret = $3";
    let rows = query(pool, text, &[&channel, &url, &secret], "cannot set the endpoint").await?;
    Ok(rows.iter().any(|row| row.get(0)))
}
