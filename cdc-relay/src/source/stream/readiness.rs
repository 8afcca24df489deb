//! Decides when a session counts as streaming, and sets the source's status.
//!
//! * The server must have the transactions of the checkpoint (`Continuity`).
//! * The stream must have passed the position at which the session before ended with an error of the server.

use anyhow::Result;

use crate::checkpoint::continuity::Continuity;
use crate::checkpoint::state::CommitId;
use crate::observe::status::{State, Status};
use crate::postgres::lsn::Lsn;

pub struct Readiness {
    status: Status,
    continuity: Continuity,
    doubt: Lsn,
    is_streaming: bool,
}

impl Readiness {
    pub fn new(status: Status, continuity: Continuity, doubt: Lsn) -> Readiness {
        Readiness { status, continuity, doubt, is_streaming: false }
    }

    /// A transaction begins. Returns whether it is acknowledged already.
    ///
    /// # Errors
    /// The server does not have the last acknowledged transaction.
    pub fn begins(&mut self, commit: CommitId) -> Result<bool> {
        Ok(self.continuity.begins(commit)?)
    }

    /// Whether nothing of a transaction of this commit position is emitted: the server sends it again, or must not have it.
    pub fn emits_nothing_of(&self, commit_lsn: Lsn) -> bool {
        self.continuity.emits_nothing_of(commit_lsn)
    }

    /// The server has nothing more up to `wal_end`.
    ///
    /// # Errors
    /// As `begins`.
    pub fn idle(&self, wal_end: Lsn) -> Result<()> {
        Ok(self.continuity.idle(wal_end)?)
    }

    /// Sets the status once the session counts as streaming. Returns true that one time.
    pub fn turns_streaming(&mut self, confirmed: Lsn) -> bool {
        if self.is_streaming || !self.continuity.is_met() || confirmed < self.doubt {
            return false;
        }
        self.is_streaming = true;
        self.status.set(State::Streaming);
        true
    }
}
