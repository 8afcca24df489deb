//! `coroctl shard plan`: the moves that bring each bucket to where rendezvous hashing proposes it.
//!
//! * It changes nothing. A bucket that nobody owns, or whose owner is away, is in no plan.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use clap::Args;
use saga::shards::bucket::Bucket;
use saga::shards::map::Owner;
use saga::shards::placement::{self, Candidate, Move};
use serde::Serialize;

use super::connections::{self, Shards, ranges};
use crate::listing;

#[derive(Args)]
pub struct Plan {
    #[command(flatten)]
    pub shards: Shards,
    /// A shard that is to give up all of its buckets; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub drain: Vec<String>,
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
}

/// The buckets that go from one shard to another: one move.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Planned {
    pub from: String,
    pub to: String,
    pub buckets: Vec<i16>,
}

/// Prints the moves.
///
/// # Errors
/// When a drained shard is none of the list, or all are drained.
pub async fn run(plan: &Plan) -> Result<()> {
    let shards = connections::connect(&plan.shards).await;
    let names: Vec<&str> = shards.iter().map(|shard| &*shard.name).collect();
    let candidates = candidates(&names, &plan.drain)?;
    let (_, map) = connections::read(&shards).await;
    let moves = grouped(&placement::plan(&map, &candidates), &names);
    let left_out = Bucket::all().filter(|bucket| !matches!(map.owner(*bucket), Owner::Shard(_))).count();
    if plan.json {
        saga::say!("{}", serde_json::to_string_pretty(&moves)?);
    } else if moves.is_empty() {
        saga::say!("Every bucket that has an owner is where it should be.");
    } else {
        saga::say!("{}", text(&moves));
    }
    if left_out > 0 {
        tracing::warn!(
            "{left_out} buckets have no owner that answers, and are in no plan; see `coroctl shard list`"
        );
    }
    Ok(())
}

pub(super) fn candidates<'a>(names: &[&'a str], drained: &[String]) -> Result<Vec<Candidate<'a>>> {
    for name in drained {
        ensure!(names.contains(&&**name), "no shard is called {name}");
    }
    let is_drained = |name: &str| drained.iter().any(|other| other == name);
    ensure!(
        names.iter().any(|name| !is_drained(name)),
        "every shard is drained; no one is left to take a bucket"
    );
    Ok(names.iter().map(|name| Candidate { name, is_drained: is_drained(name) }).collect())
}

pub(super) fn grouped(moves: &[Move], names: &[&str]) -> Vec<Planned> {
    let mut groups: BTreeMap<(usize, usize), Vec<i16>> = BTreeMap::new();
    for step in moves {
        groups.entry((step.from, step.to)).or_default().push(step.bucket.number());
    }
    let planned = |((from, to), buckets): ((usize, usize), Vec<i16>)| Planned {
        from: names[from].to_owned(),
        to: names[to].to_owned(),
        buckets,
    };
    groups.into_iter().map(planned).collect()
}

fn text(moves: &[Planned]) -> String {
    let row = |planned: &Planned| {
        let count = planned.buckets.len().to_string();
        [planned.from.clone(), planned.to.clone(), count, ranges(&planned.buckets)]
    };
    listing::table(["from", "to", "buckets", "which"], moves.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_between_the_same_shards_are_one_move() {
        let step = |number, from, to| Move { bucket: Bucket::new(number).unwrap(), from, to };
        let moves = [step(1, 0, 2), step(4, 1, 2), step(2, 0, 2)];
        let planned = grouped(&moves, &["one", "two", "three"]);
        let expected = [("one", "three", vec![1, 2]), ("two", "three", vec![4])];
        assert_eq!(planned.len(), expected.len());
        for (planned, (from, to, buckets)) in planned.iter().zip(expected) {
            assert_eq!((&*planned.from, &*planned.to, &planned.buckets), (from, to, &buckets));
        }
    }

    #[test]
    fn a_plan_needs_shards_that_are_there() {
        assert!(candidates(&["one", "two"], &["three".to_owned()]).is_err());
        assert!(candidates(&["one"], &["one".to_owned()]).is_err());
        let candidates = candidates(&["one", "two"], &["two".to_owned()]).unwrap();
        assert_eq!(candidates.iter().map(|place| place.is_drained).collect::<Vec<_>>(), [false, true]);
    }
}
