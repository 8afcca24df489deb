//! Parks messages that cannot be applied, in the table `parked`.
//!
//! * A message is parked in the transaction of its batch, so it is either applied or parked.
//! * The table is the same in every database. The relay emits the rows of the saga's services to `<source>.parked`. Those
//!   of the notifier and of the fraud detector it does not emit: their own table has them, and the audit reads it.
//! * The same message, delivered again, stays one row.
//! * An operator may have it applied again, or put away ([`acts`], [`routes`]). The row stays as it is. Until then it counts
//!   as open ([`open`]).
//! * A message with another content under a known id becomes another row, whose id is that id and a hash of the content.
//!   So no message hides another one, neither by a chosen message id nor in a topic that was created anew.

pub mod acts;
pub mod open;
pub mod routes;

use anyhow::Context;
use serde_json::Value;
use tokio_postgres::types::Json;
use uuid::Uuid;

use crate::postgres::Transaction;

/// A message that cannot be applied, complete enough to produce it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// Topic/partition/offset, or queue/message id. Parking a message twice changes nothing. Another message under the
    /// same id gets a longer id.
    pub parked_id: String,
    /// The topic or queue it came from.
    pub source: String,
    pub message_key: Option<String>,
    pub event_type: Option<String>,
    pub headers: Value,
    pub body: Vec<u8>,
    /// The reason why it cannot be applied.
    pub reason: String,
}

impl Parked {
    /// The user whom the message is about, if its key is one.
    pub fn user_id(&self) -> Option<Uuid> {
        Uuid::try_parse(self.message_key.as_deref()?).ok()
    }
}

/// The text without NUL, the one character that Postgres cannot store, so that every message can be parked.
pub fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

const INSERT: &str = "
    insert into parked (parked_id, source, message_key, type, headers, body, reason)
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[])
    on conflict do nothing";

// A later statement sees the row that the insert conflicted with. The reason may change with a release, so it is no
// content.
const INSERT_OTHERS: &str = "
    insert into parked (parked_id, source, message_key, type, headers, body, reason)
    select n.parked_id || '/' || encode(sha256(
               convert_to(jsonb_build_array(n.source, n.message_key, n.type, n.headers)::text, 'UTF8') || n.body), 'hex'),
           n.source, n.message_key, n.type, n.headers, n.body, n.reason
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[])
           as n (parked_id, source, message_key, type, headers, body, reason)
      join parked p on p.parked_id = n.parked_id
     where (p.source, p.message_key, p.type, p.headers, p.body)
           is distinct from (n.source, n.message_key, n.type, n.headers, n.body)
    on conflict do nothing";

/// Inserts all of `parked`. Rows that are there already stay as they are.
pub async fn insert(transaction: &Transaction<'_>, parked: &[Parked]) -> anyhow::Result<()> {
    if parked.is_empty() {
        return Ok(());
    }
    let statement =
        transaction.prepare_cached(INSERT).await.context("cannot prepare the parking of messages")?;
    let ids: Vec<&str> = parked.iter().map(|p| p.parked_id.as_str()).collect();
    let sources: Vec<&str> = parked.iter().map(|p| p.source.as_str()).collect();
    let keys: Vec<Option<&str>> = parked.iter().map(|p| p.message_key.as_deref()).collect();
    let types: Vec<Option<&str>> = parked.iter().map(|p| p.event_type.as_deref()).collect();
    let headers: Vec<Json<&Value>> = parked.iter().map(|p| Json(&p.headers)).collect();
    let bodies: Vec<&[u8]> = parked.iter().map(|p| p.body.as_slice()).collect();
    let reasons: Vec<&str> = parked.iter().map(|p| p.reason.as_str()).collect();
    let inserted = transaction
        .execute(&statement, &[&ids, &sources, &keys, &types, &headers, &bodies, &reasons])
        .await
        .context("cannot park messages")?;
    if inserted < parked.len() as u64 {
        let others = transaction
            .prepare_cached(INSERT_OTHERS)
            .await
            .context("cannot prepare the parking of messages under a known id")?;
        transaction
            .execute(&others, &[&ids, &sources, &keys, &types, &headers, &bodies, &reasons])
            .await
            .context("cannot park messages under a known id")?;
    }
    for message in parked {
        // The reason quotes the message, which holds personal data.
        tracing::error!(
            id = message.parked_id,
            "a message cannot be applied and is parked; its row in the table parked has the reason"
        );
    }
    Ok(())
}
