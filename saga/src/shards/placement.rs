//! Proposes which shard each bucket should be on, by rendezvous hashing.
//!
//! * A bucket belongs to the shard whose name and number have the highest hash. So a shard that is added takes 1/N of the
//!   buckets, from all others alike, and one that is drained gives its own to all others.
//! * It is a proposal. Where a bucket is, the shards say ([`map`](super::map)), and one that was moved by hand is moved back
//!   only by a plan that an operator carries out.
//! * The hash is SHA-256, so the same names have the same proposal in every release and on every machine. The crates that do this
//!   hash by Rust's `Hash`, whose values another release may change, and then a plan would move everything.

use ring::digest::{Context, SHA256};

use super::bucket::Bucket;
use super::map::{Map, Owner};

/// A bucket that is not where it should be. Shards are indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub bucket: Bucket,
    pub from: usize,
    pub to: usize,
}

/// A shard that may own buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// It stays when the URL changes.
    pub name: &'a str,
    /// It gets no buckets, and gives up those that it has.
    pub is_drained: bool,
}

/// The index of the shard that `bucket` should be on; `None` when every shard is drained.
pub fn proposed(bucket: Bucket, shards: &[Candidate<'_>]) -> Option<usize> {
    let open = shards.iter().enumerate().filter(|(_, shard)| !shard.is_drained);
    open.max_by_key(|(_, shard)| weight(bucket, shard.name)).map(|(index, _)| index)
}

/// The moves that bring every bucket to where it should be. A bucket without an owner is left alone.
pub fn plan(map: &Map, shards: &[Candidate<'_>]) -> Vec<Move> {
    let wrong = |bucket: Bucket| match (map.owner(bucket), proposed(bucket, shards)) {
        (Owner::Shard(holder), Some(to)) if holder.shard != to => {
            Some(Move { bucket, from: holder.shard, to })
        }
        (Owner::Shard(_) | Owner::Nobody | Owner::Away | Owner::Contested, _) => None,
    };
    Bucket::all().filter_map(wrong).collect()
}

/// The name stands last, so that no name and number read as another name and number.
fn weight(bucket: Bucket, name: &str) -> [u8; 8] {
    let mut hash = Context::new(&SHA256);
    hash.update(&bucket.number().to_be_bytes());
    hash.update(name.as_bytes());
    let digest = hash.finish();
    let mut weight = [0; 8];
    weight.copy_from_slice(&digest.as_ref()[..8]);
    weight
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::shards::bucket::BUCKETS;
    use crate::shards::map::{Answer, BucketRow};

    fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
        names.iter().map(|name| Candidate { name, is_drained: false }).collect()
    }

    /// The map in which every bucket is where it should be among `shards`.
    fn placed(shards: &[Candidate<'_>]) -> Map {
        let rows = |shard: usize| {
            let row = |bucket| BucketRow { bucket, epoch: 1, owned: proposed(bucket, shards) == Some(shard) };
            Answer::Rows(Bucket::all().map(row).collect())
        };
        Map::unread().next(&(0..shards.len()).map(rows).collect::<Vec<_>>())
    }

    /// Five standard deviations of how many of the buckets fall to one of `shards` shards by chance.
    fn tolerance(shards: usize) -> f64 {
        let part = 1.0 / shards as f64;
        5.0 * (BUCKETS as f64 * part * (1.0 - part)).sqrt()
    }

    #[test]
    fn golden() {
        let names: Vec<String> = ["one", "two", "three"].map(str::to_owned).into();
        let found: Vec<_> = (0..12).filter_map(|n| proposed(Bucket::new(n)?, &candidates(&names))).collect();
        assert_eq!(found, GOLDEN, "a proposal has changed: every installation would move its buckets");
    }

    const GOLDEN: [usize; 12] = [0, 2, 0, 2, 0, 1, 2, 1, 1, 2, 1, 1];

    #[test]
    fn one_shard_keeps_everything_and_nowhere_to_go_is_no_move() {
        let one = [Candidate { name: "one", is_drained: false }];
        assert_eq!(plan(&placed(&one), &one), []);
        let drained = [Candidate { name: "one", is_drained: true }];
        assert_eq!(plan(&placed(&one), &drained), []);
        assert_eq!(plan(&Map::unread(), &one), []);
    }

    proptest! {
        #[test]
        fn a_new_shard_takes_its_part_from_all_others_and_nothing_else_moves(
            names in prop::collection::btree_set("[a-z0-9-]{1,12}", 2..9)
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let (old, all) = (candidates(&names[1..]), candidates(&names));
            let new = old.len();
            // The new one last, as it is in a list to which it is added.
            let all: Vec<Candidate<'_>> = all[1..].iter().chain(&all[..1]).copied().collect();
            let moves = plan(&placed(&old), &all);
            prop_assert!(moves.iter().all(|step| step.to == new && step.from != new));
            let expected = BUCKETS as f64 / all.len() as f64;
            prop_assert!((moves.len() as f64 - expected).abs() <= tolerance(all.len()), "{}", moves.len());
            // Carried out, there is nothing left to do.
            prop_assert_eq!(plan(&placed(&all), &all), []);
        }

        #[test]
        fn a_drained_shard_gives_up_its_own_and_nothing_else_moves(
            names in prop::collection::btree_set("[a-z0-9-]{1,12}", 2..9)
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let before = candidates(&names);
            let map = placed(&before);
            let mut drained = before.clone();
            drained[0].is_drained = true;
            let moves = plan(&map, &drained);
            prop_assert!(moves.iter().all(|step| step.from == 0 && step.to != 0));
            let own = Bucket::all().filter(|bucket| proposed(*bucket, &before) == Some(0)).count();
            prop_assert_eq!(moves.len(), own);
        }
    }
}
