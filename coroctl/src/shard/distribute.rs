//! `coroctl shard distribute`: shares the buckets of new databases out, as the plan has it, without copying.
//!
//! * Each database is born owning every bucket. So all but the planned owner give a bucket up first, on every shard, and only then does the
//!   planned owner take it, at an epoch above all. In between nobody owns it, and at no time do two.
//! * It is for databases without rows. They are looked for before anything changes, and again in the transaction that gives up, while
//!   nobody can write to the tables: a service that runs may have been about to.
//! * Killed anywhere, it leaves buckets that nobody owns, and goes on from there. Where everything is as planned it changes nothing.
//! * A bucket that nobody owns was given up by an earlier run, which names who is to have it. Otherwise its owner is not in the list.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use postgres_protocol::escape::escape_identifier;
use saga::shards::bucket::Bucket;
use saga::shards::placement;
use tokio_postgres::{Client, Transaction};

use super::adopt::{BucketState, Changes, change, known};
use super::mover::Shard;
use super::mover::conditions_read::{is_open, tables};
use super::moving::Owners;
use super::plan;

#[derive(Args)]
pub struct Distribute {
    #[command(flatten)]
    owners: Owners,
}

const WAS_MOVED: &str = "select exists (select from moves)";

/// # Errors
/// When a shard does not answer or is closed, a database has rows, a bucket was moved before, or the list lacks a shard.
pub async fn run(distribute: &Distribute) -> Result<()> {
    let mut shards = Vec::new();
    for name in distribute.owners.names() {
        let shard = distribute.owners.connect(name).await?;
        shard.lock().await?;
        shards.push(shard);
    }
    ensure!(shards.len() > 1, "the list has one shard, and there is nothing to share out");
    let names: Vec<String> = shards.iter().map(|shard| shard.name.clone()).collect();
    let plan = planned(&names)?;
    let rows = read(&shards).await?;
    if plan.iter().enumerate().any(|(bucket, owner)| !is_right(&at(&rows, bucket), *owner)) {
        for shard in &shards {
            ensure_new(shard).await.with_context(|| format!("shard {}", shard.name))?;
        }
        ensure_given_up(&plan, &rows, &names)?;
        for (nth, shard) in shards.iter_mut().enumerate() {
            give_up(shard, nth, &plan, &rows, &names).await?;
        }
        let rows = read(&shards).await?;
        for (nth, shard) in shards.iter_mut().enumerate() {
            take(shard, nth, &plan, &rows).await?;
        }
    }
    for (nth, name) in names.iter().enumerate() {
        let count = plan.iter().filter(|owner| **owner == nth).count();
        saga::say!("Shard {name} owns {count} buckets.");
    }
    Ok(())
}

/// The shard of each bucket.
fn planned(names: &[String]) -> Result<Vec<usize>> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let candidates = plan::candidates(&names, &[])?;
    Bucket::all().map(|bucket| placement::proposed(bucket, &candidates).context("no shard")).collect()
}

async fn read(shards: &[Shard]) -> Result<Vec<Vec<BucketState>>> {
    let mut rows = Vec::with_capacity(shards.len());
    for shard in shards {
        rows.push(known(&shard.client).await.with_context(|| format!("shard {}", shard.name))?);
    }
    Ok(rows)
}

/// One bucket on each shard.
fn at(rows: &[Vec<BucketState>], bucket: usize) -> Vec<&BucketState> {
    rows.iter().map(|rows| &rows[bucket]).collect()
}

/// Whether nobody but the planned owner has the bucket, and no process can believe an older owner.
fn is_right(bucket: &[&BucketState], owner: usize) -> bool {
    let is_below = |other: &BucketState| !other.row.owned && other.row.epoch < bucket[owner].row.epoch;
    bucket[owner].row.owned && bucket.iter().enumerate().all(|(nth, other)| nth == owner || is_below(other))
}

/// The epochs before and after the change by which a shard gives a bucket up, if it has to.
fn given_up(bucket: &[&BucketState], owner: usize, shard: usize) -> Option<(i64, i64)> {
    let row = bucket[shard].row;
    (row.owned && !is_right(bucket, owner)).then_some((row.epoch, row.epoch + 1))
}

/// The epochs before and after the change by which the planned owner takes a bucket, if it has to.
///
/// # Errors
/// When a shard owns it, after all have given it up.
fn taken(bucket: &[&BucketState], owner: usize) -> Result<Option<(i64, i64)>> {
    if is_right(bucket, owner) {
        return Ok(None);
    }
    if bucket.iter().any(|state| state.row.owned) {
        bail!("a bucket has got an owner meanwhile; run this again");
    }
    let highest = bucket.iter().map(|state| state.row.epoch).max().unwrap_or_default();
    Ok(Some((bucket[owner].row.epoch, highest + 1)))
}

/// A database that was never in use.
async fn ensure_new(shard: &Shard) -> Result<()> {
    ensure!(
        is_open(&shard.client).await?,
        "it is closed: it was restored, promoted or closed by hand. Only new databases are given their buckets"
    );
    let was_moved: bool = shard.client.query_one(WAS_MOVED, &[]).await.context("moves")?.try_get(0)?;
    ensure!(
        !was_moved,
        "buckets of it were moved before. `coroctl shard plan` says which should move, and `coroctl shard move` moves them"
    );
    for table in tables(&shard.client).await? {
        ensure_empty(&shard.client, &table).await?;
    }
    Ok(())
}

async fn ensure_empty(client: &Client, table: &str) -> Result<()> {
    let row = client.query_one(&has_rows(table), &[]).await.with_context(|| table.to_owned())?;
    ensure_no_rows(row.try_get(0)?, table)
}

fn has_rows(table: &str) -> String {
    format!("select exists (select from {})", escape_identifier(table))
}

fn ensure_no_rows(has_rows: bool, table: &str) -> Result<()> {
    ensure!(
        !has_rows,
        "{table} has rows. Only empty databases are given their buckets; those with rows are moved (`coroctl shard plan`, `coroctl shard \
         move`)"
    );
    Ok(())
}

/// Of a bucket that nobody owns some shard knows who is to have it.
fn ensure_given_up(plan: &[usize], rows: &[Vec<BucketState>], names: &[String]) -> Result<()> {
    let is_foreign = |(bucket, owner): (usize, &usize)| {
        let states = at(rows, bucket);
        let to_owner = |state: &&BucketState| state.peer.as_ref() == Some(&names[*owner]);
        !states.iter().any(|state| state.row.owned) && !states.iter().any(to_owner)
    };
    ensure!(
        !plan.iter().enumerate().any(is_foreign),
        "there are buckets that no shard of the list owns, and that none has given up for another. The list has to have every shard of \
         the service; nothing was changed"
    );
    Ok(())
}

/// All that this shard has to give up, in one transaction, in which nobody else writes.
async fn give_up(
    shard: &mut Shard,
    nth: usize,
    plan: &[usize],
    rows: &[Vec<BucketState>],
    names: &[String],
) -> Result<()> {
    let on_shard = format!("shard {}", shard.name);
    let tables = tables(&shard.client).await?;
    let transaction = shard.client.transaction().await.with_context(|| on_shard.clone())?;
    lock_empty(&transaction, &tables).await.with_context(|| on_shard.clone())?;
    for (owner, name) in names.iter().enumerate() {
        let mut changes = Changes::default();
        for (number, bucket) in (0_i16..).zip(0_usize..).take(plan.len()).filter(|(_, b)| plan[*b] == owner) {
            if let Some((before, after)) = given_up(&at(rows, bucket), owner, nth) {
                changes.push(number, before, after);
            }
        }
        // Who gives a bucket up for itself takes it again, at an epoch above all.
        let peer = (owner != nth).then_some(name.as_str());
        change(&transaction, &changes, false, peer).await.with_context(|| on_shard.clone())?;
    }
    transaction.commit().await.with_context(|| on_shard.clone())?;
    shard.await_standby().await
}

/// Waits until nobody writes to the tables, and keeps everybody from it.
async fn lock_empty(transaction: &Transaction<'_>, tables: &[String]) -> Result<()> {
    for table in tables {
        let lock = format!("lock table {} in share mode", escape_identifier(table));
        transaction.batch_execute(&lock).await.with_context(|| format!("cannot lock {table}"))?;
    }
    for table in tables {
        let row = transaction.query_one(&has_rows(table), &[]).await.with_context(|| table.clone())?;
        ensure_no_rows(row.try_get(0)?, table)?;
    }
    Ok(())
}

async fn take(shard: &mut Shard, nth: usize, plan: &[usize], rows: &[Vec<BucketState>]) -> Result<()> {
    let mut changes = Changes::default();
    for (number, bucket) in (0_i16..).zip(0_usize..).take(plan.len()).filter(|(_, b)| plan[*b] == nth) {
        if let Some((before, after)) = taken(&at(rows, bucket), nth)? {
            changes.push(number, before, after);
        }
    }
    let on_shard = format!("shard {}", shard.name);
    let transaction = shard.client.transaction().await.with_context(|| on_shard.clone())?;
    change(&transaction, &changes, true, None).await.with_context(|| on_shard.clone())?;
    transaction.commit().await.with_context(|| on_shard.clone())?;
    shard.await_standby().await
}

#[cfg(test)]
mod tests {
    use super::super::moves::Ownership;
    use super::*;

    fn states(rows: &[(i64, bool)]) -> Vec<BucketState> {
        let state = |(epoch, owned): &(i64, bool)| BucketState {
            row: Ownership { epoch: *epoch, owned: *owned },
            peer: None,
        };
        rows.iter().map(state).collect()
    }

    #[test]
    fn a_bucket_is_given_up_by_all_before_the_planned_owner_takes_it() {
        for (rows, gives_up, takes) in [
            // Born.
            (&[(1, true), (1, true)][..], &[0, 1][..], None),
            (&[(2, false), (1, true)], &[1], None),
            // `add` was run.
            (&[(1, true), (2, false)], &[0], None),
            (&[(2, false), (2, false)], &[], Some((2, 3))),
            (&[(2, false), (9, false)], &[], Some((9, 10))),
            // Done.
            (&[(2, false), (3, true)], &[], None),
        ] {
            let states = states(rows);
            let bucket: Vec<&BucketState> = states.iter().collect();
            let found: Vec<usize> = (0..2).filter(|nth| given_up(&bucket, 1, *nth).is_some()).collect();
            assert_eq!(found, gives_up, "{rows:?}");
            if gives_up.is_empty() {
                assert_eq!(taken(&bucket, 1).unwrap(), takes, "{rows:?}");
            } else {
                assert!(taken(&bucket, 1).is_err(), "{rows:?}");
            }
        }
    }

    /// What a run does to one bucket that is killed after so many of its transactions.
    fn run_until(states: &mut [BucketState], owner: usize, transactions: usize) {
        let seen = states.to_vec();
        let seen: Vec<&BucketState> = seen.iter().collect();
        for nth in (0..states.len()).take(transactions) {
            if let Some((_, epoch)) = given_up(&seen, owner, nth) {
                states[nth].row = Ownership { epoch, owned: false };
            }
        }
        if transactions <= states.len() {
            return;
        }
        if let Some((_, epoch)) = taken(&states.iter().collect::<Vec<_>>(), owner).unwrap() {
            assert!(states.iter().all(|state| !state.row.owned && state.row.epoch < epoch), "{states:?}");
            states[owner].row = Ownership { epoch, owned: true };
        }
    }

    /// From whatever rows, and killed twice wherever that may be.
    #[test]
    fn whoever_is_killed_is_followed_by_one_that_ends() {
        let row = |number: i64| (1 + number / 2 % 3, number % 2 == 1);
        for number in 0..216 {
            let rows = [row(number), row(number / 6), row(number / 36)];
            for (owner, kills) in (0..3).flat_map(|owner| (0..25).map(move |kills| (owner, kills))) {
                let mut states = states(&rows);
                for transactions in [kills % 5, kills / 5, usize::MAX] {
                    run_until(&mut states, owner, transactions);
                }
                assert!(is_right(&states.iter().collect::<Vec<_>>(), owner), "{rows:?} became {states:?}");
            }
        }
    }
}
