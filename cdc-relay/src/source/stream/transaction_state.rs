//! Follows the transactions of the stream: the open one, the chain of positions, and how far this process has emitted.
//!
//! * A transaction that is skipped was emitted before, and is acknowledged.
//! * One that is left out is of another server's: no row of it is emitted, and it is no link of the chain. It is waited for and
//!   confirmed as one whose rows match no route.

use anyhow::{Result, bail};

use crate::checkpoint::progress::{Progress, TransactionSeq};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::routes::route::Transaction;
use crate::sinks::emit::OpenTransaction;

pub struct TransactionState {
    transaction: Transaction,
    is_open: bool,
    /// The open transaction; `None` if it is skipped.
    seq: Option<TransactionSeq>,
    /// The open transaction is of another server's, and the source emits none of those.
    is_left_out: bool,
    /// The id of the open transaction.
    pub xid: u32,
    /// The last commit in the chain of positions.
    chain_lsn: Lsn,
    /// This process has emitted commits up to here, perhaps in an earlier session.
    pub sent_lsn: Lsn,
}

impl TransactionState {
    pub fn new(cluster: String, chain_lsn: Lsn, sent_lsn: Lsn) -> TransactionState {
        let transaction = Transaction { cluster, ..Transaction::default() };
        let (is_open, is_left_out) = (false, false);
        TransactionState { transaction, is_open, seq: None, is_left_out, xid: 0, chain_lsn, sent_lsn }
    }

    /// Whether the stream is inside a transaction.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the stream is inside a transaction that it emits.
    pub fn is_emitted(&self) -> bool {
        self.seq.is_some()
    }

    /// When the open transaction was committed, if it is emitted.
    pub fn committed_at(&self) -> PgTime {
        self.transaction.committed_at
    }

    /// A transaction begins. Until `begin` it is skipped.
    pub fn enter(&mut self) -> Result<()> {
        if self.is_open {
            bail!("the server began a transaction inside another one");
        }
        (self.is_open, self.seq, self.is_left_out) = (true, None, false);
        Ok(())
    }

    /// The open transaction is of another server's, and no row of it is to be emitted. Returns whether it would have been.
    pub fn leave_out(&mut self) -> bool {
        self.is_left_out = true;
        self.seq.is_some()
    }

    /// Whether no row of the open transaction is emitted, because it is of another server's.
    pub fn is_left_out(&self) -> bool {
        self.is_open && self.is_left_out
    }

    /// The transaction that was entered is to be emitted.
    pub fn begin(&mut self, progress: &mut Progress, commit_lsn: Lsn, committed_at: PgTime) {
        let transaction = &mut self.transaction;
        (transaction.commit_lsn, transaction.committed_at) = (commit_lsn, committed_at);
        (transaction.previous, transaction.rows, transaction.emitted) = (self.chain_lsn, 0, 0);
        (transaction.re_emitted, transaction.existing) = (false, false);
        transaction.time.clear();
        committed_at.write_rfc3339(&mut transaction.time);
        self.seq = Some(progress.begin(commit_lsn, committed_at));
    }

    /// The transaction ends. Returns whether it was emitted.
    pub fn commit(&mut self, progress: &mut Progress, commit_lsn: Lsn, end_lsn: Lsn) -> Result<bool> {
        if !self.is_open {
            bail!("the server ended a transaction that it had not begun");
        }
        self.is_open = false;
        if self.seq.take().is_none() {
            return Ok(false);
        }
        if progress.commit(end_lsn) {
            self.chain_lsn = commit_lsn;
        }
        self.sent_lsn = self.sent_lsn.max(end_lsn);
        Ok(true)
    }

    /// The open transaction, for rows of the stream; `None` if it is skipped or left out.
    #[inline]
    pub fn open<'t>(&'t mut self, progress: &'t mut Progress) -> Option<OpenTransaction<'t>> {
        if self.is_left_out {
            return None;
        }
        let again = self.transaction.commit_lsn < self.sent_lsn;
        let transaction = &mut self.transaction;
        Some(OpenTransaction { transaction, transaction_seq: self.seq?, progress, again })
    }

    /// The open transaction, for rows that existed before the slot; `None` if it is skipped.
    pub fn open_for_existing<'t>(&'t mut self, progress: &'t mut Progress) -> Option<OpenTransaction<'t>> {
        let open = self.open(progress)?;
        (open.transaction.re_emitted, open.transaction.existing) = (true, true);
        Some(OpenTransaction { again: false, ..open })
    }

    /// The open transaction's number, with another transaction that its events name; `None` if it is skipped.
    pub fn open_as<'t>(
        &self,
        transaction: &'t mut Transaction,
        progress: &'t mut Progress,
    ) -> Option<OpenTransaction<'t>> {
        Some(OpenTransaction { transaction, transaction_seq: self.seq?, progress, again: false })
    }
}

#[cfg(test)]
#[path = "transaction_state_tests.rs"]
mod tests;
