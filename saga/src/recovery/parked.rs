//! Puts back what was parked since the backup, and what operators did: with it, and with the database.
//!
//! * `<topic>.parked` has each row of `parked` as it was, and OperatorTopic each act. They are written to the bytes of their
//!   events, the time included: emitted again, they are the same events.
//! * That the database was opened once is put back as an act. It does not open the database.
//! * Services share these topics. The source of an event says whose row it is.
//! * A topic that does not exist has nothing: the relay makes them all, so it never had anything to emit.

use std::fmt;

use anyhow::Context;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::Recovery;
use crate::consumer::{Record, TopicRange};
use crate::contract::{HEADER_SOURCE, HEADER_TYPE, OPERATOR_TOPIC, PAYMENT_QUEUE};
use crate::postgres::Transaction;

const INSERT_PARKED: &str = "
    insert into parked (parked_id, source, message_key, type, headers, body, reason, parked_at)
    select parked_id, source, message_key, type, headers, decode(body, 'base64'), reason, parked_at
      from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::text[], $8::timestamptz[])
        as p (parked_id, source, message_key, type, headers, body, reason, parked_at)
    on conflict do nothing";

const INSERT_ACTS: &str = "
    insert into parked_acts (parked_id, act, operator, reason, outcome, acted_at)
    select a.* from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
        as a (parked_id, act, operator, reason, outcome, acted_at)
      join parked using (parked_id)
    on conflict do nothing";

const INSERT_INCARNATION_ACTS: &str = "
    insert into incarnation_acts (act_id, incarnation, act, operator, reason, acted_at)
    select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
    on conflict do nothing";

const ACT_TYPES: [&str; 4] =
    ["message.retried.v1", "message.dismissed.v1", "database.opened.v1", "database.closed.v1"];

/// The published columns of `parked`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct ParkedRow {
    parked_id: String,
    source: String,
    message_key: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    headers: Value,
    /// In base64.
    body: String,
    reason: String,
    parked_at: Timestamp,
}

/// The published columns of `parked_acts`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct ActRow {
    parked_id: String,
    act: String,
    operator: String,
    reason: String,
    outcome: String,
    acted_at: Timestamp,
}

/// The published columns of `incarnation_acts`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct IncarnationActRow {
    act_id: Uuid,
    incarnation: String,
    act: String,
    operator: String,
    reason: String,
    acted_at: Timestamp,
}

/// An act of an operator: with a parked message, or with the database.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OperatorRow {
    Message(ActRow),
    Database(IncarnationActRow),
}

/// The rows of a topic, by whether the database had them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    lacking: u64,
    present: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, present } = self;
        write!(f, "{lacking} lacking, {present} there")
    }
}

impl Recovery {
    /// Puts back what this service parked of these topics, and the acts. A dry run is rolled back.
    ///
    /// # Errors
    /// When a topic cannot be read or the database failed.
    pub async fn parked(&mut self, topics: &[&str]) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await.context("cannot begin a transaction")?;
        for topic in topics {
            let range = self.parked_range(topic);
            let name = range.topic.clone();
            let rows: Vec<ParkedRow> = self.own_rows(range, &["message.parked.v1"]).await?;
            let lacking = insert_parked(&transaction, &rows).await?;
            crate::say!("{name}: {}", Counts { lacking, present: rows.len() as u64 - lacking });
        }
        let rows: Vec<OperatorRow> = self.own_rows(self.topic(OPERATOR_TOPIC), &ACT_TYPES).await?;
        let (count, (mut acts, mut of_database)) = (rows.len() as u64, (Vec::new(), Vec::new()));
        for row in rows {
            match row {
                OperatorRow::Message(row) => acts.push(row),
                OperatorRow::Database(row) => of_database.push(row),
            }
        }
        let lacking = insert_acts(&transaction, &acts).await?
            + insert_incarnation_acts(&transaction, &of_database).await?;
        crate::say!("{OPERATOR_TOPIC}: {}", Counts { lacking, present: count - lacking });
        if !self.is_dry_run() {
            transaction.commit().await.context("cannot commit")?;
        }
        Ok(())
    }

    /// What was parked of a topic, or of the queue, whose name has no prefix.
    fn parked_range(&self, source: &str) -> TopicRange {
        let range = self.topic(&format!("{source}.parked"));
        match source {
            PAYMENT_QUEUE => TopicRange { topic: format!("{PAYMENT_QUEUE}.parked"), ..range },
            _ => range,
        }
    }

    /// The events of these types that are of rows of this service. They are few: a person has to look at each.
    async fn own_rows<T>(
        &mut self,
        range: TopicRange,
        types: &'static [&'static str],
    ) -> anyhow::Result<Vec<T>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let source = format!("/coro/{}", self.service.trim_end_matches("-svc"));
        let read = move |record: &Record<'_>| {
            let event_type = record.header(HEADER_TYPE).filter(|event_type| types.contains(event_type))?;
            let is_own = record.header(HEADER_SOURCE) == Some(source.as_str());
            let row = is_own.then(|| serde_json::from_slice::<T>(record.body()))?;
            Some(row.map_err(|error| format!("{}: is no {event_type}: {error}", record.place())))
        };
        let mut rows = Vec::new();
        if !range.is_there().await? {
            return Ok(rows);
        }
        let mut batches = range.read(read)?;
        while let Some(batch) = batches.next().await? {
            rows.extend(self.readable(batch.into_iter().flatten().collect()));
        }
        Ok(rows)
    }
}

async fn insert_parked(transaction: &Transaction<'_>, rows: &[ParkedRow]) -> anyhow::Result<u64> {
    let ids: Vec<&str> = rows.iter().map(|row| row.parked_id.as_str()).collect();
    let sources: Vec<&str> = rows.iter().map(|row| row.source.as_str()).collect();
    let keys: Vec<Option<&str>> = rows.iter().map(|row| row.message_key.as_deref()).collect();
    let types: Vec<Option<&str>> = rows.iter().map(|row| row.event_type.as_deref()).collect();
    let headers: Vec<Json<&Value>> = rows.iter().map(|row| Json(&row.headers)).collect();
    let bodies: Vec<&str> = rows.iter().map(|row| row.body.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    let times: Vec<Timestamp> = rows.iter().map(|row| row.parked_at).collect();
    transaction
        .execute(INSERT_PARKED, &[&ids, &sources, &keys, &types, &headers, &bodies, &reasons, &times])
        .await
        .context("cannot put back parked messages")
}

async fn insert_acts(transaction: &Transaction<'_>, rows: &[ActRow]) -> anyhow::Result<u64> {
    let ids: Vec<&str> = rows.iter().map(|row| row.parked_id.as_str()).collect();
    let acts: Vec<&str> = rows.iter().map(|row| row.act.as_str()).collect();
    let operators: Vec<&str> = rows.iter().map(|row| row.operator.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    let outcomes: Vec<&str> = rows.iter().map(|row| row.outcome.as_str()).collect();
    let times: Vec<Timestamp> = rows.iter().map(|row| row.acted_at).collect();
    transaction
        .execute(INSERT_ACTS, &[&ids, &acts, &operators, &reasons, &outcomes, &times])
        .await
        .context("cannot put back the acts of operators")
}

async fn insert_incarnation_acts(
    transaction: &Transaction<'_>,
    rows: &[IncarnationActRow],
) -> anyhow::Result<u64> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.act_id).collect();
    let incarnations: Vec<&str> = rows.iter().map(|row| row.incarnation.as_str()).collect();
    let acts: Vec<&str> = rows.iter().map(|row| row.act.as_str()).collect();
    let operators: Vec<&str> = rows.iter().map(|row| row.operator.as_str()).collect();
    let reasons: Vec<&str> = rows.iter().map(|row| row.reason.as_str()).collect();
    let times: Vec<Timestamp> = rows.iter().map(|row| row.acted_at).collect();
    transaction
        .execute(INSERT_INCARNATION_ACTS, &[&ids, &incarnations, &acts, &operators, &reasons, &times])
        .await
        .context("cannot put back who opened and closed the database")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The event is the published row.
    #[test]
    fn rows_are_read_from_their_events() {
        let event = r#"{"parked_id":"PaymentTopic/0/7","source":"PaymentTopic","message_key":null,"type":null,
            "headers":{"ce_id":"x"},"body":"AP8=","reason":"why","parked_at":"2026-01-02T03:04:05.000001Z","more":1}"#;
        let row: ParkedRow = serde_json::from_str(event).unwrap();
        assert_eq!((row.message_key, row.body.as_str()), (None, "AP8="));
        assert_eq!(row.parked_at.as_microsecond() % 10, 1, "to the microsecond");
        let event = r#"{"parked_id":"a","act":"retried","operator":"ada","reason":"r","outcome":"applied",
            "acted_at":"2026-01-02T03:04:05.000001Z"}"#;
        let row = serde_json::from_str(event).unwrap();
        let OperatorRow::Message(row) = row else { panic!("{row:?}") };
        assert_eq!((row.act.as_str(), row.operator.as_str()), ("retried", "ada"));
        let event = r#"{"act_id":"0198c0de-0000-4000-8000-00000000000a","incarnation":"7/00000002/1/2","act":"opened",
            "operator":"ada","reason":"r","acted_at":"2026-01-02T03:04:05.000001Z"}"#;
        let row = serde_json::from_str(event).unwrap();
        let OperatorRow::Database(row) = row else { panic!("{row:?}") };
        assert_eq!((row.act.as_str(), row.incarnation.as_str()), ("opened", "7/00000002/1/2"));
    }
}
