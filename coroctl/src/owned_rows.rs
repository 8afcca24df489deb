//! Which rows of a service's databases count: those of a user on the shard that owns the user's bucket.
//!
//! * Where a setting is one URL, every row of that database counts, and it is not asked what it owns.
//! * Copies that a move made, or has not removed yet, are rows of a bucket that their database does not own: they are left out.
//! * Of two shards that own a bucket the one with the higher epoch does, as for services. A bucket that none owns, or two at one
//!   epoch, is undecided: its rows are left out, and [`Ownership::undecided`] names it.
//!
//! The rows of all shards are read in [`snapshots`](crate::snapshots), which say why a row counts once whatever moves meanwhile.

use saga::shards::bucket::Bucket;
use saga::shards::map::{Answer, BucketRow, Map, Owner};
use uuid::Uuid;

use crate::shard::connections::ranges;

/// The tables that a statement may name in braces.
const TABLES: [&str; 6] = ["payments", "accounts", "ledger", "charges", "charge_attempts", "resolutions"];

/// The rows of one database that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedRows {
    /// `None`: every row counts.
    shard: Option<String>,
    /// Buckets that this shard says it owns, and does not by what the others say.
    outvoted: Vec<i16>,
}

impl OwnedRows {
    /// Every row of a database that is the only one of its service.
    pub fn all() -> Self {
        Self::default()
    }

    /// The rows of a shard's own buckets, by what it says itself. Enough where nothing is concluded from rows that are on two shards.
    pub fn of_shard(shard: &str) -> Self {
        Self { shard: Some(shard.to_owned()), outvoted: Vec::new() }
    }

    /// The name of the shard, where the service has several databases.
    pub fn shard(&self) -> Option<&str> {
        self.shard.as_deref()
    }

    /// A statement with the rows that count of each table that it names in braces, with an alias: `select … from {ledger} l`.
    pub fn statement(&self, text: &str) -> String {
        let replaced = |text: String, table: &str| text.replace(&format!("{{{table}}}"), &self.of(table));
        TABLES.into_iter().fold(text.to_owned(), replaced)
    }

    fn of(&self, table: &str) -> String {
        if self.shard.is_none() {
            return table.to_owned();
        }
        let outvoted: Vec<String> = self.outvoted.iter().map(i16::to_string).collect();
        let but = match outvoted.is_empty() {
            true => String::new(),
            false => format!(" and o.bucket <> all ('{{{}}}'::int2[])", outvoted.join(",")),
        };
        format!(
            "(select * from {table} r where exists (
                 select from owned_buckets o where o.bucket = bucket(r.user_id) and o.owned{but}))"
        )
    }

    /// What was found, with the name of the shard where there is one.
    pub fn located(&self, what: String) -> String {
        match &self.shard {
            Some(shard) => format!("shard {shard}: {what}"),
            None => what,
        }
    }
}

/// Who owns each bucket of a service with several databases.
#[derive(Clone, Debug)]
pub struct Ownership {
    shards: Vec<String>,
    map: Map,
}

/// Buckets whose rows were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undecided {
    pub nobodys: Vec<i16>,
    pub contested: Vec<i16>,
}

impl Undecided {
    pub fn is_empty(&self) -> bool {
        self.nobodys.is_empty() && self.contested.is_empty()
    }

    pub fn buckets(&self) -> impl Iterator<Item = i16> {
        self.nobodys.iter().chain(&self.contested).copied()
    }

    /// A sentence without its full stop, for people.
    pub fn describe(&self, service: &str) -> String {
        let part = |buckets: &[i16], what: &str| match buckets.is_empty() {
            true => None,
            false => Some(format!("{what} {}", ranges(buckets))),
        };
        let parts = [
            part(&self.nobodys, "no shard owns buckets"),
            part(&self.contested, "two shards own at one epoch buckets"),
        ];
        format!("{service}: {}", parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

impl Ownership {
    /// By what each shard says of itself: its name, and its buckets.
    pub fn new(claims: &[(String, Vec<BucketRow>)]) -> Self {
        Self::next(None, claims)
    }

    /// As [`Ownership::new`], by somebody who has read the same shards before: one that claims what it has given up is not believed.
    pub fn next(known: Option<&Self>, claims: &[(String, Vec<BucketRow>)]) -> Self {
        let answers: Vec<Answer> = claims.iter().map(|(_, rows)| Answer::Rows(rows.clone())).collect();
        let map = known.map_or_else(Map::unread, |known| known.map.clone()).next(&answers);
        Self { map, shards: claims.iter().map(|(shard, _)| shard.clone()).collect() }
    }

    /// The index of the shard that owns a bucket.
    pub fn owner(&self, bucket: Bucket) -> Option<usize> {
        match self.map.owner(bucket) {
            Owner::Shard(holder) => Some(holder.shard),
            Owner::Nobody | Owner::Away | Owner::Contested => None,
        }
    }

    /// The index of the shard that has the rows of a user.
    pub fn owner_of(&self, user_id: Uuid) -> Option<usize> {
        self.owner(Bucket::of(user_id))
    }

    /// Its name.
    pub fn shard_of(&self, user_id: Uuid) -> Option<&str> {
        self.owner_of(user_id).map(|shard| self.shards[shard].as_str())
    }

    pub fn undecided(&self) -> Undecided {
        let without = Bucket::all().filter(|bucket| self.owner(*bucket).is_none());
        let (contested, nobodys) =
            without.partition::<Vec<_>, _>(|bucket| self.map.owner(*bucket) == Owner::Contested);
        let numbers = |buckets: Vec<Bucket>| buckets.into_iter().map(Bucket::number).collect();
        Undecided { nobodys: numbers(nobodys), contested: numbers(contested) }
    }

    /// The rows of a shard that count, by its index and what it says of itself.
    pub fn rows(&self, shard: usize, claims: &[BucketRow]) -> OwnedRows {
        let outvoted = claims.iter().filter(|row| row.owned && self.owner(row.bucket) != Some(shard));
        let outvoted = outvoted.map(|row| row.bucket.number()).collect();
        OwnedRows { shard: Some(self.shards[shard].clone()), outvoted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(shard: &str, of: impl Fn(i16) -> (i64, bool)) -> (String, Vec<BucketRow>) {
        let row = |bucket: Bucket| {
            let (epoch, owned) = of(bucket.number());
            BucketRow { bucket, epoch, owned }
        };
        (shard.to_owned(), Bucket::all().map(row).collect())
    }

    /// Bucket 0 was moved and 1 is being moved, 2 has two owners at one epoch; the rest is the first one's.
    fn ownership() -> (Ownership, [Vec<BucketRow>; 2]) {
        let one = claims("one", |bucket| if bucket == 1 { (2, false) } else { (1, true) });
        let two = claims("two", |bucket| match bucket {
            0 => (3, true),
            2 => (1, true),
            _ => (1, false),
        });
        let rows = [one.1.clone(), two.1.clone()];
        (Ownership::new(&[one, two]), rows)
    }

    #[test]
    fn each_bucket_counts_on_one_shard_or_is_undecided() {
        let (ownership, [one, two]) = ownership();
        let owner = |bucket| ownership.owner(Bucket::new(bucket).unwrap());
        assert_eq!((owner(0), owner(1), owner(2), owner(3)), (Some(1), None, None, Some(0)));
        let undecided = ownership.undecided();
        assert_eq!(undecided, Undecided { nobodys: vec![1], contested: vec![2] });
        let text = undecided.describe("balance");
        assert_eq!(text, "balance: no shard owns buckets 1; two shards own at one epoch buckets 2");
        assert_eq!(ownership.rows(0, &one).outvoted, [0, 2], "it was restored to before the move");
        assert_eq!(ownership.rows(1, &two).outvoted, [2]);
    }

    #[test]
    fn what_a_shard_is_known_to_have_given_up_it_does_not_own_again() {
        let of = |one, two| Ownership::new(&[claims("one", |_| one), claims("two", |_| two)]);
        let bucket = Bucket::new(0).unwrap();
        let known = of((2, false), (3, true));
        let restored = [claims("one", |_| (1, true)), claims("two", |_| (4, false))];
        assert_eq!(Ownership::new(&restored).owner(bucket), Some(0));
        assert_eq!(Ownership::next(Some(&known), &restored).owner(bucket), None);
    }

    #[test]
    fn the_statements_of_one_database_are_as_they_were() {
        let text = "select count(*) from {ledger} l join {accounts} a using (user_id)";
        assert_eq!(
            OwnedRows::all().statement(text),
            "select count(*) from ledger l join accounts a using (user_id)"
        );
        let rows = OwnedRows { shard: Some("two".to_owned()), outvoted: vec![2, 5] };
        let of_shard = rows.statement("select count(*) from {ledger} l");
        assert!(of_shard.ends_with("o.owned and o.bucket <> all ('{2,5}'::int2[]))) l"), "{of_shard}");
    }
}
