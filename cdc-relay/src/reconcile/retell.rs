//! Tells the rows of a source from the snapshot of its new slot, as fast as the sinks take them, in bounded memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::Step;
use super::examine::routed;
use crate::acks::Ack;
use crate::clients::Clients;
use crate::lsn::Lsn;
use crate::pace::Load;
use crate::pgoutput::{self, Scratch};
use crate::progress::{Progress, Sink};
use crate::route::Transaction;
use crate::rows::{self, Table};
use crate::source::Wiring;
use crate::stall::{Stall, Verdict};
use crate::state::Cluster;
use crate::tell::{Open, Teller};
use crate::template::Row;
use crate::wire::Session;

/// Rows that share a ticket.
const BATCH: u64 = 4096;
/// The view is told so often.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub table: String,
    pub rows: u64,
    pub kafka: u64,
    pub rabbitmq: u64,
    pub dead_letters: u64,
    /// Rows that match no route.
    pub unrouted: u64,
    pub seconds: f64,
}

pub struct Retelling<'a> {
    wiring: Arc<Wiring>,
    clients: Clients,
    progress: Progress,
    transaction: Transaction,
    landed: Vec<Ack>,
    stall: Stall,
    view: &'a mut dyn FnMut(Step<'_>),
}

impl<'a> Retelling<'a> {
    pub fn new(
        wiring: &Arc<Wiring>,
        clients: Clients,
        (cluster, begins_at): (&Cluster, Lsn),
        view: &'a mut dyn FnMut(Step<'_>),
    ) -> Retelling<'a> {
        let cluster = format!("{}/{}", cluster.system_id, cluster.timeline);
        Retelling {
            wiring: Arc::clone(wiring),
            clients,
            progress: Progress::new(0, Lsn::ZERO, Lsn::ZERO),
            transaction: Transaction::of_existing(cluster, begins_at),
            landed: Vec::new(),
            stall: Stall::new(Instant::now(), 0),
            view,
        }
    }

    /// Gives back what it was given.
    pub fn over(self) -> (Clients, &'a mut dyn FnMut(Step<'_>)) {
        (self.clients, self.view)
    }

    /// Tells every row of every routed table, and waits for the acknowledgements.
    pub fn tables(&mut self, session: &mut Session) -> Result<Vec<(Table, TableReport)>> {
        let tables = routed(session, &self.wiring)?;
        for table in &tables {
            session.query(&format!("lock table {} in access share mode", table.target()))?;
        }
        if let Some(table) = rows::rewritten(session, &tables)? {
            bail!("{table} was rewritten or truncated while the slot was made: start over");
        }
        self.clients.teller()?.expect(Load::Backlog);
        let mut reports = Vec::new();
        for table in tables {
            let report = self.table(session, &table)?;
            (self.view)(Step::TableDone(&report));
            reports.push((table, report));
        }
        // The server need not keep its old rows any longer.
        session.query("commit")?;
        (self.view)(Step::Waits("waiting for the last acknowledgements"));
        self.room(0)?;
        Ok(reports)
    }

    fn table(&mut self, session: &mut Session, table: &Table) -> Result<TableReport> {
        let (began, name) = (Instant::now(), table.name());
        (self.view)(Step::Table { name: name.clone(), estimate: table.estimate });
        let counts = |metrics: &crate::metrics::SourceMetrics| {
            let of = |counter: &prometheus::IntCounter| counter.get();
            [of(&metrics.messages[0]), of(&metrics.messages[1]), of(&metrics.dead), of(&metrics.unrouted)]
        };
        let before = counts(&self.wiring.metrics);
        let most = self.wiring.routes.relay.in_flight_bytes as i64;
        let (mut rows, mut scratch, mut looked) = (0u64, Scratch::default(), began);
        let plan = self.clients.teller()?.plan(&table.relation)?;
        let mut ticket = None;
        session
            .each(&table.select(None), |body| {
                if self.in_flight() >= most {
                    self.room(most / 2)?;
                }
                if rows.is_multiple_of(BATCH) {
                    self.close(ticket.take());
                    self.collect()?;
                    ticket =
                        Some(self.progress.begin(self.transaction.commit_lsn, self.transaction.committed_at));
                }
                let row = Row::insert(pgoutput::data_row(body, &mut scratch)?);
                let Retelling { clients, progress, transaction, .. } = self;
                let ticket = ticket.context("no ticket")?;
                let mut open = Open { transaction, ticket, progress, again: false };
                let teller: &mut Teller = clients.teller()?;
                teller.retell(&plan, &row, &mut open)?;
                rows += 1;
                if rows.is_multiple_of(256) && looked.elapsed() >= LOOK {
                    looked = Instant::now();
                    (self.view)(Step::Rows(rows));
                }
                Ok(())
            })
            .with_context(|| format!("while reading {name}"))?;
        self.close(ticket);
        let after = counts(&self.wiring.metrics);
        let [kafka, rabbitmq, dead_letters, unrouted] =
            std::array::from_fn(|index| after[index] - before[index]);
        Ok(TableReport {
            table: name,
            rows,
            // A dead letter is a record on Kafka too.
            kafka: kafka - dead_letters,
            rabbitmq,
            dead_letters,
            unrouted,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Ends a batch of rows.
    fn close(&mut self, ticket: Option<u64>) {
        if ticket.is_some() {
            self.progress.commit(self.transaction.commit_lsn);
        }
    }

    fn in_flight(&self) -> i64 {
        self.wiring.acks.bytes(Sink::Kafka).max(self.wiring.acks.bytes(Sink::Rabbit))
    }

    /// Waits until a sink has at most `most` bytes in flight; with 0, until all is acknowledged.
    fn room(&mut self, most: i64) -> Result<()> {
        let acks = Arc::clone(&self.wiring.acks);
        loop {
            self.collect()?;
            if self.in_flight() <= most && (most > 0 || self.progress.pending() == 0) {
                return Ok(());
            }
            self.watch()?;
            acks.wake_at(most);
            if self.in_flight() > most {
                let look = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
                // Interrupted or not, it looks again.
                let _ = poll(&mut [PollFd::new(&*acks, PollFlags::IN)], Some(&look));
            }
            acks.no_wake();
            acks.drain_wake();
        }
    }

    fn collect(&mut self) -> Result<()> {
        let acks = &self.wiring.acks;
        if let Some(reason) = acks.failure() {
            bail!("{reason}");
        }
        acks.take(&mut self.landed);
        for ack in self.landed.drain(..) {
            if ack.sink == Sink::Kafka {
                self.stall.moved(ack.at);
            }
            self.progress.acknowledge(ack.ticket, ack.sink, ack.count);
        }
        Ok(())
    }

    /// Ends it if Kafka answers but takes nothing from our client.
    fn watch(&mut self) -> Result<()> {
        let now = Instant::now();
        let kafka = self.clients.teller()?.kafka();
        if self.wiring.acks.bytes(Sink::Kafka) == 0 {
            self.stall.moved(now);
        }
        match self.stall.judge(now, kafka.answered()) {
            Verdict::Fine => {}
            Verdict::Ask => {
                (self.view)(Step::Waits("Kafka takes nothing; asking it why"));
                kafka.ask();
            }
            Verdict::GiveUp => {
                bail!("Kafka answers, but took nothing for {} s", self.stall.lasted(now).as_secs())
            }
        }
        Ok(())
    }
}
