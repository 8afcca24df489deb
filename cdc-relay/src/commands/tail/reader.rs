//! Reads the WAL on a thread of its own, from connecting to the end.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, eventfd};

use super::output::Output;
use super::show::{Change, Show};
use crate::postgres::connection_url::Database;
use crate::postgres::decode::pgoutput::{self, Message, Scratch};
use crate::postgres::lsn::Lsn;
use crate::postgres::replication_stream::{Frame, Origins, Replication};
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::routes::catalog::Catalog;
use crate::source::slots;

/// Between two status updates to the server.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait for the server, so that status updates are on time.
const STATUS_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The most bytes of a long transaction in one chunk.
const PIECE: usize = 64 << 10;

/// Asks the reader to stop; it notices at once.
#[derive(Debug)]
pub struct Stop {
    asked: AtomicBool,
    wake: OwnedFd,
}

impl Stop {
    pub fn new() -> Result<Stop> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("no eventfd")?;
        Ok(Stop { asked: AtomicBool::new(false), wake })
    }

    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // Full means that it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// Where to read.
#[derive(Debug, Clone)]
pub enum Slot {
    /// A slot that the server drops with the session, whatever ends it.
    Temporary(String),
    /// An existing slot: read and never confirmed, so that it does not move.
    Existing(String),
}

#[derive(Debug)]
pub struct Reading {
    pub database: Database,
    pub slot: Slot,
    pub publications: Vec<String>,
    /// Ends after so many changes.
    pub limit: Option<u64>,
}

/// The number of transactions and changes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Totals {
    pub transactions: u64,
    pub changes: u64,
}

/// Reads until asked to stop, the limit, or an error. `ready` is called when changes will be seen from then on.
pub fn read(
    reading: &Reading,
    show: Show,
    output: &Output,
    stop: &Stop,
    ready: impl FnOnce(),
) -> Result<Totals> {
    let mut session = Session::connect(&reading.database)?;
    let (name, confirm) = match &reading.slot {
        Slot::Temporary(name) => {
            let command = format!(
                "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT",
                sql::replication_identifier(name)
            );
            let mut waits = |_: Option<&str>| !stop.asked();
            let made = slots::prepare(&mut session)
                .and_then(|()| slots::make(&mut session, &reading.database, &command, &mut waits))
                .context("cannot make a temporary replication slot")?;
            if made.is_none() {
                return Ok(Totals::default());
            }
            (name, true)
        }
        Slot::Existing(name) => (name, false),
    };
    let publications: Vec<&str> = reading.publications.iter().map(String::as_str).collect();
    let wire = match Replication::start(session, name, &publications, Origins::Any) {
        Ok(wire) => wire,
        Err(error) if error.code() == Some("55006") => {
            bail!("slot {name} is being read by somebody else, probably by a relay: only one can read a slot")
        }
        Err(error) => return Err(error).context(format!("cannot read slot {name}")),
    };
    ready();
    let tail = Tail {
        wire,
        database: &reading.database,
        catalog: Catalog::default(),
        show,
        output,
        stop,
        confirm,
        limit: reading.limit.unwrap_or(u64::MAX),
        received: Lsn::ZERO,
        confirmed_at: Instant::now(),
        in_transaction: false,
        totals: Totals::default(),
    };
    tail.run()
}

struct Tail<'a> {
    wire: Replication,
    database: &'a Database,
    catalog: Catalog,
    show: Show,
    output: &'a Output,
    stop: &'a Stop,
    confirm: bool,
    limit: u64,
    /// Everything committed up to here was received.
    received: Lsn,
    confirmed_at: Instant,
    in_transaction: bool,
    totals: Totals,
}

impl Tail<'_> {
    fn run(mut self) -> Result<Totals> {
        let mut scratch = Scratch::default();
        let mut going = true;
        while going && !self.stop.asked() {
            self.wire.wait(&self.stop.wake, STATUS_LOOK_INTERVAL)?;
            self.wire.read()?;
            let mut reply = false;
            while going && let Some(frame) = self.wire.frame()? {
                match frame {
                    Frame::Data(range) => going = self.message(&range, &mut scratch)?,
                    Frame::Keepalive { wal_end, reply: wanted } => {
                        reply |= wanted;
                        if !self.in_transaction {
                            self.received = self.received.max(wal_end);
                        }
                    }
                }
            }
            if reply || self.confirmed_at.elapsed() >= STATUS_INTERVAL {
                // All WAL is confirmed at once, printed or not: the server must not retain it for tail.
                self.wire.confirm(if self.confirm { self.received } else { Lsn::ZERO }, false)?;
                self.confirmed_at = Instant::now();
            }
        }
        self.wire.close();
        Ok(self.totals)
    }

    /// False: the end is reached.
    fn message(&mut self, range: &Range<usize>, scratch: &mut Scratch) -> Result<bool> {
        let message = pgoutput::decode(self.wire.bytes(range), scratch)?;
        match message {
            Message::Begin { commit_lsn, committed_at, xid } => {
                self.in_transaction = true;
                self.show.begin(commit_lsn, committed_at, xid);
            }
            Message::Commit { end_lsn, .. } => {
                self.in_transaction = false;
                self.received = self.received.max(end_lsn);
                self.totals.transactions += 1;
                return Ok(self.hand_over(1));
            }
            // As `run` does, so that both print the same.
            Message::Relation(relation) => {
                self.show.relation(self.catalog.resolve_announced(self.database, &relation)?);
            }
            Message::Insert { relation, new } => self.show.change(relation, &Change::Insert(new)),
            Message::Update { relation, old, new } => {
                self.show.change(relation, &Change::Update { old, new });
            }
            Message::Delete { relation, old } => self.show.change(relation, &Change::Delete(old)),
            Message::Truncate { flags, relations } => {
                let oids = relations.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid));
                self.show.truncate(flags, &oids.collect::<Vec<u32>>());
            }
            Message::Origin { .. } | Message::Type { .. } | Message::Logical { .. } => {}
        }
        Ok(self.hand_over(PIECE))
    }

    /// Gives the rendered bytes to the printer, if there are at least so many. False: the end is reached.
    fn hand_over(&mut self, least: usize) -> bool {
        if self.show.written() < least {
            return true;
        }
        let chunk = self.show.take();
        self.totals.changes += chunk.changes;
        let Self { show, output, .. } = self;
        output.offer(chunk, |left_out| show.skipped(left_out)) && self.totals.changes < self.limit
    }
}
