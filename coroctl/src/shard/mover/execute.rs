//! Makes the steps of a move, each in one transaction with its guards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres_protocol::escape::escape_identifier;
use tokio::time::sleep;
use tokio_postgres::Transaction;
use uuid::Uuid;

use super::super::moves::{Attempt, Ownership, Side, Step};
use super::super::replication;
use super::record::{self, Move};
use super::{Mover, Walk};

/// Blocks of a table that one transaction reads while it deletes: some tens of milliseconds.
const BLOCKS: i64 = 256;
const SLOT_FREE_TIMEOUT: Duration = Duration::from_secs(15);
const SLOT_FREE_INTERVAL: Duration = Duration::from_millis(100);

const LOCK_RECORD: &str = "select from moves where move_id = $1 and state = 'open' for update";
const LOCK_BUCKETS: &str = "
    with locked as (select bucket, epoch, owned from owned_buckets where bucket = any ($1::int2[]) order by bucket for update)
    select epoch, owned from locked order by array_position($1::int2[], bucket)";
const CHANGE: &str = "select change_ownership($1, $2, $3, $4, $5)";
const IS_SUBSCRIBED: &str = "
    select exists (select from pg_subscription s join pg_database d on d.oid = s.subdbid
                    where s.subname = $1 and d.datname = current_database())";
const IS_IN_INCARNATION: &str = "select incarnation() = $1";
const BLOCKS_OF: &str = "select pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint";
const IS_PUBLISHED: &str = "select exists (select from pg_publication where pubname = $1)";
const IS_SLOT_ACTIVE: &str =
    "select exists (select from pg_replication_slots where slot_name = $1 and active)";

impl Mover {
    pub(super) async fn carry_out(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Announce(side) => self.announce(side).await,
            Step::Empty => self.delete_chunk(step, Side::Target).await,
            Step::Remove => self.delete_chunk(step, Side::Source).await,
            Step::MakeSlot => self.make_slot().await,
            Step::Subscribe => self.subscribe().await,
            Step::Unsubscribe => self.unsubscribe().await,
            Step::DropSlot => self.drop_slot().await,
            Step::Fence | Step::Grant | Step::Bar | Step::TakeBack => self.change(step).await,
            Step::RecordGrant => self.record_grant().await,
            Step::ListTransactions => self.list_transactions().await,
            Step::EndTransactions => self.end_transactions().await,
            Step::TakeLsn => self.take_lsn().await,
            Step::Close(side, outcome) => {
                let (moved, shard) = (&self.moved, side_of(&mut self.source, &mut self.target, side));
                let transaction = shard.client.transaction().await?;
                if guard(&transaction, moved, step).await? {
                    if side == Side::Source {
                        // With the record, so that none is left of which nobody knows.
                        drop_publication(&transaction, moved.move_id).await?;
                    }
                    record::close(&transaction, moved.move_id, outcome).await?;
                }
                transaction.commit().await.context("cannot close the record")
            }
            Step::AwaitCopy
            | Step::AwaitTransactions
            | Step::AwaitTarget
            | Step::AwaitRelay
            | Step::Done(_)
            | Step::Refuse(_) => Ok(()),
        }
    }

    async fn announce(&mut self, side: Side) -> Result<()> {
        let peer = match side {
            Side::Source => self.target.name.clone(),
            Side::Target => self.source.name.clone(),
        };
        let is_fenced = self.is_fenced();
        let (moved, shard) = (&self.moved, side_of(&mut self.source, &mut self.target, side));
        let transaction = shard.client.transaction().await?;
        // Under the fence the record is for the bar, which no migration may hold up.
        if !is_fenced {
            let locked = record::lock_schema(&transaction, moved).await;
            locked.with_context(|| format!("shard {}", shard.name))?;
        }
        record::announce(&transaction, moved, side, &peer).await?;
        transaction.commit().await.context("cannot write the record")
    }

    /// Fence, grant, bar and take back.
    async fn change(&mut self, step: Step) -> Result<()> {
        let first = self.moved.attempts.first().copied().unwrap_or_default();
        let Some(side) = step.compare_and_set(first).map(|change| change.side) else { return Ok(()) };
        let peer = match side {
            Side::Source => self.target.name.clone(),
            Side::Target => self.source.name.clone(),
        };
        let (moved, shard) = (&self.moved, side_of(&mut self.source, &mut self.target, side));
        let changes: Vec<_> =
            moved.attempts.iter().filter_map(|attempt| step.compare_and_set(*attempt)).collect();
        let known: Vec<i64> = changes.iter().map(|change| change.known).collect();
        let epochs: Vec<i64> = changes.iter().map(|change| change.next.epoch).collect();
        let owned = changes.first().is_some_and(|change| change.next.owned);
        let transaction = shard.client.transaction().await?;
        let is_open = guard(&transaction, moved, step).await?;
        if step == Step::Grant && !(is_open && may_grant(&transaction, moved).await?) {
            // What is observed next says why, and leads to a bar.
            return Ok(());
        }
        ensure!(is_open, "the record was closed meanwhile; run this again");
        transaction
            .query_one(CHANGE, &[&moved.numbers(), &known, &epochs, &owned, &peer])
            .await
            .with_context(|| format!("{step:?} at shard {}", shard.name))?;
        if step == Step::TakeBack {
            let attempts: Vec<Attempt> =
                moved.attempts.iter().map(|attempt| attempt.after_rollback()).collect();
            record::next_attempt(&transaction, moved, &attempts).await?;
        }
        if step == Step::Fence {
            // Before the commit, so that the time is never taken for shorter than it is; and not before all else has gone well, since from
            // here on an error counts as one under the fence.
            self.progress.forget_attempt();
            self.progress.fenced_at = Some(Instant::now());
        }
        transaction.commit().await.with_context(|| format!("{step:?} at shard {}", shard.name))?;
        shard.await_standby().await
    }

    async fn record_grant(&mut self) -> Result<()> {
        let transaction = self.source.client.transaction().await?;
        let is_open = guard(&transaction, &self.moved, Step::RecordGrant).await?;
        ensure!(is_open, "the record was closed meanwhile; run this again");
        record::record_grant(&transaction, self.moved.move_id).await?;
        transaction.commit().await.context("cannot record the grant")?;
        self.source.await_standby().await
    }

    async fn make_slot(&mut self) -> Result<()> {
        let client = &self.source.client;
        let move_id = self.moved.move_id;
        let published = client.query_one(IS_PUBLISHED, &[&replication::name(move_id)]).await?;
        if !published.try_get::<_, bool>(0)? {
            let create = replication::create_publication(move_id, &self.moved.tables, &self.moved.buckets)?;
            client.batch_execute(&create).await.context("cannot make the publication")?;
        }
        client.batch_execute(&replication::create_slot(move_id)).await.context("cannot make the slot")
    }

    async fn subscribe(&mut self) -> Result<()> {
        let create = replication::create_subscription(self.moved.move_id, &self.source.url);
        let transaction = self.target.client.transaction().await?;
        if guard(&transaction, &self.moved, Step::Subscribe).await? {
            // The text holds a password, so it stays out of the error.
            transaction.batch_execute(&create).await.context("cannot make the subscription")?;
        }
        self.progress.has_compared = false;
        // Rows come. Whoever removes the subscription leaves them behind.
        self.progress.target_walk = Walk::Begins;
        transaction.commit().await.context("cannot make the subscription")
    }

    async fn unsubscribe(&mut self) -> Result<()> {
        let transaction = self.target.client.transaction().await?;
        drop_subscription(&transaction, self.moved.move_id).await?;
        // Rows may have come.
        self.progress.target_walk = Walk::Begins;
        transaction.commit().await.context("cannot drop the subscription")
    }

    async fn drop_slot(&mut self) -> Result<()> {
        let (client, move_id) = (&self.source.client, self.moved.move_id);
        let name = replication::name(move_id);
        let began = Instant::now();
        while client.query_one(IS_SLOT_ACTIVE, &[&name]).await?.try_get::<_, bool>(0)? {
            if began.elapsed() > SLOT_FREE_TIMEOUT {
                bail!("the slot {name} is still in use; run this again once its reader has gone");
            }
            sleep(SLOT_FREE_INTERVAL).await;
        }
        client.batch_execute(&replication::drop_slot(move_id)).await.context("cannot drop the slot")
    }

    async fn list_transactions(&mut self) -> Result<()> {
        let rows = self.source.client.query(replication::RUNNING, &[]).await.context("pg_locks")?;
        let listed =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<Vec<_>>>()?;
        self.progress.listed = Some(listed);
        Ok(())
    }

    async fn end_transactions(&mut self) -> Result<()> {
        let Some(listed) = &self.progress.listed else { return Ok(()) };
        let transactions: Vec<&str> = listed.iter().map(|(transaction, _)| &**transaction).collect();
        let processes: Vec<i32> = listed.iter().map(|(_, process)| *process).collect();
        self.source
            .client
            .query_one(replication::END, &[&transactions, &processes])
            .await
            .context("pg_locks")?;
        Ok(())
    }

    async fn take_lsn(&mut self) -> Result<()> {
        let name = replication::name(self.moved.move_id);
        self.progress.lsn =
            Some(self.source.client.query_one(replication::MARK, &[&name]).await?.try_get(0)?);
        Ok(())
    }

    /// Deletes the buckets' rows in the next blocks of a table.
    async fn delete_chunk(&mut self, step: Step, side: Side) -> Result<()> {
        let walk = match side {
            Side::Source => self.progress.source_walk,
            Side::Target => self.progress.target_walk,
        };
        let (table, block) = match walk {
            Walk::Begins => (0, 0),
            Walk::At(table, block) => (table, block),
            Walk::Done => return Ok(()),
        };
        let next = match self.moved.tables.get(table) {
            None => Walk::Done,
            Some(name) => {
                let shard = side_of(&mut self.source, &mut self.target, side);
                let transaction = shard.client.transaction().await?;
                ensure!(
                    guard(&transaction, &self.moved, step).await?,
                    "the record was closed meanwhile; run this again"
                );
                let quoted = escape_identifier(name);
                let delete = format!(
                    "delete from {quoted} where ctid >= '({block},0)' and ctid < '({},0)' and bucket(user_id) = any ($1::int2[])",
                    block + BLOCKS
                );
                transaction.execute(&delete, &[&self.moved.numbers()]).await.with_context(|| name.clone())?;
                let blocks: i64 = transaction.query_one(BLOCKS_OF, &[&quoted]).await?.try_get(0)?;
                transaction.commit().await.with_context(|| name.clone())?;
                if block + BLOCKS >= blocks {
                    Walk::At(table + 1, 0)
                } else {
                    Walk::At(table, block + BLOCKS)
                }
            }
        };
        match side {
            Side::Source => self.progress.source_walk = next,
            Side::Target => self.progress.target_walk = next,
        }
        Ok(())
    }
}

/// Drops the publication of the move at its source, if there is one.
///
/// # Errors
/// When the shard does not answer.
pub async fn drop_publication(transaction: &Transaction<'_>, move_id: Uuid) -> Result<()> {
    let statement = replication::drop_publication(move_id);
    transaction.batch_execute(&statement).await.context("cannot drop the publication")
}

/// Drops the subscription of the move at its target, if there is one, and leaves its slot alone.
///
/// # Errors
/// When the shard does not answer.
pub async fn drop_subscription(transaction: &Transaction<'_>, move_id: Uuid) -> Result<()> {
    if transaction.query_one(IS_SUBSCRIBED, &[&replication::name(move_id)]).await?.try_get(0)? {
        for statement in replication::drop_subscription(move_id) {
            transaction.batch_execute(&statement).await.context("cannot drop the subscription")?;
        }
    }
    Ok(())
}

fn side_of<'a>(
    source: &'a mut super::Shard,
    target: &'a mut super::Shard,
    side: Side,
) -> &'a mut super::Shard {
    match side {
        Side::Source => source,
        Side::Target => target,
    }
}

/// The target is as it was before the fence, in the transaction that grants it the buckets.
async fn may_grant(transaction: &Transaction<'_>, moved: &Move) -> Result<bool> {
    let name = replication::name(moved.move_id);
    let subscribed: bool = transaction.query_one(IS_SUBSCRIBED, &[&name]).await?.try_get(0)?;
    let same = transaction.query_one(IS_IN_INCARNATION, &[&moved.incarnations[1]]).await?;
    Ok(subscribed && same.try_get(0)?)
}

/// Locks what the step locks. False where the record is not open, or a bucket's row does not permit the step.
async fn guard(transaction: &Transaction<'_>, moved: &Move, step: Step) -> Result<bool> {
    if step.locks_open_record().is_some()
        && transaction
            .query_opt(LOCK_RECORD, &[&moved.move_id])
            .await
            .context("cannot lock the record")?
            .is_none()
    {
        return Ok(false);
    }
    let rows =
        transaction.query(LOCK_BUCKETS, &[&moved.numbers()]).await.context("cannot lock the buckets")?;
    for (row, attempt) in rows.iter().zip(&moved.attempts) {
        let row = Ownership { epoch: row.try_get(0)?, owned: row.try_get(1)? };
        ensure!(step.permits(*attempt, row), "{step:?} does not go with {row:?}; run this again");
    }
    if step == Step::Empty {
        let name = replication::name(moved.move_id);
        let subscribed: bool = transaction.query_one(IS_SUBSCRIBED, &[&name]).await?.try_get(0)?;
        ensure!(!subscribed, "the target has the subscription of the move; run this again");
    }
    Ok(rows.len() == moved.attempts.len())
}
