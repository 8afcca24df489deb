//! What may be confirmed to Postgres: pure bookkeeping, no clock, no I/O.
//!
//! The unit is the transaction. Transactions stand in a queue in commit order, each with the number of its
//! messages that a sink has not yet acknowledged. Only a prefix of whole, fully acknowledged transactions may be
//! confirmed, at the end position of its last commit: never a row's position, and never past an open transaction.

use std::collections::VecDeque;

use crate::checkpoint::state::CommitId;
use crate::postgres::lsn::{Lsn, PgTime};

/// The places a message can go to; each acknowledges by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Kafka = 0,
    Rabbit = 1,
}

pub const SINKS: usize = 2;

/// Names a transaction towards the sinks. Never reused in a process, so a late acknowledgement of an earlier
/// session cannot be taken for a newer one.
pub type TransactionSeq = u64;

#[derive(Debug)]
struct Unit {
    outstanding: [u32; SINKS],
    emitted: [bool; SINKS],
    committed_at: PgTime,
    commit_lsn: Lsn,
    /// Set at commit; an open transaction has none.
    end_lsn: Option<Lsn>,
}

/// A sink has acknowledged all that it got of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkAcknowledgement {
    pub sink: Sink,
    pub committed_at: PgTime,
}

#[derive(Debug)]
pub struct Progress {
    queue: VecDeque<Unit>,
    /// TransactionSeq of the first unit in the queue.
    first: TransactionSeq,
    confirmed: Lsn,
    /// Commit of the last transaction at or before `confirmed` that emitted anything on Kafka.
    chain: Lsn,
    /// The last one that emitted anything anywhere, if there was one since the start.
    last: Option<CommitId>,
}

impl Progress {
    /// Starts after `confirmed`; tickets begin at `first`.
    pub fn new(first: TransactionSeq, confirmed: Lsn, chain: Lsn) -> Progress {
        Progress { queue: VecDeque::new(), first, confirmed, chain, last: None }
    }

    /// Everything up to here is acknowledged by every sink.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The last commit up to `confirmed` that emitted anything on Kafka.
    pub fn chain(&self) -> Lsn {
        self.chain
    }

    /// The last transaction up to `confirmed` that emitted anything, if there was one since the start.
    pub fn last(&self) -> Option<CommitId> {
        self.last
    }

    /// Transactions that are open or not yet acknowledged.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// When the oldest of them was committed.
    pub fn oldest(&self) -> Option<PgTime> {
        self.queue.front().map(|unit| unit.committed_at)
    }

    pub fn next_transaction_seq(&self) -> TransactionSeq {
        self.first + self.queue.len() as u64
    }

    /// A transaction begins. The one before it must have been committed.
    pub fn begin(&mut self, commit_lsn: Lsn, committed_at: PgTime) -> TransactionSeq {
        let transaction_seq = self.next_transaction_seq();
        let (outstanding, emitted) = ([0; SINKS], [false; SINKS]);
        self.queue.push_back(Unit { outstanding, emitted, committed_at, commit_lsn, end_lsn: None });
        transaction_seq
    }

    /// The open transaction emitted one message to a sink.
    pub fn added(&mut self, sink: Sink) {
        if let Some(unit) = self.queue.back_mut() {
            unit.outstanding[sink as usize] += 1;
            unit.emitted[sink as usize] = true;
        }
    }

    /// As `added`, of a record that is no link of the chain.
    pub fn re_emit(&mut self, sink: Sink) {
        if let Some(unit) = self.queue.back_mut() {
            unit.outstanding[sink as usize] += 1;
        }
    }

    /// All that was emitted is acknowledged, of the open transaction too.
    pub fn is_acknowledged(&self) -> bool {
        self.queue.iter().all(|unit| unit.outstanding == [0; SINKS])
    }

    /// The open transaction is whole. Returns whether it emitted anything on Kafka.
    pub fn commit(&mut self, end_lsn: Lsn) -> bool {
        let Some(unit) = self.queue.back_mut() else { return false };
        unit.end_lsn = Some(end_lsn);
        let emitted = unit.emitted[Sink::Kafka as usize];
        self.advance();
        emitted
    }

    /// `count` messages of a transaction are acknowledged. Transaction numbers of earlier sessions are ignored.
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

    /// The server has nothing for us up to `wal_end`. Counts only when nothing is open or outstanding: otherwise
    /// the position lies past a transaction that is not acknowledged.
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
            if unit.emitted[Sink::Kafka as usize] {
                self.chain = unit.commit_lsn;
            }
            if unit.emitted != [false; SINKS] {
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
