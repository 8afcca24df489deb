//! `coroctl shard adopt`: a shard that was restored gives up the buckets that another shard has had since.
//!
//! * A restored database is closed to its services until `recover` has opened it. `adopt` comes before that.
//! * A bucket whose epoch is higher on another shard was moved after the backup. The restored shard gives it up, at an epoch above all,
//!   whatever its rows say: a process that starts while the other shard is away would believe it otherwise.
//! * A bucket that nobody owns then, since the restored shard had been granted it after the backup, is named and left alone: its rows are
//!   on no shard, and come back by `recover`.
//! * Every shard has to answer: one that is away may have the bucket.

#![allow(clippy::print_stdout, reason = "its report is its output")]

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::connections::ranges;
use super::mover::record;
use super::moves::Ownership;
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

/// What becomes of a bucket of the restored shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as the others know it.
    Agrees,
    /// It gives the bucket up, at this epoch.
    GivesUp(i64),
    /// Nobody owns it: it went to the restored shard after the backup.
    Lost,
}

/// `others`: the bucket's rows on all other shards.
fn verdict(own: Ownership, others: &[Ownership]) -> Verdict {
    let highest = others.iter().map(|row| row.epoch).max().unwrap_or_default();
    let is_owned = others.iter().any(|row| row.owned);
    match (own.owned, is_owned) {
        (true, true | false) if highest >= own.epoch => Verdict::GivesUp(highest + 1),
        (true, false) => Verdict::Agrees,
        // It has the highest epoch, and so is believed; the other has to give up, which is another's restore.
        (true, true) => Verdict::Agrees,
        (false, true) => Verdict::Agrees,
        (false, false) => Verdict::Lost,
    }
}

const BUCKETS: i16 = 1024;
const CHANGE: &str = "select change_ownership($1, $2, $3, false, null)";

/// # Errors
/// When a shard does not answer, or the buckets changed meanwhile.
pub async fn run(adopt: &Adopt) -> Result<()> {
    let numbers: Vec<i16> = (0..BUCKETS).collect();
    let shard = adopt.owners.connect(&adopt.name).await?;
    let own = record::ownership(&shard.client, &numbers).await?;
    let mut others = Vec::new();
    for name in adopt.owners.names().filter(|name| *name != adopt.name) {
        let other = adopt.owners.connect(name).await?;
        others
            .push(record::ownership(&other.client, &numbers).await.with_context(|| format!("shard {name}"))?);
    }
    ensure!(!others.is_empty(), "the list has no other shard to compare with");
    let (mut given, mut known, mut epochs, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (at, row) in own.iter().enumerate() {
        let of_others: Vec<Ownership> = others.iter().map(|rows| rows[at]).collect();
        match verdict(*row, &of_others) {
            Verdict::Agrees => {}
            Verdict::GivesUp(epoch) => {
                given.push(numbers[at]);
                known.push(row.epoch);
                epochs.push(epoch);
            }
            Verdict::Lost => lost.push(numbers[at]),
        }
    }
    if !given.is_empty() && !adopt.dry_run {
        shard
            .client
            .query_one(CHANGE, &[&given, &known, &epochs])
            .await
            .context("cannot give the buckets up")?;
    }
    let gives = if adopt.dry_run { "would give up" } else { "gave up" };
    println!(
        "Shard {} {gives} {} buckets that were moved after the backup: {}",
        adopt.name,
        given.len(),
        ranges(&given)
    );
    if !lost.is_empty() {
        println!(
            "{} buckets are owned by nobody: they are being moved, or went to this shard after the backup. `coroctl shard moves` shows \
             open moves: {}",
            lost.len(),
            ranges(&lost)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let owned = |epoch| Ownership { epoch, owned: true };
        let not = |epoch| Ownership { epoch, owned: false };
        for (own, others, expected) in [
            (owned(5), vec![not(2), not(1)], Verdict::Agrees),
            // Moved away after the backup.
            (owned(5), vec![owned(7), not(1)], Verdict::GivesUp(8)),
            // Moved away, and on its way somewhere else.
            (owned(5), vec![not(8), not(2)], Verdict::GivesUp(9)),
            (owned(5), vec![owned(5)], Verdict::GivesUp(6)),
            (not(6), vec![owned(7)], Verdict::Agrees),
            // Granted to it after the backup.
            (not(2), vec![not(6), not(1)], Verdict::Lost),
            (owned(9), vec![owned(7)], Verdict::Agrees),
        ] {
            assert_eq!(verdict(own, &others), expected, "{own:?}, {others:?}");
        }
    }
}
