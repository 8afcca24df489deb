//! The map: which shard owns each bucket, and at which epoch.
//!
//! * Pure. It is made of what each shard answered, and of the map before.
//! * Of the shards that say they own a bucket, the one with the highest epoch does.
//! * Two of them with one epoch: nobody does, until an operator has found out ([`Owner::Contested`]).
//! * A shard that does not answer hides its own buckets only. It keeps those that this process knows it to own, unless another
//!   one owns them at a higher epoch by now.
//! * A claim is believed if it is the one that this process knows, or has a higher epoch. A shard with a lower one has lost its
//!   past. Where the shard that this process knows has left the list, the same epoch is enough: its database may have another name.

use super::bucket::{BUCKETS, Bucket};

/// A row of `owned_buckets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRow {
    pub bucket: Bucket,
    pub epoch: i64,
    pub owned: bool,
}

/// The answer of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Rows(Vec<BucketRow>),
    /// It could not be read.
    Away,
    /// It has left the list.
    Unlisted,
}

/// A shard by its index, and the epoch at which it owns a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub shard: usize,
    pub epoch: i64,
}

/// Who owns a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Shard(Holder),
    /// Every shard answered, and none owns it: it is being moved.
    Nobody,
    /// No shard that answered owns it, and another one did not answer.
    Away,
    /// Two shards say that they own it, at one epoch.
    Contested,
}

/// The owner of each bucket, as this process knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    owners: Vec<Owner>,
    /// The last owner of each bucket that is known, who may have given it up.
    known: Vec<Option<Holder>>,
}

impl Map {
    /// The map of a process that has read nothing.
    pub fn unread() -> Self {
        Self { owners: vec![Owner::Away; BUCKETS], known: vec![None; BUCKETS] }
    }

    pub fn owner(&self, bucket: Bucket) -> Owner {
        self.owners[bucket.index()]
    }

    /// The shard that owned the bucket last, as far as this process knows.
    pub fn last_shard(&self, bucket: Bucket) -> Option<usize> {
        self.known[bucket.index()].map(|holder| holder.shard)
    }

    /// The buckets that two shards own at one epoch.
    pub fn contested(&self) -> impl Iterator<Item = Bucket> {
        Bucket::all().filter(|bucket| self.owner(*bucket) == Owner::Contested)
    }

    /// The map after each shard was asked: `answers` in the order of the shards.
    pub fn next(&self, answers: &[Answer]) -> Self {
        let mut claims: Vec<Vec<Holder>> = vec![Vec::new(); BUCKETS];
        for (shard, answer) in answers.iter().enumerate() {
            let Answer::Rows(rows) = answer else { continue };
            for row in rows.iter().filter(|row| row.owned) {
                claims[row.bucket.index()].push(Holder { shard, epoch: row.epoch });
            }
        }
        let is = |shard: usize, answer: &Answer| answers.get(shard) == Some(answer);
        let any_away = answers.contains(&Answer::Away);
        let mut next = self.clone();
        for (index, claims) in claims.iter().enumerate() {
            let last = match self.known[index] {
                Some(known) if is(known.shard, &Answer::Away) => LastOwner::Away(known),
                Some(known) if is(known.shard, &Answer::Unlisted) => LastOwner::Unlisted(known),
                Some(known) => LastOwner::Answers(known),
                None => LastOwner::Unknown,
            };
            let owner = owner(last, claims, any_away);
            if let Owner::Shard(holder) = owner {
                next.known[index] = Some(holder);
            }
            next.owners[index] = owner;
        }
        next
    }
}

/// The last owner of a bucket that is known.
#[derive(Clone, Copy)]
enum LastOwner {
    Unknown,
    Answers(Holder),
    Away(Holder),
    Unlisted(Holder),
}

/// The owner of one bucket. `claims` are of the shards that answered.
fn owner(last: LastOwner, claims: &[Holder], any_away: bool) -> Owner {
    let same = |epoch: i64| claims.iter().filter(|claim| claim.epoch == epoch).count();
    let nobody = if any_away { Owner::Away } else { Owner::Nobody };
    let unclaimed = match last {
        LastOwner::Away(known) => Owner::Shard(known),
        LastOwner::Unknown | LastOwner::Answers(_) | LastOwner::Unlisted(_) => nobody,
    };
    let Some(&best) = claims.iter().max_by_key(|claim| claim.epoch) else { return unclaimed };
    if same(best.epoch) > 1 {
        return Owner::Contested;
    }
    match last {
        LastOwner::Unknown => Owner::Shard(best),
        LastOwner::Unlisted(known) if best.epoch >= known.epoch => Owner::Shard(best),
        LastOwner::Answers(known) | LastOwner::Away(known) if best == known || best.epoch > known.epoch => {
            Owner::Shard(best)
        }
        LastOwner::Answers(known) | LastOwner::Away(known) if best.epoch == known.epoch => Owner::Contested,
        LastOwner::Answers(_) | LastOwner::Away(_) | LastOwner::Unlisted(_) => unclaimed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: usize = 0;
    const B: usize = 1;

    fn bucket() -> Bucket {
        Bucket::new(7).unwrap()
    }

    /// The answer of a shard about one bucket.
    fn row(epoch: i64, owned: bool) -> Answer {
        Answer::Rows(vec![BucketRow { bucket: bucket(), epoch, owned }])
    }

    fn shard(shard: usize, epoch: i64) -> Owner {
        Owner::Shard(Holder { shard, epoch })
    }

    /// What follows from the answers of A and B, where A owned the bucket at epoch 5 and where nothing was known.
    #[test]
    fn owner_of_a_bucket() {
        let (owned, given_up) = (|epoch| row(epoch, true), |epoch| row(epoch, false));
        let away = || Answer::Away;
        for (a, b, known, unknown) in [
            (owned(5), given_up(1), shard(A, 5), shard(A, 5)),
            // A shard that has just joined has given up what it was born with, perhaps at a higher epoch.
            (owned(5), given_up(9), shard(A, 5), shard(A, 5)),
            // The steps of a move: before the fence, fenced, granted.
            (given_up(6), given_up(1), Owner::Nobody, Owner::Nobody),
            (given_up(6), owned(7), shard(B, 7), shard(B, 7)),
            // A rollback: the target is raised, the source takes it back.
            (given_up(6), given_up(7), Owner::Nobody, Owner::Nobody),
            (owned(8), given_up(7), shard(A, 8), shard(A, 8)),
            (owned(5), owned(5), Owner::Contested, Owner::Contested),
            // A was restored and not adopted: it says what was so once.
            (owned(5), owned(7), shard(B, 7), shard(B, 7)),
            (owned(4), given_up(7), Owner::Nobody, shard(A, 4)),
            (owned(4), owned(3), Owner::Nobody, shard(A, 4)),
            // One of them does not answer.
            (away(), given_up(1), shard(A, 5), Owner::Away),
            (away(), owned(7), shard(B, 7), shard(B, 7)),
            (away(), owned(5), Owner::Contested, shard(B, 5)),
            (away(), owned(4), shard(A, 5), shard(B, 4)),
            (owned(5), away(), shard(A, 5), shard(A, 5)),
            (given_up(6), away(), Owner::Away, Owner::Away),
            (owned(4), away(), Owner::Away, shard(A, 4)),
            (away(), away(), shard(A, 5), Owner::Away),
            // A has left the list: its database is B by now, or is gone.
            (Answer::Unlisted, owned(5), shard(B, 5), shard(B, 5)),
            (Answer::Unlisted, owned(7), shard(B, 7), shard(B, 7)),
            (Answer::Unlisted, owned(4), Owner::Nobody, shard(B, 4)),
            (Answer::Unlisted, given_up(1), Owner::Nobody, Owner::Nobody),
            (Answer::Unlisted, away(), Owner::Away, Owner::Away),
        ] {
            let answers = [a, b];
            let before = Map::unread().next(&[owned(5), given_up(1)]);
            assert_eq!(before.next(&answers).owner(bucket()), known, "known: {answers:?}");
            assert_eq!(Map::unread().next(&answers).owner(bucket()), unknown, "unknown: {answers:?}");
        }
    }

    #[test]
    fn one_database_owns_what_it_was_born_with() {
        let born = Bucket::all().map(|bucket| BucketRow { bucket, epoch: 1, owned: true }).collect();
        let map = Map::unread().next(&[Answer::Rows(born)]);
        assert!(Bucket::all().all(|bucket| map.owner(bucket) == shard(0, 1)));
        assert_eq!(map.contested().count(), 0);
        // It is away: whoever asks goes there all the same, and finds out.
        assert_eq!(map.next(&[Answer::Away]), map);
    }

    #[test]
    fn a_shard_that_is_away_hides_its_own_buckets_only() {
        let rows = |owned: fn(usize) -> bool| {
            let row = |bucket: Bucket| BucketRow { bucket, epoch: 3, owned: owned(bucket.index()) };
            Answer::Rows(Bucket::all().map(row).collect())
        };
        let odd = Map::unread().next(&[rows(|index| index % 2 == 1), Answer::Away]);
        for bucket in Bucket::all() {
            let expected = if bucket.index() % 2 == 1 { shard(0, 3) } else { Owner::Away };
            assert_eq!(odd.owner(bucket), expected);
        }
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            1 => prop_oneof![Just(Answer::Away), Just(Answer::Unlisted)],
            4 => (1..6_i64, any::<bool>()).prop_map(|(epoch, owned)| row(epoch, owned)),
        ]
    }

    proptest! {
        /// Whatever the shards answer, and in whatever order: an owner's epoch never falls, and nobody else that answered
        /// owns the bucket at it or above it.
        #[test]
        fn an_owner_is_the_only_one_and_its_epoch_never_falls(
            readings in prop::collection::vec(prop::collection::vec(answer(), 3), 1..8)
        ) {
            let (mut map, mut highest) = (Map::unread(), 0);
            for answers in readings {
                map = map.next(&answers);
                let Owner::Shard(holder) = map.owner(bucket()) else { continue };
                prop_assert!(holder.epoch >= highest);
                highest = holder.epoch;
                for (other, answer) in answers.iter().enumerate().filter(|(other, _)| *other != holder.shard) {
                    let Answer::Rows(rows) = answer else { continue };
                    prop_assert!(!rows[0].owned || rows[0].epoch < holder.epoch, "{other} too");
                }
            }
        }
    }
}
