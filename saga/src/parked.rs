//! Messages that cannot be applied. They are set aside by an insert in the transaction of their batch,
//! so that a message is either applied or parked, never neither. The table is the same in every database;
//! the relay tells its rows to `<source>.parked`, where people and tools find them.
//!
//! * The same message, delivered again, stays one row.
//! * A message with another content under a known id is another row: its id is that id and a hash of its content.
//!   Nobody hides a message behind another one, be it by a chosen message id or in a topic that was made anew.

use anyhow::Context;
use serde_json::Value;
use tokio_postgres::types::Json;

use crate::postgres::Transaction;

/// A message set aside, with everything needed to tell it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// Where it was read (topic/partition/offset or queue/message id): parking it twice changes nothing. Another message
    /// under the same id gets a longer one.
    pub parked_id: String,
    /// The topic or queue it came from.
    pub source: String,
    pub message_key: Option<String>,
    pub event_type: Option<String>,
    pub headers: Value,
    pub body: Vec<u8>,
    /// Why it cannot be applied.
    pub reason: String,
}

/// The text without the one character that Postgres cannot store: a message is not kept from being parked by what is
/// wrong with it.
pub fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

const INSERT: &str = "
    insert into parked (parked_id, source, message_key, type, headers, body, reason)
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[])
    on conflict do nothing";

// In a later statement, which sees the row that the insert met. A reason may change with a release, and is no content.
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

/// Inserts all of `parked`; those already there are left alone.
pub async fn insert(transaction: &Transaction<'_>, parked: &[Parked]) -> anyhow::Result<()> {
    if parked.is_empty() {
        return Ok(());
    }
    let statement = transaction.prepare_cached(INSERT).await.context("prepare park")?;
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
        .context("park messages")?;
    if inserted < parked.len() as u64 {
        let others = transaction.prepare_cached(INSERT_OTHERS).await.context("prepare park others")?;
        transaction
            .execute(&others, &[&ids, &sources, &keys, &types, &headers, &bodies, &reasons])
            .await
            .context("park messages under a known id")?;
    }
    for message in parked {
        tracing::error!(id = message.parked_id, reason = message.reason, "message parked");
    }
    Ok(())
}
