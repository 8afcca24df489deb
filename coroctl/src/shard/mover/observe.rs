//! Reads the facts of a move from both shards.

use std::time::Instant;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use super::super::moves::{Observed, Record, Subscription};
use super::super::replication;
use super::record::{self, Recorded};
use super::{Mover, Walk};

const INCARNATION: &str = "select incarnation()";
const HAS_SLOT: &str = "select exists (select from pg_replication_slots where slot_name = $1)";
// No subscription: null. Otherwise whether every table follows.
const SUBSCRIPTION: &str = "
    select (select bool_and(r.srsubstate = 'r') from pg_subscription_rel r where r.srsubid = s.oid)
      from pg_subscription s
      join pg_database d on d.oid = s.subdbid
     where s.subname = $1 and d.datname = current_database()";
/// The bytes of WAL that the target has not flushed. A fence would have to wait for them.
const LAG: &str = "
    select coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint
      from pg_replication_slots where slot_name = $1";
const LAG_BYTES_MAX: i64 = 1 << 20;
/// The same of the relay: the slot that is farthest behind, one that is missing most of all.
const RELAY_LAG: &str = "
    select case when count(*) = cardinality($1::text[])
                then coalesce(max(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint, $2)), 0)
                else $2::bigint end
      from pg_replication_slots where slot_name = any ($1::text[])";
const RELAY_LAG_BYTES_MAX: i64 = 8 << 20;

impl Mover {
    /// All questions are asked at once, so that a fence is not up for longer than their answers take.
    pub(super) async fn observe(&mut self) -> Result<Observed> {
        let asked_at = Instant::now();
        let (source, target) = (&self.source.client, &self.target.client);
        let (move_id, numbers) = (self.moved.move_id, self.moved.numbers());
        let (records, rows, has_slot, subscription, incarnations, has_drained, positions) = tokio::try_join!(
            async { tokio::try_join!(record::read(source, move_id), record::read(target, move_id)) },
            async {
                tokio::try_join!(record::ownership(source, &numbers), record::ownership(target, &numbers))
            },
            self.has_slot(),
            self.subscription(),
            async { tokio::try_join!(incarnation(source), incarnation(target)) },
            self.has_drained(),
            self.positions(),
        )?;
        let (source_record, target_record) = records;
        if let Some(recorded) = &source_record {
            self.moved.attempts.clone_from(&recorded.attempts);
            self.moved.incarnations.clone_from(&recorded.incarnations);
            self.moved.relay_slots.clone_from(&recorded.relay_slots);
            self.moved.tables.clone_from(&recorded.tables);
            self.moved.schema_version = recorded.schema_version;
        }
        self.progress.transactions_ended = has_drained;
        let (target_has_flushed, relay_has_acknowledged) = positions;
        let state = |recorded: Option<&Recorded>| recorded.map_or(Record::Absent, |recorded| recorded.record);
        let (source, target) = (self.moved.at_source(&rows.0), self.moved.at_target(&rows.1));
        Ok(Observed {
            source,
            target,
            source_record: state(source_record.as_ref()),
            target_record: state(target_record.as_ref()),
            has_slot,
            subscription,
            source_has_rows: self.progress.source_walk != Walk::Done,
            target_has_rows: self.progress.target_walk != Walk::Done,
            drain: self.progress.drain(target_has_flushed, relay_has_acknowledged),
            fenced_for: self.progress.fenced_for(source, target, asked_at),
            grant_recorded: source_record.as_ref().is_some_and(|recorded| recorded.grant_recorded),
            abort_requested: source_record.is_some_and(|recorded| recorded.abort_requested),
            same_incarnations: [incarnations.0, incarnations.1] == self.moved.incarnations,
        })
    }

    async fn has_slot(&self) -> Result<bool> {
        let name = replication::name(self.moved.move_id);
        Ok(self
            .source
            .client
            .query_one(HAS_SLOT, &[&name])
            .await
            .context("pg_replication_slots")?
            .try_get(0)?)
    }

    async fn subscription(&self) -> Result<Subscription> {
        let name = replication::name(self.moved.move_id);
        let row = self.target.client.query_opt(SUBSCRIPTION, &[&name]).await.context("pg_subscription")?;
        let Some(row) = row else { return Ok(Subscription::Absent) };
        let follows = row.try_get::<_, Option<bool>>(0)? == Some(true);
        if !follows || !self.progress.has_compared {
            return Ok(Subscription::Copying);
        }
        // Behind the fence there is no way back to copying.
        let is_near = self.progress.fenced_at.is_some()
            || (self.lag().await? <= LAG_BYTES_MAX && self.relay_lag().await? <= RELAY_LAG_BYTES_MAX);
        Ok(if is_near { Subscription::Follows } else { Subscription::Copying })
    }

    /// Every table follows, and the target has not far to go.
    pub(super) async fn may_compare(&self) -> Result<bool> {
        let name = replication::name(self.moved.move_id);
        let row = self.target.client.query_opt(SUBSCRIPTION, &[&name]).await.context("pg_subscription")?;
        let follows = row.map(|row| row.try_get::<_, Option<bool>>(0)).transpose()?.flatten() == Some(true);
        Ok(follows && self.lag().await? <= LAG_BYTES_MAX)
    }

    pub(super) async fn lag(&self) -> Result<i64> {
        let name = replication::name(self.moved.move_id);
        let row = self.source.client.query_opt(LAG, &[&name]).await.context("pg_replication_slots")?;
        row.map_or(Ok(i64::MAX), |row| Ok(row.try_get(0)?))
    }

    pub(super) async fn relay_lag(&self) -> Result<i64> {
        let slots = self.all_relay_slots().await?;
        let row = self.source.client.query_one(RELAY_LAG, &[&slots, &i64::MAX]).await;
        Ok(row.context("pg_replication_slots")?.try_get(0)?)
    }

    /// Each slot that was there when the move began, and each that is there now.
    async fn all_relay_slots(&self) -> Result<Vec<String>> {
        let mut slots = relay_slots(&self.source.client).await?;
        slots.extend(self.moved.relay_slots.iter().cloned());
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }

    /// Whether the listed transactions have ended.
    async fn has_drained(&self) -> Result<bool> {
        let Some(listed) = self.progress.listed.as_ref().filter(|_| !self.progress.transactions_ended) else {
            return Ok(self.progress.transactions_ended);
        };
        let running: Vec<&str> = listed.iter().map(|(transaction, _)| &**transaction).collect();
        let row = self.source.client.query_one(replication::STILL_RUNNING, &[&running]).await;
        Ok(row.context("pg_locks")?.try_get::<_, i64>(0)? == 0)
    }

    /// Whether the target and the relay have come to the LSN.
    async fn positions(&self) -> Result<(bool, bool)> {
        let Some(lsn) = &self.progress.lsn else { return Ok((false, false)) };
        let client = &self.source.client;
        let others = self.all_relay_slots().await?;
        let confirmed = async |slots: &[String]| -> Result<bool> {
            let row = client.query_one(replication::CONFIRMED, &[lsn, &slots]).await.context("slots")?;
            Ok(row.try_get(0)?)
        };
        let own = [replication::name(self.moved.move_id)];
        Ok((confirmed(&own).await?, confirmed(&others).await?))
    }
}

/// The names of the source's other slots, in order.
///
/// # Errors
/// When the shard does not answer.
pub async fn relay_slots(client: &Client) -> Result<Vec<String>> {
    let rows = client.query(replication::RELAY_SLOTS, &[&replication::PREFIX]).await.context("slots")?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn incarnation(client: &Client) -> Result<String> {
    Ok(client.query_one(INCARNATION, &[]).await.context("incarnation()")?.try_get(0)?)
}
