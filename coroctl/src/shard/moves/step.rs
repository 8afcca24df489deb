//! The steps of a move: the row that each compares and sets, the record that it locks, and what it permits.

use super::Outcome;
use super::attempt::{AtSource, AtTarget, Attempt, Ownership, Side};

/// The next step. Each is one transaction on one shard, or a wait, and may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Writes the move's record: at the source with the epochs of the attempt.
    Announce(Side),
    /// Deletes a chunk of the buckets' rows at the target, which does not own them and has no subscription of the move.
    Empty,
    /// Makes the publication and the slot at the source.
    MakeSlot,
    /// Makes the subscription at the target, which copies the rows that are there.
    Subscribe,
    AwaitCopy,
    Fence,
    /// Lists the transactions that run at the source.
    ListTransactions,
    AwaitTransactions,
    /// Ends the listed transactions that still run.
    EndTransactions,
    TakeLsn,
    AwaitTarget,
    AwaitRelay,
    Grant,
    /// Writes into the source's record that the target owns the buckets.
    RecordGrant,
    /// Bars the target from a grant of this attempt.
    Bar,
    /// Gives the source its buckets back, and writes the epochs of the next attempt into its record.
    TakeBack,
    Unsubscribe,
    /// Removes the slot at the source. The publication goes with the record.
    DropSlot,
    /// Deletes a chunk of the buckets' rows at the source, which has given them away.
    Remove,
    Close(Side, Outcome),
    Done(Outcome),
    /// A person must look: nothing is changed.
    Refuse(Contradiction),
}

/// States that no attempt makes. `coroctl shard verify` shows the rows of all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contradiction {
    /// Both shards own the buckets: one of them was restored, or written to by hand.
    TwoOwners,
    /// The epochs belong to no step of this move.
    ForeignEpoch,
    /// The grant was recorded, and the target does not have it: it was restored to a time before. The source's rows may be partly removed.
    LostGrant,
}

/// A change of a bucket's row, made only to a row that has the known epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompareAndSet {
    pub side: Side,
    pub known: i64,
    pub next: Ownership,
}

impl Step {
    /// How the step changes the bucket's row; `None` if it does not.
    pub fn compare_and_set(self, attempt: Attempt) -> Option<CompareAndSet> {
        let change =
            |side, known, epoch, owned| Some(CompareAndSet { side, known, next: Ownership { epoch, owned } });
        let Attempt { source_epoch, target_epoch } = attempt;
        match self {
            Self::Fence => change(Side::Source, source_epoch, attempt.fenced(), false),
            Self::Grant => change(Side::Target, target_epoch, attempt.granted(), true),
            Self::Bar => change(Side::Target, target_epoch, attempt.granted(), false),
            Self::TakeBack => {
                change(Side::Source, attempt.fenced(), attempt.after_rollback().source_epoch, true)
            }
            Self::Announce(_)
            | Self::Empty
            | Self::MakeSlot
            | Self::Subscribe
            | Self::AwaitCopy
            | Self::ListTransactions
            | Self::AwaitTransactions
            | Self::EndTransactions
            | Self::TakeLsn
            | Self::AwaitTarget
            | Self::AwaitRelay
            | Self::RecordGrant
            | Self::Unsubscribe
            | Self::DropSlot
            | Self::Remove
            | Self::Close(..)
            | Self::Done(_)
            | Self::Refuse(_) => None,
        }
    }

    /// The side whose record the step locks and finds open, in the transaction of its change.
    pub fn locks_open_record(self) -> Option<Side> {
        match self {
            Self::Empty | Self::Subscribe | Self::Grant | Self::Bar => Some(Side::Target),
            // A removal whose record is closed comes late: the bucket may be on its way back, and not owned.
            Self::Fence | Self::TakeBack | Self::RecordGrant | Self::Remove => Some(Side::Source),
            Self::Close(side, _) => Some(side),
            // They make the record, or are named after the move.
            Self::Announce(_) | Self::MakeSlot | Self::Unsubscribe | Self::DropSlot => None,
            Self::AwaitCopy
            | Self::ListTransactions
            | Self::AwaitTransactions
            | Self::EndTransactions
            | Self::TakeLsn
            | Self::AwaitTarget
            | Self::AwaitRelay
            | Self::Done(_)
            | Self::Refuse(_) => None,
        }
    }

    /// Whether the step may be made while the bucket's row on its shard, locked, is as given. A compare-and-set is guarded by itself.
    pub fn permits(self, attempt: Attempt, row: Ownership) -> bool {
        match self {
            Self::Empty | Self::Subscribe => AtTarget::of(row, attempt) == AtTarget::Waits,
            Self::RecordGrant | Self::Remove => AtSource::of(row, attempt) == AtSource::Fenced,
            // A fence that a killed mover sent may have come first.
            Self::Close(Side::Source, Outcome::RolledBack) => AtSource::of(row, attempt) == AtSource::Owns,
            Self::Announce(_)
            | Self::MakeSlot
            | Self::AwaitCopy
            | Self::Fence
            | Self::ListTransactions
            | Self::AwaitTransactions
            | Self::EndTransactions
            | Self::TakeLsn
            | Self::AwaitTarget
            | Self::AwaitRelay
            | Self::Grant
            | Self::Bar
            | Self::TakeBack
            | Self::Unsubscribe
            | Self::DropSlot
            | Self::Close(Side::Source | Side::Target, Outcome::Moved | Outcome::RolledBack)
            | Self::Done(_)
            | Self::Refuse(_) => true,
        }
    }
}
