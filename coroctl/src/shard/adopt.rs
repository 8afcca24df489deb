//! `coroctl shard adopt`: a shard that was restored gives up the buckets that were moved away from it since.
//!
//! * A restored database is closed to its services until `recover` has opened it. `adopt` comes before that.
//! * A bucket has left the restored shard if another one owns it at a higher epoch, or has passed it on to a third. The restored shard
//!   gives it up, at an epoch above all, whatever its rows say: a process that starts while the other shard is away would believe it
//!   otherwise.
//! * A higher epoch alone says nothing: `add` raised it, a fence was lifted, or the bucket went there and came back. So a shard that
//!   does not own the bucket counts only with a `peer` that is a third shard. Otherwise the restored shard keeps the bucket, at an
//!   epoch above all, since its own one may have been used.
//! * A bucket that nobody owns then, since the restored shard had been granted it after the backup, is named and left alone: its rows are
//!   on no shard, and come back by `recover`.
//! * A move that has ended at its other shard has ended here too. So has one from here whose target was granted the buckets after the
//!   backup: they are given up as others are, since the target serves them, and `resume` closes the target's record.
//! * The buckets of any other move that has not ended are named and left alone, and so are those with two owners at one epoch. Then it
//!   fails.
//! * Every shard has to answer: one that is away may have the bucket.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::connections::ranges;
use super::mover::record::{self, Recorded};
use super::mover::{Shard, drop_publication, drop_subscription};
use super::moves::{Outcome, Ownership, Record, Side};
use super::moving::Owners;

#[derive(Args)]
pub struct Adopt {
    /// The shard that was restored.
    name: String,
    /// Print what would be given up, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    owners: Owners,
}

/// A bucket on one shard.
#[derive(Clone, Debug)]
pub(super) struct BucketState {
    pub(super) row: Ownership,
    /// The other shard of its last change.
    pub(super) peer: Option<String>,
}

/// What becomes of a bucket of the restored shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as the others know it.
    Agrees,
    /// It gives the bucket up, at this epoch.
    GivesUp(i64),
    /// It keeps the bucket, at the epoch after this one, at which it gives it up.
    Keeps(i64),
    /// Nobody owns it: it went to the restored shard after the backup.
    Lost,
    /// Another shard owns it at the same epoch. No move makes this: it was not added.
    Contested,
}

/// `others`: the bucket on all shards but the restored one, which has this name.
fn verdict(name: &str, own: Ownership, others: &[BucketState]) -> Verdict {
    let owner = others.iter().filter(|other| other.row.owned).map(|other| other.row.epoch).max();
    if !own.owned {
        return if owner.is_some() { Verdict::Agrees } else { Verdict::Lost };
    }
    let highest = others.iter().map(|other| other.row.epoch).max().unwrap_or_default();
    let last_peer = others
        .iter()
        .filter(|other| !other.row.owned && other.row.epoch >= own.epoch)
        .filter_map(|other| Some((other.row.epoch, other.peer.as_deref()?)))
        .max();
    let was_passed_on = last_peer.is_some_and(|(_, peer)| peer != name);
    match owner {
        Some(epoch) if epoch > own.epoch => Verdict::GivesUp(highest + 1),
        Some(epoch) if epoch == own.epoch => Verdict::Contested,
        Some(_) | None if was_passed_on => Verdict::GivesUp(highest + 1),
        Some(_) | None if highest >= own.epoch => Verdict::Keeps(highest + 1),
        // It has the highest epoch, and so is believed. Another owner has to give up, which is another's restore.
        Some(_) | None => Verdict::Agrees,
    }
}

const KNOWN: &str = "select epoch, owned, peer from owned_buckets order by bucket";
const BUCKETS: i16 = 1024;
const CHANGE: &str = "select change_ownership($1, $2, $3, $4, $5)";

/// Every bucket of a shard, in order.
pub(super) async fn known(client: &Client) -> Result<Vec<BucketState>> {
    let rows = client.query(KNOWN, &[]).await.context("cannot read owned_buckets")?;
    ensure!(rows.len() == BUCKETS as usize, "owned_buckets has {} rows, not {BUCKETS}", rows.len());
    rows.iter()
        .map(|row| {
            let (epoch, owned) = (row.try_get(0)?, row.try_get(1)?);
            Ok(BucketState { row: Ownership { epoch, owned }, peer: row.try_get(2)? })
        })
        .collect()
}

/// The records that stand in the way, or have to be closed.
#[derive(Default)]
struct Moves {
    /// Open in the restored shard, and closed at their other shard.
    ended: Vec<(Uuid, Outcome)>,
    /// From the restored shard to this one, which was granted the buckets after the backup; as the target recorded them.
    granted: Vec<(Recorded, String)>,
    open: BTreeSet<Uuid>,
    /// The buckets of the open ones.
    buckets: BTreeSet<i16>,
}

async fn moves(
    shard: &Shard,
    own: &[BucketState],
    others: &[Shard],
    of_others: &[Vec<BucketState>],
) -> Result<Moves> {
    let mut moves = Moves::default();
    for (other, rows) in others.iter().zip(of_others) {
        for recorded in record::open(&other.client).await? {
            if recorded.peer == shard.name && was_granted(&recorded, own, rows) {
                moves.granted.push((recorded, other.name.clone()));
            } else {
                moves.open.insert(recorded.move_id);
                moves.buckets.extend(recorded.buckets);
            }
        }
    }
    for recorded in record::open(&shard.client).await? {
        if moves.granted.iter().any(|(granted, _)| granted.move_id == recorded.move_id) {
            continue;
        }
        let peer = match others.iter().find(|other| other.name == recorded.peer) {
            Some(peer) => record::read(&peer.client, recorded.move_id).await?,
            None => None,
        };
        if let Some(Record::Closed(outcome)) = peer.map(|peer| peer.record) {
            moves.ended.push((recorded.move_id, outcome));
        } else {
            moves.open.insert(recorded.move_id);
            moves.buckets.extend(recorded.buckets);
        }
    }
    Ok(moves)
}

/// Whether the target of an open move owns its buckets, and the restored source does not know it. A source that knows its fence can go on
/// with the move.
fn was_granted(at_target: &Recorded, own: &[BucketState], target: &[BucketState]) -> bool {
    let rows = |states: &[BucketState]| -> Option<Vec<Ownership>> {
        let row = |bucket: &i16| Some(states.get(usize::try_from(*bucket).ok()?)?.row);
        at_target.buckets.iter().map(row).collect()
    };
    let (Some(own), Some(target)) = (rows(own), rows(target)) else { return false };
    let left = |(own, target): (Ownership, Ownership)| own.owned && target.owned && target.epoch > own.epoch;
    at_target.side == Side::Target && own.into_iter().zip(target).all(left)
}

/// Buckets, each with the epoch that it has and the next.
#[derive(Default)]
pub(super) struct Changes {
    buckets: Vec<i16>,
    known: Vec<i64>,
    epochs: Vec<i64>,
}

impl Changes {
    pub(super) fn push(&mut self, bucket: i16, known: i64, epoch: i64) {
        self.buckets.push(bucket);
        self.known.push(known);
        self.epochs.push(epoch);
    }
}

/// Gives buckets up or takes them: all of them, or none when one has another epoch by now.
pub(super) async fn change(
    transaction: &Transaction<'_>,
    changes: &Changes,
    owned: bool,
    peer: Option<&str>,
) -> Result<()> {
    let Changes { buckets, known, epochs } = changes;
    let changed = transaction.query_one(CHANGE, &[buckets, known, epochs, &owned, &peer]).await;
    changed.map(drop).context("cannot change the buckets")
}

/// What is to be done, and what is not.
#[derive(Default)]
struct Plan {
    given: Changes,
    kept: Changes,
    lost: Vec<i16>,
    contested: Vec<i16>,
    left: Vec<i16>,
}

impl Plan {
    fn new(name: &str, own: &[BucketState], others: &[Vec<BucketState>], moving: &BTreeSet<i16>) -> Self {
        let mut plan = Self::default();
        for ((number, own), at) in (0_i16..).zip(own).zip(0_usize..) {
            let of_others: Vec<BucketState> = others.iter().map(|rows| rows[at].clone()).collect();
            let is_owned = of_others.iter().any(|other| other.row.owned);
            match verdict(name, own.row, &of_others) {
                _ if moving.contains(&number) => plan.left.push(number),
                Verdict::Agrees => {}
                Verdict::GivesUp(epoch) => {
                    plan.given.push(number, own.row.epoch, epoch);
                    if !is_owned {
                        plan.lost.push(number);
                    }
                }
                Verdict::Keeps(epoch) => plan.kept.push(number, own.row.epoch, epoch),
                Verdict::Lost => plan.lost.push(number),
                Verdict::Contested => plan.contested.push(number),
            }
        }
        plan
    }

    /// All of it, or nothing.
    async fn carry_out(&self, shard: &mut Shard, moves: &Moves) -> Result<()> {
        let transaction = shard.client.transaction().await?;
        for (granted, target) in &moves.granted {
            // The backup may be from before its record.
            record::announce(&transaction, &granted.described(), Side::Source, target).await?;
        }
        let granted = moves.granted.iter().map(|(granted, _)| (granted.move_id, Outcome::Moved));
        for (move_id, outcome) in moves.ended.iter().copied().chain(granted) {
            record::close(&transaction, move_id, outcome).await?;
            drop_publication(&transaction, move_id).await?;
            drop_subscription(&transaction, move_id).await?;
        }
        let Self { given, kept, .. } = self;
        let above = Changes {
            buckets: kept.buckets.clone(),
            known: kept.epochs.clone(),
            epochs: kept.epochs.iter().map(|epoch| epoch + 1).collect(),
        };
        // An owner's epoch rises only by way of giving up.
        for (changes, owned) in [(given, false), (kept, false), (&above, true)] {
            change(&transaction, changes, owned, None).await?;
        }
        transaction.commit().await.context("cannot change the buckets")
    }

    fn print(&self, name: &str, dry_run: bool) {
        let would = if dry_run { "would " } else { "" };
        let line = |does: &str, buckets: &[i16], which: &str| {
            saga::say!("Shard {name} {would}{does} {} buckets {which}: {}", buckets.len(), ranges(buckets));
        };
        line("give up", &self.given.buckets, "that were moved after the backup");
        line("keep", &self.kept.buckets, "at an epoch above that of the other shards");
        if !self.lost.is_empty() {
            saga::say!(
                "{} buckets are owned by nobody: they went to this shard after the backup: {}",
                self.lost.len(),
                ranges(&self.lost)
            );
        }
    }
}

/// # Errors
/// When a shard does not answer, the buckets changed meanwhile, or some were left alone.
pub async fn run(adopt: &Adopt) -> Result<()> {
    let mut shard = adopt.owners.connect(&adopt.name).await?;
    let own = known(&shard.client).await?;
    let (mut others, mut of_others) = (Vec::new(), Vec::new());
    for name in adopt.owners.names().filter(|name| *name != adopt.name) {
        let other = adopt.owners.connect(name).await?;
        of_others.push(known(&other.client).await.with_context(|| format!("shard {name}"))?);
        others.push(other);
    }
    ensure!(!others.is_empty(), "the list has no other shard to compare with");
    let moves = moves(&shard, &own, &others, &of_others).await?;
    let plan = Plan::new(&adopt.name, &own, &of_others, &moves.buckets);
    if !adopt.dry_run {
        plan.carry_out(&mut shard, &moves).await?;
    }
    plan.print(&adopt.name, adopt.dry_run);
    for (granted, target) in &moves.granted {
        saga::say!(
            "Shard {target} was granted buckets of move {id} after the backup. Once this shard is open, `coroctl shard resume {id}` ends it",
            id = granted.move_id
        );
    }
    if !moves.open.is_empty() {
        let ids: Vec<String> = moves.open.iter().map(Uuid::to_string).collect();
        bail!(
            "{} buckets belong to moves that have not ended, and were left alone: {}. End these moves, and run this again; before you end one \
             of this shard, compare both of its shards by hand: {}",
            plan.left.len(),
            ranges(&plan.left),
            ids.join(", ")
        );
    }
    ensure!(
        plan.contested.is_empty(),
        "{} buckets are owned by another shard at the same epoch, and were left alone: {}. Was that shard added (`coroctl shard add`)?",
        plan.contested.len(),
        ranges(&plan.contested)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let owned = |epoch| Ownership { epoch, owned: true };
        let not = |epoch| Ownership { epoch, owned: false };
        let owner = |epoch| BucketState { row: owned(epoch), peer: None };
        let other = |epoch, peer: &str| BucketState { row: not(epoch), peer: Some(peer.to_owned()) };
        let added = |epoch| BucketState { row: not(epoch), peer: None };
        for (own, others, expected) in [
            (owned(5), vec![added(2), added(1)], Verdict::Agrees),
            // Born beside a shard that was added later.
            (owned(1), vec![added(2)], Verdict::Keeps(3)),
            // Moved away after the backup.
            (owned(5), vec![owner(7), added(1)], Verdict::GivesUp(8)),
            (owned(5), vec![owner(7), added(9)], Verdict::GivesUp(10)),
            // Moved away, and on its way somewhere else.
            (owned(5), vec![other(8, "three"), added(2)], Verdict::GivesUp(9)),
            // The fence of a move to it was lifted.
            (owned(5), vec![other(7, "one"), added(2)], Verdict::Keeps(8)),
            // There and back, with a third shard in between that was barred.
            (owned(5), vec![other(10, "one"), other(9, "two")], Verdict::Keeps(11)),
            (owned(5), vec![other(10, "three"), other(9, "one")], Verdict::GivesUp(11)),
            // Before the backup.
            (owned(5), vec![other(4, "three"), added(2)], Verdict::Agrees),
            (owned(1), vec![owner(1)], Verdict::Contested),
            (not(6), vec![owner(7)], Verdict::Agrees),
            // Granted to it after the backup.
            (not(2), vec![other(6, "one"), added(1)], Verdict::Lost),
            (owned(9), vec![owner(7)], Verdict::Agrees),
        ] {
            assert_eq!(verdict("one", own, &others), expected, "{own:?}, {others:?}");
        }
    }

    #[test]
    fn buckets_of_open_moves_are_left_alone() {
        let known = |epoch, owned| BucketState { row: Ownership { epoch, owned }, peer: None };
        let own = vec![known(1, true), known(1, true)];
        let others = vec![vec![known(2, false), known(3, true)]];
        let plan = Plan::new("one", &own, &others, &BTreeSet::from([1]));
        assert_eq!((plan.kept.buckets, plan.given.buckets, plan.left), (vec![0], vec![], vec![1]));
    }
}
