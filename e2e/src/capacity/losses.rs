//! How many users notice that shards are away: by the placement and the map that services have.

use saga::shards::bucket::{BUCKETS, Bucket};
use saga::shards::map::{Answer, BucketRow, Map, Owner};
use saga::shards::placement::{self, Candidate};

/// A share of the users is that of the buckets.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub shards: usize,
    pub buckets_min: usize,
    pub buckets_max: usize,
    /// The part of the users whose requests are answered 503 while the largest shard is away.
    pub one_away: f64,
    /// The same while the first third of the shards is away.
    pub region_away: f64,
}

/// The shard of each bucket, and the buckets of each shard.
fn place(shards: usize) -> (Vec<usize>, Vec<usize>) {
    let names: Vec<String> = (1..=shards).map(|number| format!("shard-{number}")).collect();
    let candidates: Vec<Candidate<'_>> =
        names.iter().map(|name| Candidate { name, is_drained: false }).collect();
    let proposed: Vec<usize> =
        Bucket::all().filter_map(|bucket| placement::proposed(bucket, &candidates)).collect();
    let mut counts = vec![0; shards];
    for shard in &proposed {
        counts[*shard] += 1;
    }
    (proposed, counts)
}

/// The part of the users on the largest of so many shards.
pub fn largest(shards: usize) -> f64 {
    let (_, counts) = place(shards);
    counts.into_iter().max().unwrap_or_default() as f64 / BUCKETS as f64
}

/// Places the buckets on so many shards, and takes shards away from a process that has just started.
pub fn simulate(shards: usize) -> Loss {
    let (proposed, counts) = place(shards);
    let largest = (0..shards).max_by_key(|shard| counts[*shard]).unwrap_or_default();
    Loss {
        shards,
        buckets_min: counts.iter().copied().min().unwrap_or_default(),
        buckets_max: counts[largest],
        one_away: share_away(&proposed, shards, &|shard| shard == largest),
        region_away: share_away(&proposed, shards, &|shard| shard < shards.div_ceil(3)),
    }
}

fn share_away(proposed: &[usize], shards: usize, is_away: &dyn Fn(usize) -> bool) -> f64 {
    let answer = |shard: usize| {
        if is_away(shard) {
            return Answer::Away;
        }
        let row = |bucket: Bucket| BucketRow { bucket, epoch: 1, owned: proposed[bucket.index()] == shard };
        Answer::Rows(Bucket::all().map(row).collect())
    };
    let answers: Vec<Answer> = (0..shards).map(answer).collect();
    let map = Map::unread().next(&answers);
    let away = Bucket::all().filter(|bucket| map.owner(*bucket) == Owner::Away).count();
    away as f64 / BUCKETS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_users_of_shards_that_are_away_notice() {
        for shards in [1, 4, 16] {
            let loss = simulate(shards);
            assert_eq!(loss.one_away, loss.buckets_max as f64 / BUCKETS as f64);
            assert_eq!(loss.one_away, largest(shards));
            assert!(loss.region_away > 0.0 && loss.region_away <= 1.0, "{loss:?}");
        }
        assert_eq!(simulate(1).one_away, 1.0);
    }
}
