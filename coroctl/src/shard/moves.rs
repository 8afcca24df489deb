//! Decides the next step of a move of buckets from what its two shards recorded.
//!
//! * A move makes attempts. Each names the epochs that a bucket has at its source and at its target when it begins, and its changes
//!   have the next three ([`Attempt`]): fence at the source, grant or bar at the target, taken back at the source.
//! * Each of these is a compare-and-set on the epoch that is known (`change_ownership`, [`saga::shards`]), in one transaction with a
//!   look at the move's record ([`Step::locks_open_record`]). So a statement of a mover that was killed changes nothing once
//!   another mover has gone on.
//! * Before the source takes its buckets back, the target is barred: its epoch rises without a grant, so none can come. After a
//!   grant a move only goes forward.
//! * A grant is recorded at the source before anything is removed. A target that does not have it any more was restored to a time before
//!   it: a person must look.
//! * What was read counts once a synchronous commit of the reader's own has followed it on that shard: a primary that was
//!   restarted shows commits that its standby does not have.
//! * A shard whose incarnation changed before the grant (a promotion, a restore) may have lost what the other has. The move is
//!   rolled back.
//! * The shard that owns the buckets closes its record last, and a shard with an open record of a bucket takes part in no
//!   other move of it. So a bucket cannot come back while its rows are still being removed.
//! * A mover holds a lock of its session on each shard, so a statement of a killed mover has ended before the next mover decides.
//!   Nothing is lost where that fails, but for one thing: a slot cannot be made under a row's lock, and could be left behind.
//! * Nothing here reads a clock or a database. The model check runs these decisions (docs/MODEL_CHECK.md).

mod attempt;
mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use attempt::{AtSource, AtTarget, Attempt, Ownership, Side};
pub use step::{CompareAndSet, Contradiction, Step};

/// After this time with the fence up, transactions that still run at the source are ended.
pub const TRANSACTION_MAX: Duration = Duration::from_millis(150);
/// After this time without a grant the fence is lifted; the attempt is made again later.
pub const FENCE_MAX: Duration = Duration::from_millis(300);

/// The move's record on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Record {
    #[default]
    Absent,
    Open,
    Closed(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Moved,
    RolledBack,
}

/// The subscription of the move, at the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Subscription {
    #[default]
    Absent,
    /// Rows are being copied, or the target has not caught up.
    Copying,
    /// Every table follows the source, and counts and checksums agree.
    Follows,
}

/// The way from a fence to a grant. The mover keeps it in memory: after a kill it begins anew, which is later, and so as good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Drain {
    /// The transactions that run behind the fence are not known yet.
    #[default]
    Unknown,
    /// Some that ran when the fence was committed still run.
    Running,
    /// All of them have ended.
    Ended,
    /// The source's LSN was taken after that.
    At { target_has_flushed: bool, relay_has_acknowledged: bool },
}

/// The facts that the two shards recorded, and what the mover has seen since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    pub source: AtSource,
    pub target: AtTarget,
    pub source_record: Record,
    pub target_record: Record,
    /// The move's slot exists at the source.
    pub has_slot: bool,
    pub subscription: Subscription,
    /// Rows of the buckets that are on the shard.
    pub source_has_rows: bool,
    pub target_has_rows: bool,
    pub drain: Drain,
    /// How long the fence has been up, by the mover's clock.
    pub fenced_for: Duration,
    /// An operator asked to abort; it is in the source's record.
    pub abort_requested: bool,
    /// The source's record says that the target was granted the buckets.
    pub grant_recorded: bool,
    /// Both databases are in the incarnation that they were in when the move began.
    pub same_incarnations: bool,
}

/// The next step of a move, whoever made the last one.
pub fn next(observed: &Observed) -> Step {
    match (observed.source_record, observed.target_record) {
        (Record::Open, Record::Absent | Record::Open)
        | (Record::Closed(Outcome::Moved), Record::Absent | Record::Open)
            if observed.grant_recorded && observed.target != AtTarget::Granted =>
        {
            Step::Refuse(Contradiction::LostGrant)
        }
        // `adopt` closed the record of a source that was restored to before the grant.
        (Record::Closed(Outcome::Moved), Record::Open) if observed.subscription != Subscription::Absent => {
            Step::Unsubscribe
        }
        (Record::Closed(outcome), Record::Open) => Step::Close(Side::Target, outcome),
        // A fence that a killed mover sent came late. No grant can come: it would need the target's record open.
        (Record::Open, Record::Closed(Outcome::RolledBack)) if observed.source == AtSource::Fenced => {
            Step::TakeBack
        }
        (Record::Open, Record::Closed(outcome)) => Step::Close(Side::Source, outcome),
        (Record::Closed(outcome), Record::Absent | Record::Closed(_))
        | (Record::Absent, Record::Closed(outcome)) => Step::Done(outcome),
        (Record::Absent | Record::Open, Record::Absent | Record::Open) => next_of_open(observed),
    }
}

fn next_of_open(observed: &Observed) -> Step {
    use {AtSource as S, AtTarget as T};
    let goes_back = observed.abort_requested || !observed.same_incarnations;
    match (observed.source, observed.target) {
        (S::Owns, T::Waits) if goes_back => roll_back(observed),
        (S::Owns, T::Waits) => copy(observed),
        // A target that has lost its record gets one: whoever bars it, or grants, locks that.
        (S::Fenced, T::Waits) if observed.target_record == Record::Absent => Step::Announce(Side::Target),
        (S::Fenced, T::Waits) if goes_back || observed.fenced_for >= FENCE_MAX => Step::Bar,
        // Without its subscription the target lacks rows, and no time brings them.
        (S::Fenced, T::Waits) if observed.subscription == Subscription::Absent => Step::Bar,
        (S::Fenced, T::Waits) => drain(observed),
        (S::Fenced, T::Barred) => Step::TakeBack,
        (S::Fenced, T::Granted) if !observed.grant_recorded => Step::RecordGrant,
        (S::Fenced, T::Granted) => finish(observed),
        // The source has lost its fence. It gets one, so that its epoch rises when it takes the buckets back.
        (S::Owns, T::Barred) => Step::Fence,
        (S::Owns, T::Granted) => Step::Refuse(Contradiction::TwoOwners),
        (S::Owns | S::Fenced, T::Other) | (S::Other, T::Waits | T::Granted | T::Barred | T::Other) => {
            Step::Refuse(Contradiction::ForeignEpoch)
        }
    }
}

fn copy(observed: &Observed) -> Step {
    match (observed.source_record, observed.target_record) {
        (Record::Absent, _) => return Step::Announce(Side::Source),
        (_, Record::Absent) => return Step::Announce(Side::Target),
        (Record::Open | Record::Closed(_), Record::Open | Record::Closed(_)) => {}
    }
    match (observed.subscription, observed.has_slot, observed.target_has_rows) {
        (Subscription::Absent, true | false, true) => Step::Empty,
        (Subscription::Absent, false, false) => Step::MakeSlot,
        // A slot that a lost subscription has read from is as good as a new one: the rows are copied anew.
        (Subscription::Absent, true, false) => Step::Subscribe,
        (Subscription::Copying | Subscription::Follows, false, true | false) => Step::Unsubscribe,
        (Subscription::Copying, true, true | false) => Step::AwaitCopy,
        (Subscription::Follows, true, true | false) => Step::Fence,
    }
}

fn drain(observed: &Observed) -> Step {
    match observed.drain {
        Drain::Unknown => Step::ListTransactions,
        Drain::Running if observed.fenced_for >= TRANSACTION_MAX => Step::EndTransactions,
        Drain::Running => Step::AwaitTransactions,
        Drain::Ended => Step::TakeLsn,
        Drain::At { target_has_flushed: false, .. } => Step::AwaitTarget,
        Drain::At { relay_has_acknowledged: false, .. } => Step::AwaitRelay,
        Drain::At { target_has_flushed: true, relay_has_acknowledged: true } => Step::Grant,
    }
}

/// The source owns the buckets, and no grant can come.
fn roll_back(observed: &Observed) -> Step {
    let has_claimed = observed.target_record == Record::Open;
    match observed.subscription {
        Subscription::Copying | Subscription::Follows => Step::Unsubscribe,
        Subscription::Absent if observed.has_slot => Step::DropSlot,
        Subscription::Absent if has_claimed && observed.target_has_rows => Step::Empty,
        Subscription::Absent if has_claimed => Step::Close(Side::Target, Outcome::RolledBack),
        Subscription::Absent if observed.source_record == Record::Open => {
            Step::Close(Side::Source, Outcome::RolledBack)
        }
        Subscription::Absent => Step::Done(Outcome::RolledBack),
    }
}

/// The target owns the buckets.
fn finish(observed: &Observed) -> Step {
    match observed.subscription {
        Subscription::Copying | Subscription::Follows => Step::Unsubscribe,
        Subscription::Absent if observed.has_slot => Step::DropSlot,
        Subscription::Absent if observed.source_has_rows => Step::Remove,
        Subscription::Absent => Step::Close(Side::Source, Outcome::Moved),
    }
}
