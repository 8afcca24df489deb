//! The records of moves: `moves` and `moving_buckets` of both shards (`sql/*/V*__moves.sql`).

use anyhow::{Context, Result, bail, ensure};
use saga::shards::bucket::Bucket;
use tokio_postgres::{Client, Row, Transaction};
use uuid::Uuid;

use super::super::moves::{AtSource, AtTarget, Attempt, Outcome, Ownership, Record, Side};

/// What is known of a move before it is observed.
#[derive(Clone, Debug)]
pub struct Move {
    pub move_id: Uuid,
    pub buckets: Vec<Bucket>,
    /// Of each bucket.
    pub attempts: Vec<Attempt>,
    /// Of source and target.
    pub incarnations: [String; 2],
    pub operator: String,
    /// The slots of the source's relay.
    pub relay_slots: Vec<String>,
    /// The tables with a `user_id`, and the migration that made them so.
    pub tables: Vec<String>,
    pub schema_version: i32,
}

impl Recorded {
    /// What the record says of the move, whatever has become of it.
    pub fn described(&self) -> Move {
        Move {
            move_id: self.move_id,
            buckets: self.buckets.iter().filter_map(|number| Bucket::new(*number)).collect(),
            attempts: self.attempts.clone(),
            incarnations: self.incarnations.clone(),
            operator: self.operator.clone(),
            relay_slots: self.relay_slots.clone(),
            tables: self.tables.clone(),
            schema_version: self.schema_version,
        }
    }
}

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub move_id: Uuid,
    pub side: Side,
    pub peer: String,
    pub buckets: Vec<i16>,
    pub attempts: Vec<Attempt>,
    pub incarnations: [String; 2],
    pub record: Record,
    pub operator: String,
    pub abort_requested: bool,
    pub grant_recorded: bool,
    pub relay_slots: Vec<String>,
    pub tables: Vec<String>,
    pub schema_version: i32,
}

const COLUMNS: &str = "move_id, side, peer, buckets, source_epochs, target_epochs, source_incarnation, \
     target_incarnation, state, operator, abort_requested_at is not null, relay_slots, \
     granted_at is not null, tables, schema_version";

const OWNERSHIP: &str = "select epoch, owned from owned_buckets where bucket = any ($1::int2[]) order by array_position($1::int2[], bucket)";

const INSERT: &str = "
    insert into moves (move_id, side, peer, buckets, source_epochs, target_epochs, source_incarnation, target_incarnation,
                       operator, relay_slots, tables, schema_version)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) on conflict do nothing";

const TAKE_BUCKETS: &str = "
    insert into moving_buckets (bucket, move_id) select unnest($1::int2[]), $2 on conflict (bucket) do nothing";

// Migrations take this lock for themselves (`sql/src/admin.rs`).
const LOCK_SCHEMA: &str = "select pg_try_advisory_xact_lock_shared(hashtext('coro migrations'))";
pub const SCHEMA_VERSION: &str = "select max(version) from refinery_schema_history";

const NEXT_ATTEMPT: &str = "update moves set source_epochs = $2, target_epochs = $3 where move_id = $1";

const RECORD_GRANT: &str = "update moves set granted_at = coalesce(granted_at, now()) where move_id = $1";

const CLOSE: &str = "update moves set state = $2, ended_at = now() where move_id = $1 and state = 'open'";
const FREE_BUCKETS: &str = "delete from moving_buckets where move_id = $1";

const REQUEST_ABORT: &str = "
    update moves set abort_requested_at = coalesce(abort_requested_at, now())
     where move_id = $1 and side = 'source' and state = 'open'";

impl Move {
    pub fn numbers(&self) -> Vec<i16> {
        self.buckets.iter().map(|bucket| bucket.number()).collect()
    }

    pub fn epochs(&self, of: impl Fn(Attempt) -> i64) -> Vec<i64> {
        self.attempts.iter().map(|attempt| of(*attempt)).collect()
    }

    /// The state of all buckets at the source; they change together.
    pub fn at_source(&self, rows: &[Ownership]) -> AtSource {
        together(
            self.attempts.iter().zip(rows).map(|(attempt, row)| AtSource::of(*row, *attempt)),
            AtSource::Other,
        )
    }

    pub fn at_target(&self, rows: &[Ownership]) -> AtTarget {
        together(
            self.attempts.iter().zip(rows).map(|(attempt, row)| AtTarget::of(*row, *attempt)),
            AtTarget::Other,
        )
    }
}

/// The one state of all; `otherwise` if they differ.
fn together<S: PartialEq>(mut states: impl Iterator<Item = S>, otherwise: S) -> S {
    let Some(first) = states.next() else { return otherwise };
    if states.all(|state| state == first) { first } else { otherwise }
}

/// The buckets' rows on a shard, in their order.
///
/// # Errors
/// When the shard does not answer, or lacks a bucket.
pub async fn ownership(client: &Client, buckets: &[i16]) -> Result<Vec<Ownership>> {
    let rows = client.query(OWNERSHIP, &[&buckets]).await.context("cannot read owned_buckets")?;
    ensure!(rows.len() == buckets.len(), "owned_buckets has {} of {} buckets", rows.len(), buckets.len());
    rows.iter().map(|row| Ok(Ownership { epoch: row.try_get(0)?, owned: row.try_get(1)? })).collect()
}

/// The record of a move on a shard, if it has one.
///
/// # Errors
/// When the shard does not answer.
pub async fn read(client: &Client, move_id: Uuid) -> Result<Option<Recorded>> {
    let select = format!("select {COLUMNS} from moves where move_id = $1");
    let row = client.query_opt(&select, &[&move_id]).await.context("cannot read moves")?;
    row.as_ref().map(recorded).transpose()
}

/// The open records of a shard, the oldest first.
///
/// # Errors
/// When the shard does not answer.
pub async fn open(client: &Client) -> Result<Vec<Recorded>> {
    let select = format!("select {COLUMNS} from moves where state = 'open' order by began_at, move_id");
    let rows = client.query(&select, &[]).await.context("cannot read moves")?;
    rows.iter().map(recorded).collect()
}

fn recorded(row: &Row) -> Result<Recorded> {
    let side = match row.try_get(1)? {
        "source" => Side::Source,
        "target" => Side::Target,
        other => bail!("moves has the side {other:?}"),
    };
    let record = match row.try_get(8)? {
        "open" => Record::Open,
        "moved" => Record::Closed(Outcome::Moved),
        "rolled_back" => Record::Closed(Outcome::RolledBack),
        other => bail!("moves has the state {other:?}"),
    };
    let (source, target): (Vec<i64>, Vec<i64>) = (row.try_get(4)?, row.try_get(5)?);
    let attempt = |(source_epoch, target_epoch)| Attempt { source_epoch, target_epoch };
    Ok(Recorded {
        move_id: row.try_get(0)?,
        side,
        peer: row.try_get(2)?,
        buckets: row.try_get(3)?,
        attempts: source.into_iter().zip(target).map(attempt).collect(),
        incarnations: [row.try_get(6)?, row.try_get(7)?],
        record,
        operator: row.try_get(9)?,
        abort_requested: row.try_get(10)?,
        relay_slots: row.try_get(11)?,
        grant_recorded: row.try_get(12)?,
        tables: row.try_get(13)?,
        schema_version: row.try_get(14)?,
    })
}

/// No migration is applied until the end of the transaction. The tables are those of the move, which later migrations leave alone: they find
/// its record.
///
/// # Errors
/// When one is being applied, was applied since the move was checked, or the shard does not answer.
pub async fn lock_schema(transaction: &Transaction<'_>, moved: &Move) -> Result<()> {
    let is_locked: bool =
        transaction.query_one(LOCK_SCHEMA, &[]).await.context("the lock of migrations")?.try_get(0)?;
    ensure!(is_locked, "a migration is being applied. Run this again once it has ended");
    let version: i32 =
        transaction.query_one(SCHEMA_VERSION, &[]).await.context("the migrations")?.try_get(0)?;
    ensure!(
        version == moved.schema_version,
        "migration {version} was applied since the move was checked, which found {}. Abort the move if it has begun, and move the buckets once \
         both shards have the same migrations",
        moved.schema_version
    );
    Ok(())
}

/// Writes the record on one side, and takes its buckets.
///
/// # Errors
/// When another open move has one of them there, or the shard does not answer.
pub async fn announce(transaction: &Transaction<'_>, moved: &Move, side: Side, peer: &str) -> Result<()> {
    let name = match side {
        Side::Source => "source",
        Side::Target => "target",
    };
    let numbers = moved.numbers();
    let source = moved.epochs(|attempt| attempt.source_epoch);
    let target = moved.epochs(|attempt| attempt.target_epoch);
    let [source_incarnation, target_incarnation] = &moved.incarnations;
    let inserted = transaction
        .execute(
            INSERT,
            &[
                &moved.move_id,
                &name,
                &peer,
                &numbers,
                &source,
                &target,
                source_incarnation,
                target_incarnation,
                &moved.operator,
                &moved.relay_slots,
                &moved.tables,
                &moved.schema_version,
            ],
        )
        .await
        .context("cannot write the record")?;
    if inserted == 0 {
        return Ok(());
    }
    let taken =
        transaction.execute(TAKE_BUCKETS, &[&numbers, &moved.move_id]).await.context("moving_buckets")?;
    ensure!(taken == numbers.len() as u64, "another move that has not ended has some of the buckets");
    Ok(())
}

/// # Errors
/// When the shard does not answer.
pub async fn next_attempt(transaction: &Transaction<'_>, moved: &Move, attempts: &[Attempt]) -> Result<()> {
    let source: Vec<i64> = attempts.iter().map(|attempt| attempt.source_epoch).collect();
    let target: Vec<i64> = attempts.iter().map(|attempt| attempt.target_epoch).collect();
    transaction.execute(NEXT_ATTEMPT, &[&moved.move_id, &source, &target]).await.context("moves")?;
    Ok(())
}

/// At the source: the target owns the buckets.
///
/// # Errors
/// When the shard does not answer.
pub async fn record_grant(transaction: &Transaction<'_>, move_id: Uuid) -> Result<()> {
    transaction.execute(RECORD_GRANT, &[&move_id]).await.context("cannot record the grant")?;
    Ok(())
}

/// # Errors
/// When the shard does not answer.
pub async fn close(transaction: &Transaction<'_>, move_id: Uuid, outcome: Outcome) -> Result<()> {
    let state = match outcome {
        Outcome::Moved => "moved",
        Outcome::RolledBack => "rolled_back",
    };
    transaction.execute(CLOSE, &[&move_id, &state]).await.context("cannot close the record")?;
    transaction.execute(FREE_BUCKETS, &[&move_id]).await.context("cannot free the buckets")?;
    Ok(())
}

/// Asks whoever carries out the move to roll it back; false if the shard has no open record of it as its source.
///
/// # Errors
/// When the shard does not answer.
pub async fn request_abort(client: &Client, move_id: Uuid) -> Result<bool> {
    Ok(client.execute(REQUEST_ABORT, &[&move_id]).await.context("cannot write the record")? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_in_different_states_are_in_none() {
        assert_eq!(together([1, 1].into_iter(), 0), 1);
        assert_eq!(together([1, 2].into_iter(), 0), 0);
        assert_eq!(together([].into_iter(), 0), 0);
    }
}
