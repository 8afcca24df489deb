//! Reads the facts of a move from both shards.

use anyhow::{Context, Result};

use super::super::moves::{Observed, Record, Side, Subscription};
use super::super::replication::{self, PREFIX};
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
/// The slots of the relay, and of whoever else reads this database.
const OTHER_SLOTS: &str = "
    select coalesce(array_agg(slot_name::text), '{}') from pg_replication_slots
     where database = current_database() and slot_type = 'logical' and not temporary and slot_name not like $1";

impl Mover {
    pub(super) async fn observe(&mut self) -> Result<Observed> {
        let (source, target) = (&self.source.client, &self.target.client);
        let numbers = self.moved.numbers();
        let (source_record, target_record) = tokio::try_join!(
            record::read(source, self.moved.move_id),
            record::read(target, self.moved.move_id)
        )?;
        if let Some(recorded) = &source_record {
            self.moved.attempts.clone_from(&recorded.attempts);
            self.moved.incarnations.clone_from(&recorded.incarnations);
        }
        let (source_rows, target_rows) =
            tokio::try_join!(record::ownership(source, &numbers), record::ownership(target, &numbers))?;
        self.drained().await?;
        let (target_has_flushed, relay_has_acknowledged) = self.positions().await?;
        let abort_requested = source_record.as_ref().is_some_and(|recorded| recorded.abort_requested);
        let state = |recorded: Option<&Recorded>| recorded.map_or(Record::Absent, |recorded| recorded.record);
        Ok(Observed {
            source: self.moved.at_source(&source_rows),
            target: self.moved.at_target(&target_rows),
            source_record: state(source_record.as_ref()),
            target_record: state(target_record.as_ref()),
            has_slot: self.has_slot().await?,
            subscription: self.subscription().await?,
            source_has_rows: self.progress.source_walk != Walk::Done,
            target_has_rows: self.progress.target_walk != Walk::Done,
            drain: self.progress.drain(target_has_flushed, relay_has_acknowledged),
            fenced_for: self.progress.fenced_at.map(|at| at.elapsed()).unwrap_or_default(),
            abort_requested,
            same_incarnations: self.incarnation(Side::Source).await? == self.moved.incarnations[0]
                && self.incarnation(Side::Target).await? == self.moved.incarnations[1],
        })
    }

    async fn incarnation(&self, side: Side) -> Result<String> {
        let client = match side {
            Side::Source => &self.source.client,
            Side::Target => &self.target.client,
        };
        Ok(client.query_one(INCARNATION, &[]).await.context("incarnation()")?.try_get(0)?)
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
        if self.progress.fenced_at.is_some() || self.lag().await? <= LAG_BYTES_MAX {
            return Ok(Subscription::Follows);
        }
        Ok(Subscription::Copying)
    }

    /// Every table follows, and the target has not far to go.
    pub(super) async fn may_compare(&self) -> Result<bool> {
        let name = replication::name(self.moved.move_id);
        let row = self.target.client.query_opt(SUBSCRIPTION, &[&name]).await.context("pg_subscription")?;
        let follows = row.map(|row| row.try_get::<_, Option<bool>>(0)).transpose()?.flatten() == Some(true);
        Ok(follows && self.lag().await? <= LAG_BYTES_MAX)
    }

    async fn lag(&self) -> Result<i64> {
        let name = replication::name(self.moved.move_id);
        let row = self.source.client.query_opt(LAG, &[&name]).await.context("pg_replication_slots")?;
        row.map_or(Ok(i64::MAX), |row| Ok(row.try_get(0)?))
    }

    /// Whether the listed transactions have ended.
    async fn drained(&mut self) -> Result<()> {
        let Some(listed) = self.progress.listed.as_ref().filter(|_| !self.progress.transactions_ended) else {
            return Ok(());
        };
        let running: Vec<&str> = listed.iter().map(|(transaction, _)| &**transaction).collect();
        let row = self.source.client.query_one(replication::STILL_RUNNING, &[&running]).await;
        self.progress.transactions_ended = row.context("pg_locks")?.try_get::<_, i64>(0)? == 0;
        Ok(())
    }

    /// Whether the target and the relay have come to the LSN.
    async fn positions(&self) -> Result<(bool, bool)> {
        let Some(lsn) = &self.progress.lsn else { return Ok((false, false)) };
        let client = &self.source.client;
        let others = client.query_one(OTHER_SLOTS, &[&format!("{PREFIX}%")]).await.context("slots")?;
        let others: Vec<String> = others.try_get(0)?;
        let confirmed = async |slots: &[String]| -> Result<bool> {
            let row = client.query_one(replication::CONFIRMED, &[lsn, &slots]).await.context("slots")?;
            Ok(row.try_get(0)?)
        };
        let own = [replication::name(self.moved.move_id)];
        Ok((confirmed(&own).await?, confirmed(&others).await?))
    }
}
