//! The epochs of an attempt to move a bucket, and what the rows of its two shards say of it.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Target,
}

/// A bucket on one shard: its row of `owned_buckets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ownership {
    pub epoch: i64,
    pub owned: bool,
}

/// The epochs of a bucket when an attempt to move it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempt {
    pub source_epoch: i64,
    pub target_epoch: i64,
}

impl Attempt {
    /// The source's epoch once it is fenced: above all there are.
    pub fn fenced(self) -> i64 {
        self.source_epoch.max(self.target_epoch) + 1
    }

    /// The target's epoch once it is granted the bucket, or barred from it.
    pub fn granted(self) -> i64 {
        self.fenced() + 1
    }

    /// The attempt after one whose bucket the source took back.
    pub fn after_rollback(self) -> Self {
        Self { source_epoch: self.granted() + 1, target_epoch: self.granted() }
    }
}

/// The buckets at the source, seen from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtSource {
    Owns,
    Fenced,
    /// Nothing that this attempt can have made.
    Other,
}

/// The buckets at the target, seen from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtTarget {
    /// As they were when the attempt began.
    Waits,
    Granted,
    /// No grant of this attempt can come any more.
    Barred,
    /// Nothing that this attempt can have made.
    Other,
}

impl AtSource {
    pub fn of(row: Ownership, attempt: Attempt) -> Self {
        match row.owned {
            true if row.epoch == attempt.source_epoch => Self::Owns,
            false if row.epoch == attempt.fenced() => Self::Fenced,
            true | false => Self::Other,
        }
    }
}

impl AtTarget {
    pub fn of(row: Ownership, attempt: Attempt) -> Self {
        match row.owned {
            false if row.epoch == attempt.target_epoch => Self::Waits,
            false if row.epoch == attempt.granted() => Self::Barred,
            true if row.epoch == attempt.granted() => Self::Granted,
            true | false => Self::Other,
        }
    }
}
