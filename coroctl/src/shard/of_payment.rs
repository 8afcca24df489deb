//! Finds the databases of one payment, where its service has several shards.

use anyhow::{Context, Result};
use saga::shards::list::{self, ListedShard};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::databases;
use crate::find;
use crate::stack::Stack;

// A shard may have rows of a bucket that it does not own: the copy of a move.
const USER: &str = "
    select user_id from payments
     where payment_id = $1 and initiated_at >= $2 and initiated_at < $3
       and exists (select from owned_buckets o where o.bucket = bucket(user_id) and o.owned)";
const IS_OWNED: &str = "select exists (select from owned_buckets where bucket = bucket($1) and owned)";

/// The same stack, with the shards of payments and of balance that have the payment's user. As it is, where there is one of each, or
/// no shard has the payment.
///
/// # Errors
/// When a list cannot be read, or a shard does not answer.
pub async fn of_payment(stack: &Stack, payment_id: Uuid) -> Result<Stack> {
    let (payments, balance) =
        (listed(stack.payments_shards.as_deref())?, listed(stack.balance_shards.as_deref())?);
    let mut found = stack.clone();
    if payments.len() < 2 && balance.len() < 2 {
        return Ok(found);
    }
    let (begin, end) = find::accepted_between(payment_id)?;
    let mut user: Option<Uuid> = None;
    for shard in &payments {
        let row = connect(shard).await?.query_opt(USER, &[&payment_id, &begin, &end]).await;
        if let Some(row) = row.with_context(|| format!("shard {} of payments", shard.name))? {
            user = Some(row.try_get(0)?);
            found.payments_database_url.clone_from(&shard.url);
        }
    }
    for shard in balance.iter().filter(|_| user.is_some()) {
        let row = connect(shard).await?.query_one(IS_OWNED, &[&user]).await;
        if row.with_context(|| format!("shard {} of balance", shard.name))?.try_get(0)? {
            found.balance_database_url.clone_from(&shard.url);
        }
    }
    Ok(found)
}

fn listed(shards: Option<&str>) -> Result<Vec<ListedShard>> {
    shards.map_or_else(|| Ok(Vec::new()), list::parse)
}

async fn connect(shard: &ListedShard) -> Result<Client> {
    databases::reader(&format!("shard {}", shard.name), &shard.url).await
}
