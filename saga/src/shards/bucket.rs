//! The bucket of a user: the first 10 bits of the SHA-256 of the id's 16 bytes.
//!
//! * It never changes: rows lie where it says. `sql/buckets.tsv` has golden values, for this code and for the databases.
//! * In a database it is the function `bucket (user_id)`, and in a publication's row filter, which may call no function of ours,
//!   the same expression of Postgres' own functions.

use ring::digest::{SHA256, digest};
use uuid::Uuid;

/// The number of buckets.
pub const BUCKETS: usize = 1 << BITS;
const BITS: u32 = 10;

/// A part of the users: 0 to 1023.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// The bucket of a user.
    pub fn of(user_id: Uuid) -> Self {
        Self::of_bytes(user_id.as_bytes())
    }

    /// A bucket for what belongs to no user.
    pub fn of_text(text: &str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let hash = digest(&SHA256, bytes);
        let first = hash.as_ref();
        Self(u16::from_be_bytes([first[0], first[1]]) >> (u16::BITS - BITS))
    }

    /// The bucket of this number; `None` when there is none.
    pub fn new(number: i16) -> Option<Self> {
        u16::try_from(number).ok().filter(|&number| usize::from(number) < BUCKETS).map(Self)
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..1 << BITS).map(Self)
    }

    /// As the databases have it.
    pub fn number(self) -> i16 {
        // At most 1023.
        self.0.cast_signed()
    }

    /// As an index into an array of [`BUCKETS`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let golden = include_str!("../../../sql/buckets.tsv");
        let rows: Vec<(&str, &str)> = golden.lines().filter_map(|line| line.split_once('\t')).collect();
        assert!(rows.len() >= 6);
        for (user_id, bucket) in rows {
            let found = Bucket::of(user_id.parse().unwrap());
            assert_eq!(found.number().to_string(), bucket, "{user_id}");
            assert_eq!(Bucket::new(found.number()), Some(found));
        }
    }

    #[test]
    fn there_are_1024() {
        assert_eq!(Bucket::all().count(), BUCKETS);
        assert!(Bucket::all().enumerate().all(|(index, bucket)| bucket.index() == index));
        assert_eq!((Bucket::new(-1), Bucket::new(1024)), (None, None));
    }

    /// A bucket that many more users shared than another would be the limit of what a shard can be.
    #[test]
    fn users_are_spread_evenly() {
        let mut users = vec![0; BUCKETS];
        for number in 0..100_000_u128 {
            users[Bucket::of(Uuid::from_u128(number << 64 | number)).index()] += 1;
        }
        let (least, most) = (users.iter().min().unwrap(), users.iter().max().unwrap());
        assert!(*least > 50 && *most < 150, "{least} to {most}, of 98 on average");
    }
}
