//! Whether the server still has the history that was emitted: pure.
//!
//! A volume that is set back to an earlier snapshot is the same cluster on the same timeline, with the slot as it was
//! then. Once its log has grown past what was emitted, positions alone do not give it away; but what is committed there
//! now stands where other transactions were emitted. Such a slot is behind the checkpoint, so the server sends again what
//! was emitted last, and that one has to be there: before it was seen nothing is emitted and nothing is confirmed.

use crate::checkpoint::state::{CommitId, Refusal};
use crate::postgres::lsn::Lsn;

#[derive(Debug)]
pub struct Continuity {
    last: CommitId,
    met: bool,
}

impl Continuity {
    /// `last` is the last transaction that was emitted and acknowledged; the server begins at `begin`.
    pub fn new(last: CommitId, begin: Lsn) -> Continuity {
        Continuity { last, met: last == CommitId::default() || last.commit_lsn < begin }
    }

    /// The server is the one that the checkpoint is of.
    pub fn is_met(&self) -> bool {
        self.met
    }

    /// A transaction begins. Answers whether it was emitted before, and is acknowledged.
    ///
    /// # Errors
    /// It lies behind what was emitted last, and that one did not come.
    pub fn begins(&mut self, commit: CommitId) -> Result<bool, Refusal> {
        self.met |= commit == self.last;
        if commit.commit_lsn < self.last.commit_lsn || commit == self.last {
            return Ok(true);
        }
        self.require()?;
        Ok(false)
    }

    /// The server has nothing more up to `wal_end`.
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

    fn mark(commit_lsn: u64, committed_at: i64) -> CommitId {
        CommitId { commit_lsn: Lsn(commit_lsn), committed_at }
    }

    #[test]
    fn what_was_told_is_passed_over_and_what_follows_is_not() {
        let mut history = Continuity::new(mark(30, 3), Lsn(10));
        assert!(!history.is_met());
        assert_eq!(history.begins(mark(10, 1)), Ok(true));
        assert_eq!(history.idle(Lsn(25)), Ok(()));
        assert_eq!(history.begins(mark(30, 3)), Ok(true));
        assert!(history.is_met());
        assert_eq!(history.begins(mark(40, 4)), Ok(false));
        assert_eq!(history.idle(Lsn(50)), Ok(()));
    }

    #[test]
    fn a_server_that_begins_after_what_was_told_has_nothing_to_prove() {
        let mut history = Continuity::new(mark(30, 3), Lsn(35));
        assert!(history.is_met());
        assert_eq!(history.begins(mark(40, 4)), Ok(false));
    }

    #[test]
    fn before_anything_was_told_there_is_no_history() {
        let mut history = Continuity::new(CommitId::default(), Lsn::ZERO);
        assert_eq!(history.begins(mark(40, 4)), Ok(false));
        assert_eq!(history.idle(Lsn(50)), Ok(()));
    }

    /// The loss it prevents: passing over rows that stand where others were emitted.
    #[test]
    fn another_history_is_refused_whether_it_has_transactions_or_silence_there() {
        let refused = Err(Refusal::ContinuityLost { sent_lsn: Lsn(30) });
        for commit in [mark(31, 3), mark(30, 4)] {
            let mut history = Continuity::new(mark(30, 3), Lsn(10));
            assert_eq!(history.begins(mark(20, 2)), Ok(true));
            assert_eq!(history.begins(commit), refused);
        }
        assert_eq!(
            Continuity::new(mark(30, 3), Lsn(30)).idle(Lsn(31)),
            Err(Refusal::ContinuityLost { sent_lsn: Lsn(30) })
        );
    }
}
