//! What comes in: frames to messages, messages to transactions and rows.

use std::time::Instant;

use anyhow::{Result, bail};

use super::Stream;
use crate::copy::Frame;
use crate::lsn::{Lsn, PgTime};
use crate::pgoutput::{self, Message, Old, Tuple};
use crate::progress::Sink;
use crate::tell::Open;
use crate::template::Row;

impl Stream<'_> {
    /// Reads once, and takes in every whole frame.
    pub(super) fn read(&mut self) -> Result<()> {
        let read = self.wire.read()?;
        let (now, departed) = (Instant::now(), self.acks.departed(Sink::Kafka));
        if read > 0 {
            self.heard_at = now;
        }
        self.metrics.reads.inc();
        self.metrics.received_bytes.inc_by(read as u64);
        self.teller.expect(self.pace.is_backlog(read));
        while let Some(frame) = self.wire.frame()? {
            match frame {
                Frame::Data(range) => self.message(&range)?,
                Frame::Keepalive { wal_end, reply } => {
                    self.reply_wanted |= reply;
                    if !self.in_transaction {
                        self.progress.idle(wal_end);
                    }
                }
            }
        }
        self.pace.read(now, read, self.acks.departed(Sink::Kafka) - departed);
        Ok(())
    }

    fn message(&mut self, range: &std::ops::Range<usize>) -> Result<()> {
        let Stream { wire, scratch, teller, progress, transaction, .. } = self;
        let message = pgoutput::decode(wire.bytes(range), scratch)?;
        let (relation, row, refused) = match message {
            Message::Insert { relation, new } => (relation, Row { new, old: None }, None),
            Message::Update { relation, old, new } => (relation, Row { new, old: whole(old) }, None),
            Message::Delete { relation, old: Old::Key(new) | Old::Row(new) } => {
                (relation, Row { new, old: None }, Some("the row was deleted, which no route can tell"))
            }
            Message::Relation(relation) => {
                teller.relation(&relation);
                return Ok(());
            }
            Message::Begin { commit_lsn, committed_at, .. } => return self.begin(commit_lsn, committed_at),
            Message::Commit { commit_lsn, end_lsn, .. } => return self.commit(commit_lsn, end_lsn),
            Message::Truncate { relations, .. } => {
                let oids: Vec<u32> =
                    relations.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
                return self.truncate(&oids);
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Logical { .. } => return Ok(()),
        };
        let Some(ticket) = self.open else { return Ok(()) };
        let again = transaction.commit_lsn < self.origin.told;
        let mut open = Open { transaction, ticket, progress, again };
        match refused {
            None => teller.row(relation, &row, &mut open),
            Some(why) => teller.untellable(relation, &row, why, &mut open),
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, committed_at: PgTime) -> Result<()> {
        if self.in_transaction {
            bail!("a transaction began inside another");
        }
        self.in_transaction = true;
        // The slot was confirmed later than the memory was written: all sinks have these already.
        if commit_lsn < self.passed_over {
            self.open = None;
            return Ok(());
        }
        let transaction = &mut self.transaction;
        (transaction.commit_lsn, transaction.committed_at) = (commit_lsn, committed_at);
        (transaction.previous, transaction.rows, transaction.told) = (self.last_told, 0, 0);
        transaction.time.clear();
        committed_at.write_rfc3339(&mut transaction.time);
        self.open = Some(self.progress.begin(commit_lsn, committed_at));
        Ok(())
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        if !self.in_transaction {
            bail!("a transaction ended that had not begun");
        }
        self.in_transaction = false;
        self.metrics.transactions.inc();
        if self.open.take().is_some() {
            if self.progress.commit(end_lsn) {
                self.last_told = commit_lsn;
            }
            self.idle_only = false;
            self.origin.told = self.origin.told.max(end_lsn);
        }
        Ok(())
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<()> {
        let Some(ticket) = self.open else { return Ok(()) };
        for relation in relations {
            let Stream { teller, progress, transaction, .. } = self;
            let mut open = Open { transaction, ticket, progress, again: false };
            let row = Row { new: Tuple::none(), old: None };
            teller.untellable(
                *relation,
                &row,
                "the table was truncated, which no route can tell",
                &mut open,
            )?;
        }
        Ok(())
    }
}

fn whole(old: Option<Old<'_>>) -> Option<Tuple<'_>> {
    match old {
        Some(Old::Row(row)) => Some(row),
        Some(Old::Key(_)) | None => None,
    }
}
