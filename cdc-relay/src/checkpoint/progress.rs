//! Computes the position that may be confirmed to Postgres: pure, no clock, no I/O.
//!
//! * Transactions are queued in commit order, each with its number of unacknowledged messages per sink.
//! * Only a prefix of whole, fully acknowledged transactions may be confirmed, at the end of its last commit.
//! * A row's position is never confirmed, and nothing past an open transaction.

use std::collections::VecDeque;

use crate::checkpoint::state::CommitId;
use crate::postgres::lsn::{Lsn, PgTime};

/// The destinations of messages; each acknowledges by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Kafka = 0,
    Rabbit = 1,
}

pub const SINKS: usize = 2;

/// Identifies a transaction towards the sinks. A process never reuses one, so that a late acknowledgement of an earlier
/// session cannot count for a newer one.
pub type TransactionSeq = u64;

#[derive(Debug)]
struct Unit {
    outstanding: [u32; SINKS],
    /// A sink took a message of it.
    emitted: bool,
    /// One of them is a link of the chain on Kafka.
    linked: bool,
    committed_at: PgTime,
    commit_lsn: Lsn,
    /// Set at commit; an open transaction has none.
    end_lsn: Option<Lsn>,
}

/// A sink has acknowledged all its messages of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkAcknowledgement {
    pub sink: Sink,
    pub committed_at: PgTime,
}

#[derive(Debug)]
pub struct Progress {
    queue: VecDeque<Unit>,
    /// The number of the queue's first transaction.
    first: TransactionSeq,
    confirmed: Lsn,
    /// The commit of the last transaction up to `confirmed` that emitted a link.
    chain: Lsn,
    /// The last transaction that emitted anything to any sink since the start.
    last: Option<CommitId>,
}

impl Progress {
    /// Starts after `confirmed`; transactions are numbered from `first` on.
    pub fn new(first: TransactionSeq, confirmed: Lsn, chain: Lsn) -> Progress {
        Progress { queue: VecDeque::new(), first, confirmed, chain, last: None }
    }

    /// Every sink has acknowledged everything up to this position.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The last commit up to `confirmed` that emitted a link of the chain.
    pub fn chain(&self) -> Lsn {
        self.chain
    }

    /// The last transaction up to `confirmed` that emitted anything since the start.
    pub fn last(&self) -> Option<CommitId> {
        self.last
    }

    /// The number of transactions that are open or not yet acknowledged.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// The commit time of the oldest of them.
    pub fn oldest(&self) -> Option<PgTime> {
        self.queue.front().map(|unit| unit.committed_at)
    }

    pub fn next_transaction_seq(&self) -> TransactionSeq {
        self.first + self.queue.len() as u64
    }

    /// Begins a transaction. The one before it must be committed.
    pub fn begin(&mut self, commit_lsn: Lsn, committed_at: PgTime) -> TransactionSeq {
        let transaction_seq = self.next_transaction_seq();
        let (outstanding, emitted, linked) = ([0; SINKS], false, false);
        self.queue.push_back(Unit { outstanding, emitted, linked, committed_at, commit_lsn, end_lsn: None });
        transaction_seq
    }

    /// Counts one message of the open transaction to a sink. `is_link`: it is a link of the chain on Kafka.
    pub fn added(&mut self, sink: Sink, is_link: bool) {
        if let Some(unit) = self.queue.back_mut() {
            unit.outstanding[sink as usize] += 1;
            unit.emitted = true;
            unit.linked |= is_link;
        }
    }

    /// Counts a message of another transaction that is emitted again: it is waited for, and says nothing of the open one.
    pub fn re_emit(&mut self, sink: Sink) {
        if let Some(unit) = self.queue.back_mut() {
            unit.outstanding[sink as usize] += 1;
        }
    }

    /// Whether every emitted message is acknowledged, the open transaction's too.
    pub fn is_acknowledged(&self) -> bool {
        self.queue.iter().all(|unit| unit.outstanding == [0; SINKS])
    }

    /// Commits the open transaction. Returns whether it is a link of the chain.
    pub fn commit(&mut self, end_lsn: Lsn) -> bool {
        let Some(unit) = self.queue.back_mut() else { return false };
        unit.end_lsn = Some(end_lsn);
        let linked = unit.linked;
        self.advance();
        linked
    }

    /// Acknowledges `count` messages of a transaction. Transactions of earlier sessions are ignored.
    pub fn acknowledge(
        &mut self,
        transaction_seq: TransactionSeq,
        sink: Sink,
        count: u32,
    ) -> Option<SinkAcknowledgement> {
        let index = usize::try_from(transaction_seq.checked_sub(self.first)?).ok()?;
        let unit = self.queue.get_mut(index)?;
        let left = &mut unit.outstanding[sink as usize];
        *left = left.saturating_sub(count);
        let acknowledged = (*left == 0 && unit.end_lsn.is_some())
            .then_some(SinkAcknowledgement { sink, committed_at: unit.committed_at });
        self.advance();
        acknowledged
    }

    /// Takes a keepalive: the server has no transaction up to `wal_end`. It counts only if no transaction is pending; otherwise
    /// the position lies past one that is not acknowledged.
    pub fn idle(&mut self, wal_end: Lsn) {
        if self.queue.is_empty() && wal_end > self.confirmed {
            self.confirmed = wal_end;
        }
    }

    fn advance(&mut self) {
        while let Some(unit) = self.queue.front() {
            let Some(end_lsn) = unit.end_lsn else { return };
            if unit.outstanding != [0; SINKS] {
                return;
            }
            if unit.linked {
                self.chain = unit.commit_lsn;
            }
            if unit.emitted {
                self.last = Some(CommitId { commit_lsn: unit.commit_lsn, committed_at: unit.committed_at.0 });
            }
            self.confirmed = self.confirmed.max(end_lsn);
            self.first += 1;
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
