//! Reads the stream: frames become messages, and messages become transactions and rows.

use std::time::Instant;

use anyhow::Result;

use super::{Stream, slot_confirmation};
use crate::checkpoint::state::CommitId;
use crate::dead_letter::release::{self, ReleaseOrder};
use crate::postgres::decode::pgoutput::{self, Message, Tuple};
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::replication_stream::Frame;
use crate::routes::OriginRule;
use crate::routes::row::{Op, Row};
use crate::sinks::emit::Inexpressible;
use crate::source::backfill::snapshot::{self, Watermark};
use crate::source::succession::{self, Request};

/// A logical message, by its prefix.
enum Command {
    Release(ReleaseOrder),
    /// The stream has come to a chunk of existing rows.
    Watermark(Option<Watermark>),
    /// Another relay asks for the slot. Anybody may write what is no request.
    Handover(Option<Request>),
    /// Whoever wrote it waits for the slot to be confirmed up to here.
    Confirm,
    /// The message is not for the relay, or not readable: anybody may write messages.
    Nothing,
}

impl Command {
    fn read(prefix: &str, content: &[u8]) -> Command {
        match prefix {
            release::PREFIX => match ReleaseOrder::read(content) {
                Ok(order) => Command::Release(order),
                Err(error) => {
                    tracing::warn!(%error, prefix, "an order to release in the WAL is not readable and is skipped");
                    Command::Nothing
                }
            },
            snapshot::PREFIX => Command::Watermark(Watermark::parse(content)),
            succession::PREFIX => Command::Handover(serde_json::from_slice(content).ok()),
            slot_confirmation::PREFIX => Command::Confirm,
            _ => Command::Nothing,
        }
    }
}

impl Stream<'_> {
    /// Reads once, and processes every complete frame.
    pub(super) fn read(&mut self) -> Result<()> {
        let read = self.replication.read()?;
        let now = Instant::now();
        if read > 0 {
            self.slot.received(now);
        }
        self.metrics.stream.reads.inc();
        self.metrics.stream.received_bytes.inc_by(read as u64);
        self.emitter.set_batch_size(self.scheduler.load(read));
        self.frames()?;
        self.scheduler.read(now, read);
        Ok(())
    }

    /// Processes the complete frames of the buffer, up to a transaction that waits for standbys or belongs to the relay that asked for
    /// the slot.
    pub(super) fn frames(&mut self) -> Result<()> {
        while !self.hands_over()
            && self.passes()?
            && let Some(frame) = self.replication.frame()?
        {
            match frame {
                Frame::Data(range) => self.message(&range)?,
                Frame::Keepalive { wal_end, reply } => {
                    if reply {
                        self.slot.request_reply();
                    }
                    if !self.current.is_open() {
                        self.readiness.idle(wal_end)?;
                        self.acks.progress.idle(wal_end);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the next frame may be processed: it begins no transaction that synchronous standbys have yet to flush. One of which
    /// nothing is emitted waits for nobody: a source that only catches up streams, also while the standbys are away.
    fn passes(&mut self) -> Result<bool> {
        let Some(standbys) = &mut self.standbys else { return Ok(true) };
        if self.current.is_open() {
            return Ok(true);
        }
        let Some(range) = self.replication.next_data()? else { return Ok(true) };
        let Some(commit_lsn) = pgoutput::begin_lsn(self.replication.bytes(&range)) else { return Ok(true) };
        if self.readiness.emits_nothing_of(commit_lsn) {
            return Ok(true);
        }
        Ok(standbys.passes(commit_lsn, || self.replication.find_data(pgoutput::commit_end_lsn)))
    }

    fn message(&mut self, range: &std::ops::Range<usize>) -> Result<()> {
        let message = pgoutput::decode(self.replication.bytes(range), &mut self.scratch)?;
        let is_left_out = self.current.is_left_out() && message.is_change();
        if let Some(snapshots) = &mut self.snapshots
            && !is_left_out
        {
            snapshots.receive(&message, self.current.xid);
        }
        let (relation, row) = match message {
            Message::Insert { relation, new } => (relation, Row::insert(new)),
            Message::Update { relation, old, new } => (relation, Row { op: Op::Update, new, old }),
            Message::Delete { relation, old } => (relation, Row::delete(old)),
            Message::Relation(relation) => return self.emitter.relation(&relation),
            Message::Begin { commit_lsn, committed_at, xid } => {
                self.current.xid = xid;
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
                return self.execute(command, self.replication.sent_at(range));
            }
            Message::Origin { .. } => {
                self.origin();
                return Ok(());
            }
            Message::Type { .. } => return Ok(()),
        };
        let Some(mut open) = self.current.open(&mut self.acks.progress) else { return Ok(()) };
        self.emitter.row(relation, &row, &mut open)
    }

    /// The server names the origin of the open transaction: another server wrote it.
    fn origin(&mut self) {
        if self.emitter.source().origin == OriginRule::None && self.current.leave_out() {
            self.metrics.stream.left_out.inc();
        }
    }

    /// Executes a command at this position of the stream: after all earlier commits, and before all later ones. `sent_at`: when the
    /// server sent it.
    fn execute(&mut self, command: Command, sent_at: PgTime) -> Result<()> {
        if !self.current.is_emitted() {
            return Ok(()); // It was executed before, and every sink has acknowledged it.
        }
        match command {
            Command::Release(order) => self.release(&order),
            Command::Watermark(watermark) => self.meet_watermark(watermark),
            Command::Handover(request) => {
                let committed_at = self.current.committed_at();
                self.handover.received(request.as_ref(), committed_at, sent_at);
                Ok(())
            }
            Command::Confirm => {
                self.slot.ask();
                Ok(())
            }
            Command::Nothing => Ok(()),
        }
    }

    fn begin(&mut self, commit_lsn: Lsn, committed_at: PgTime) -> Result<()> {
        self.current.enter()?;
        // The checkpoint is saved before the slot is confirmed, so the server may send acknowledged transactions again.
        let is_acknowledged = self.readiness.begins(CommitId { commit_lsn, committed_at: committed_at.0 })?;
        if !is_acknowledged {
            self.current.begin(&mut self.acks.progress, commit_lsn, committed_at);
        }
        Ok(())
    }

    /// Emits the chunk of existing rows that belongs to the watermark.
    fn meet_watermark(&mut self, watermark: Option<Watermark>) -> Result<()> {
        let (Some(watermark), Some(snapshots)) = (watermark, &mut self.snapshots) else { return Ok(()) };
        let open = self.current.open_for_existing(&mut self.acks.progress);
        let Some(mut open) = open else { return Ok(()) };
        snapshots.meet_watermark(watermark, self.emitter, &mut open)
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        let is_emitted = self.current.commit(&mut self.acks.progress, commit_lsn, end_lsn)?;
        self.metrics.stream.transactions.inc();
        if is_emitted {
            self.checkpoint.committed();
            self.slot.committed(end_lsn);
        }
        Ok(())
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<()> {
        let reason = "the table was truncated, which no route can express";
        for relation in relations {
            let Some(mut open) = self.current.open(&mut self.acks.progress) else { return Ok(()) };
            open.again = false;
            let row = Row::insert(Tuple::none());
            self.emitter.inexpressible(
                *relation,
                &row,
                Inexpressible { op: "truncate", reason },
                &mut open,
            )?;
        }
        Ok(())
    }
}
