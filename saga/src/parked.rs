//! Messages that cannot be applied. They are set aside by an insert in the transaction of their batch,
//! so that a message is either applied or parked, never neither. The table is the same in every database;
//! the relay tells its rows to `<source>.parked`, where people and tools find them.

use anyhow::Context;
use serde_json::Value;
use tokio_postgres::types::Json;

use crate::postgres::Transaction;

/// A message set aside, with everything needed to tell it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// Where it was read (topic/partition/offset or queue/message id): parking it twice changes nothing.
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

/// Inserts all of `parked`; those already there are left alone.
pub async fn insert(transaction: &Transaction<'_>, parked: &[Parked]) -> anyhow::Result<()> {
    if parked.is_empty() {
        return Ok(());
    }
    let statement = transaction
        .prepare_cached(
            "insert into parked (parked_id, source, message_key, type, headers, body, reason)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[])
             on conflict do nothing",
        )
        .await
        .context("prepare park")?;
    let ids: Vec<&str> = parked.iter().map(|p| p.parked_id.as_str()).collect();
    let sources: Vec<&str> = parked.iter().map(|p| p.source.as_str()).collect();
    let keys: Vec<Option<&str>> = parked.iter().map(|p| p.message_key.as_deref()).collect();
    let types: Vec<Option<&str>> = parked.iter().map(|p| p.event_type.as_deref()).collect();
    let headers: Vec<Json<&Value>> = parked.iter().map(|p| Json(&p.headers)).collect();
    let bodies: Vec<&[u8]> = parked.iter().map(|p| p.body.as_slice()).collect();
    let reasons: Vec<&str> = parked.iter().map(|p| p.reason.as_str()).collect();
    transaction
        .execute(&statement, &[&ids, &sources, &keys, &types, &headers, &bodies, &reasons])
        .await
        .context("park messages")?;
    for message in parked {
        tracing::error!(id = message.parked_id, reason = message.reason, "message parked");
    }
    Ok(())
}
