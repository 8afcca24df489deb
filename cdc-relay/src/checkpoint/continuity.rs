//! Checks that the server still has the transactions that were emitted: pure.
//!
//! * A volume that was set back to an earlier snapshot is the same cluster on the same timeline, with an older slot. Once its
//!   WAL has grown past the last emitted position, positions alone do not reveal it.
//! * The slot of such a server is behind the checkpoint, so the server sends the last emitted transaction once more. If that
//!   one does not come, other transactions stand in its place, and the source refuses.
//! * Before it has come, nothing is emitted and nothing is confirmed.

use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::state::CommitId;
use crate::postgres::lsn::Lsn;

#[derive(Debug)]
pub struct Continuity {
    last: CommitId,
    met: bool,
}

impl Continuity {
    /// `last` is the last transaction that was emitted and acknowledged. The server sends from `begin` on.
    pub fn new(last: CommitId, begin: Lsn) -> Continuity {
        Continuity { last, met: last == CommitId::default() || last.commit_lsn < begin }
    }

    /// Whether the server has the last emitted transaction.
    pub fn is_met(&self) -> bool {
        self.met
    }

    /// Whether `begins` skips or refuses every transaction of this commit position, so that nothing of it is emitted.
    pub fn emits_nothing_of(&self, commit_lsn: Lsn) -> bool {
        commit_lsn < self.last.commit_lsn || (commit_lsn == self.last.commit_lsn && !self.met)
    }

    /// Takes the begin of a transaction. Returns whether it was emitted before, and is acknowledged.
    ///
    /// # Errors
    /// When it lies behind the last emitted transaction, and that one did not come.
    pub fn begins(&mut self, commit: CommitId) -> Result<bool, Refusal> {
        self.met |= commit == self.last;
        if commit.commit_lsn < self.last.commit_lsn || commit == self.last {
            return Ok(true);
        }
        self.require()?;
        Ok(false)
    }

    /// Takes a keepalive: the server has no further transaction up to `wal_end`.
    ///
    /// # Errors
    /// As `begins`.
    pub fn idle(&self, wal_end: Lsn) -> Result<(), Refusal> {
        if wal_end > self.last.commit_lsn { self.require() } else { Ok(()) }
    }

    fn require(&self) -> Result<(), Refusal> {
        if self.met { Ok(()) } else { Err(Refusal::ContinuityLost { sent_lsn: self.last.commit_lsn }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit_id(commit_lsn: u64, committed_at: i64) -> CommitId {
        CommitId { commit_lsn: Lsn(commit_lsn), committed_at }
    }

    #[test]
    fn emitted_transactions_are_skipped_and_later_ones_are_not() {
        let mut continuity = Continuity::new(commit_id(30, 3), Lsn(10));
        assert!(!continuity.is_met());
        assert_eq!(continuity.begins(commit_id(10, 1)), Ok(true));
        assert_eq!(continuity.idle(Lsn(25)), Ok(()));
        assert_eq!(continuity.begins(commit_id(30, 3)), Ok(true));
        assert!(continuity.is_met());
        assert_eq!(continuity.begins(commit_id(40, 4)), Ok(false));
        assert_eq!(continuity.idle(Lsn(50)), Ok(()));
    }

    #[test]
    fn a_server_that_begins_after_the_last_emitted_transaction_has_nothing_to_prove() {
        let mut continuity = Continuity::new(commit_id(30, 3), Lsn(35));
        assert!(continuity.is_met());
        assert_eq!(continuity.begins(commit_id(40, 4)), Ok(false));
    }

    #[test]
    fn before_anything_was_emitted_there_is_no_continuity_to_check() {
        let mut continuity = Continuity::new(CommitId::default(), Lsn::ZERO);
        assert_eq!(continuity.begins(commit_id(40, 4)), Ok(false));
        assert_eq!(continuity.idle(Lsn(50)), Ok(()));
    }

    /// Whatever does not wait for standbys must not be emitted: `emits_nothing_of` promises no more than `begins` keeps.
    #[test]
    fn nothing_is_emitted_of_a_transaction_that_need_not_wait() {
        let (last, before, behind) = (commit_id(30, 3), Lsn(10), Lsn(35));
        for (begin, commit, emits_nothing) in [
            (before, commit_id(20, 2), true),
            (before, last, true),
            (before, commit_id(30, 4), true),
            (before, commit_id(31, 4), false),
            (behind, commit_id(20, 2), true),
            (behind, commit_id(30, 4), false),
            (behind, commit_id(40, 4), false),
        ] {
            let mut continuity = Continuity::new(last, begin);
            assert_eq!(continuity.emits_nothing_of(commit.commit_lsn), emits_nothing, "{begin} {commit:?}");
            let is_emitted = continuity.begins(commit) == Ok(false);
            assert!(!(emits_nothing && is_emitted), "{begin} {commit:?}");
        }
        let first = Continuity::new(CommitId::default(), before);
        assert!(!first.emits_nothing_of(Lsn(20)));
    }

    /// Prevents a loss: skipping rows in whose place others were emitted.
    #[test]
    fn other_transactions_or_silence_in_its_place_are_refused() {
        let refused = Err(Refusal::ContinuityLost { sent_lsn: Lsn(30) });
        for commit in [commit_id(31, 3), commit_id(30, 4)] {
            let mut continuity = Continuity::new(commit_id(30, 3), Lsn(10));
            assert_eq!(continuity.begins(commit_id(20, 2)), Ok(true));
            assert_eq!(continuity.begins(commit), refused);
        }
        assert_eq!(
            Continuity::new(commit_id(30, 3), Lsn(30)).idle(Lsn(31)),
            Err(Refusal::ContinuityLost { sent_lsn: Lsn(30) })
        );
    }
}
