//! What comes in: frames to messages, messages to transactions and rows.

use std::time::Instant;

use anyhow::{Result, bail};

use super::Stream;
use crate::checkpoint::state;
use crate::dead_letter::release::{self, ReleaseOrder};
use crate::postgres::decode::pgoutput::{self, Message, Tuple};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::replication_stream::Frame;
use crate::routes::row::{Op, Row};
use crate::sinks::emit::{Inexpressible, OpenTransaction};
use crate::source::backfill::snapshot::{self, Watermark};

/// What a logical message wants, by its prefix.
enum Command {
    Release(ReleaseOrder),
    /// A chunk of existing rows has its position here.
    Watermark(Option<Watermark>),
    /// Not meant for us, or not understood: anybody may write messages.
    Nothing,
}

impl Command {
    fn read(prefix: &str, content: &[u8]) -> Command {
        match prefix {
            release::PREFIX => match ReleaseOrder::read(content) {
                Ok(order) => Command::Release(order),
                Err(error) => {
                    tracing::warn!(%error, prefix, "a message in the log is not understood");
                    Command::Nothing
                }
            },
            snapshot::PREFIX => Command::Watermark(Watermark::parse(content)),
            _ => Command::Nothing,
        }
    }
}

impl Stream<'_> {
    /// Reads once, and takes in every whole frame.
    pub(super) fn read(&mut self) -> Result<()> {
        let read = self.replication.read()?;
        let now = Instant::now();
        if read > 0 {
            self.last_received_at = now;
        }
        self.metrics.stream.reads.inc();
        self.metrics.stream.received_bytes.inc_by(read as u64);
        self.emitter.set_batch_size(self.scheduler.load(read));
        while let Some(frame) = self.replication.frame()? {
            match frame {
                Frame::Data(range) => self.message(&range)?,
                Frame::Keepalive { wal_end, reply } => {
                    self.reply_wanted |= reply;
                    if !self.in_transaction {
                        self.continuity.idle(wal_end)?;
                        self.progress.idle(wal_end);
                    }
                }
            }
        }
        self.scheduler.read(now, read);
        Ok(())
    }

    fn message(&mut self, range: &std::ops::Range<usize>) -> Result<()> {
        let Stream { replication, scratch, emitter, progress, transaction, snapshots, .. } = self;
        let message = pgoutput::decode(replication.bytes(range), scratch)?;
        if let Some(snapshots) = snapshots {
            snapshots.receive(&message, self.xid);
        }
        let (relation, row) = match message {
            Message::Insert { relation, new } => (relation, Row::insert(new)),
            Message::Update { relation, old, new } => (relation, Row { op: Op::Update, new, old }),
            Message::Delete { relation, old } => (relation, Row::delete(old)),
            Message::Relation(relation) => return emitter.relation(&relation),
            Message::Begin { commit_lsn, committed_at, xid } => {
                self.xid = xid;
                return self.begin(commit_lsn, committed_at);
            }
            Message::Commit { commit_lsn, end_lsn, .. } => return self.commit(commit_lsn, end_lsn),
            Message::Truncate { relations, .. } => {
                let oids: Vec<u32> =
                    relations.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
                return self.truncate(&oids);
            }
            Message::Logical { transactional, prefix, content, .. } => {
                let command = if transactional { Command::read(prefix, content) } else { Command::Nothing };
                return self.logical(command);
            }
            Message::Origin { .. } | Message::Type { .. } => return Ok(()),
        };
        let Some(transaction_seq) = self.open else { return Ok(()) };
        let again = transaction.commit_lsn < self.start.sent_lsn;
        let mut open = OpenTransaction { transaction, transaction_seq, progress, again };
        emitter.row(relation, &row, &mut open)
    }

    /// What a command asked of the relay by a message in the WAL. It is done at this position of the stream: after all
    /// that was committed before, and before all that comes later.
    fn logical(&mut self, command: Command) -> Result<()> {
        if self.open.is_none() {
            return Ok(()); // done, and acknowledged by every sink
        }
        match command {
            Command::Release(order) => self.release(&order),
            Command::Watermark(watermark) => self.watermark(watermark),
            Command::Nothing => Ok(()),
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, committed_at: PgTime) -> Result<()> {
        if self.in_transaction {
            bail!("a transaction began inside another");
        }
        self.in_transaction = true;
        // The checkpoint was written before the slot was confirmed: all sinks have these already.
        if self.continuity.begins(state::CommitId { commit_lsn, committed_at: committed_at.0 })? {
            self.open = None;
            return Ok(());
        }
        let transaction = &mut self.transaction;
        (transaction.commit_lsn, transaction.committed_at) = (commit_lsn, committed_at);
        (transaction.previous, transaction.rows, transaction.emitted) = (self.chain_lsn, 0, 0);
        (transaction.re_emitted, transaction.existing) = (false, false);
        transaction.time.clear();
        committed_at.write_rfc3339(&mut transaction.time);
        self.open = Some(self.progress.begin(commit_lsn, committed_at));
        Ok(())
    }

    /// The stream met the mark of a chunk of existing rows.
    fn watermark(&mut self, watermark: Option<Watermark>) -> Result<()> {
        let Stream { emitter, progress, transaction, snapshots, .. } = self;
        let (Some(watermark), Some(transaction_seq), Some(snapshots)) = (watermark, self.open, snapshots)
        else {
            return Ok(());
        };
        (transaction.re_emitted, transaction.existing) = (true, true);
        let mut open = OpenTransaction { transaction, transaction_seq, progress, again: false };
        snapshots.meet_watermark(watermark, emitter, &mut open)
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        if !self.in_transaction {
            bail!("a transaction ended that had not begun");
        }
        self.in_transaction = false;
        self.metrics.stream.transactions.inc();
        if self.open.take().is_some() {
            if self.progress.commit(end_lsn) {
                self.chain_lsn = commit_lsn;
            }
            self.idle_only = false;
            self.start.sent_lsn = self.start.sent_lsn.max(end_lsn);
        }
        Ok(())
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<()> {
        let Some(transaction_seq) = self.open else { return Ok(()) };
        for relation in relations {
            let Stream { emitter, progress, transaction, .. } = self;
            let mut open = OpenTransaction { transaction, transaction_seq, progress, again: false };
            let row = Row::insert(Tuple::none());
            let reason = "the table was truncated, which no route can express";
            emitter.inexpressible(*relation, &row, Inexpressible { op: "truncate", reason }, &mut open)?;
        }
        Ok(())
    }
}
