//! Tells every row again, from a new slot's snapshot: the way on after the log between what was told and what is there
//! was lost, or cannot be trusted.
//!
//! The order is what makes it safe. The old slot is dropped first: only one that nobody reads can be, and without it no
//! relay can begin to stream. Then the memory says `reconciling`, then the new slot is made, and from its snapshot
//! every row is told; what is committed later is the slot's. Only when every sink has acknowledged all of it does the
//! memory say `streaming`, from where the slot begins. Whatever breaks in between leaves a memory that `run` refuses
//! and that the next reconcile starts over from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backon::BlockingRetryable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::acks::Ack;
use crate::clients::{Clients, Recalled};
use crate::inspect;
use crate::lsn::{Lsn, PgTime};
use crate::pace::Load;
use crate::pgoutput::{self, Scratch};
use crate::progress::{Progress, Sink};
use crate::route::Transaction;
use crate::rows::{self, Table};
use crate::snapshot::Position;
use crate::source::{Wiring, fingerprint};
use crate::stall::{Stall, Verdict};
use crate::state::{Cluster, Memory, Phase, Slot, admit};
use crate::tell::{Open, Teller};
use crate::template::Row;
use crate::wire::Session;

/// Rows that share a ticket.
const BATCH: u64 = 4096;
/// Making a slot waits for the transactions that run; a row filter may pass over much before the first row.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// The view is told so often.
const LOOK: Duration = Duration::from_millis(100);

/// What a person may see while it lasts.
pub enum Step<'a> {
    Waits(&'a str),
    Table {
        name: String,
        estimate: Option<u64>,
    },
    /// Rows of the present table so far.
    Rows(u64),
    TableDone(&'a TableReport),
}

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

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub source: String,
    pub slot: String,
    /// Where the new slot begins: later commits are streamed.
    pub begins_at: String,
    pub tables: Vec<TableReport>,
    pub seconds: f64,
}

/// What would be done, and what would be lost.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub source: String,
    pub slot: String,
    /// Why `run` would refuse; `None`: it would not.
    pub refusal: Option<String>,
    /// The slot that has to be dropped for it.
    pub drops: Dropped,
    pub tables: Vec<Planned>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    pub confirmed: Option<String>,
    pub wal_status: String,
    /// Log after what is confirmed.
    pub bytes_behind: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    pub table: String,
    pub estimated_rows: Option<u64>,
}

pub enum Ending {
    Done(Report),
    /// It would drop a slot, and nobody agreed to that. Nothing was changed.
    NotAgreed(Plan),
}

struct Reconcile<'a> {
    wiring: Arc<Wiring>,
    clients: Clients,
    progress: Progress,
    transaction: Transaction,
    landed: Vec<Ack>,
    stall: Stall,
    view: &'a mut dyn FnMut(Step<'_>),
}

/// Reconciles one source. `agreed`: a slot that is there may be dropped. Errors leave the source refused, and it may
/// be started over; before the slot is dropped nothing is changed.
pub fn run(wiring: Wiring, agreed: bool, view: &mut dyn FnMut(Step<'_>)) -> Result<Ending> {
    let began = Instant::now();
    let wiring = Arc::new(wiring);
    let mut clients = Clients::new(&wiring);
    view(Step::Waits("connecting"));
    let Recalled { memory, .. } = recall(&mut clients)?;
    let mut session = Session::connect(&wiring.config)?;
    session.patience(PATIENCE)?;
    let (cluster, database) = inspect::cluster(&mut session)?;
    let slot_name = wiring.source.slot.get_ref();
    alone(&mut session, slot_name)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let tables = examine(&mut session, &wiring, slot.as_ref(), &database)?;
    if let Some(slot) = slot {
        if !agreed {
            let refusal = admit(memory.as_ref(), &cluster, slot_name, Some(&slot), &database).err();
            let refusal = refusal.map(|refusal| refusal.to_string());
            return Ok(Ending::NotAgreed(plan(&wiring, &cluster, &slot, refusal, &tables)));
        }
        session
            .query(&format!("select pg_catalog.pg_drop_replication_slot({})", inspect::literal(slot_name)))
            .with_context(|| format!("slot {slot_name} cannot be dropped; nothing was changed"))?;
        tracing::info!(slot = slot_name, "slot dropped");
    }
    let phase = |phase, acknowledged| Memory {
        system_id: cluster.system_id.clone(),
        timeline: cluster.timeline,
        slot: slot_name.clone(),
        phase,
        acknowledged,
        told: acknowledged,
        chain: Lsn::ZERO,
        routes: fingerprint(&wiring.source),
    };
    clients.remember(Load::Handful, &phase(Phase::Reconciling, Lsn::ZERO))?;
    view(Step::Waits("making the slot: waiting for the transactions that run now"));
    let begins_at = rows::create_slot_with_snapshot(&mut session, slot_name)?;
    tracing::info!(slot = slot_name, %begins_at, "slot created");
    let mut reconcile = Reconcile::new(&wiring, clients, (&cluster, begins_at), view);
    let tables = reconcile.tables(&mut session)?;
    let Reconcile { clients, view, .. } = reconcile;
    view(Step::Waits("writing down that it is done"));
    untouched(&wiring, slot_name, begins_at)?;
    done_snapshots(&wiring, &clients, &cluster, &tables)?;
    clients.remember(Load::Handful, &phase(Phase::Streaming, begins_at))?;
    session.query("commit")?;
    Ok(Ending::Done(Report {
        source: wiring.source.name.get_ref().clone(),
        slot: slot_name.clone(),
        begins_at: begins_at.to_string(),
        tables: tables.into_iter().map(|(_, report)| report).collect(),
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// What is remembered of the source. Topics that were just created take a while to have a leader.
fn recall(clients: &mut Clients) -> Result<Recalled> {
    let delays =
        backon::ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_times(6);
    let ask = || {
        clients.connect()?;
        clients.recall_halted()?;
        clients.recall(0)
    };
    ask.retry(delays)
        .sleep(std::thread::sleep)
        .notify(|error: &anyhow::Error, _| tracing::warn!("{error:#}"))
        .call()
}

/// One reconcile at a time: each would drop the other's slot.
fn alone(session: &mut Session, slot: &str) -> Result<()> {
    let key = inspect::literal(&format!("cdc-relay reconcile {slot}"));
    let rows =
        session.query(&format!("select pg_catalog.pg_try_advisory_lock(hashtextextended({key}, 0))"))?;
    let free = rows.first().is_some_and(|row| inspect::text(row, 0) == "t");
    ensure!(free, "another reconcile of slot {slot} is under way");
    Ok(())
}

/// What has to be right before anything is changed. Answers the tables.
fn examine(
    session: &mut Session,
    wiring: &Wiring,
    slot: Option<&Slot>,
    database: &str,
) -> Result<Vec<Table>> {
    let source = &wiring.source;
    let name = source.slot.get_ref();
    if let Some(slot) = slot {
        if let Some(pid) = slot.active_pid {
            bail!(
                "slot {name} is being read (by the server's process {pid}): stop the relay that does, first"
            );
        }
        if slot.plugin != "pgoutput" || slot.database != database {
            let (plugin, of) = (&slot.plugin, &slot.database);
            bail!(
                "slot {name} is not ours (plugin {plugin}, database {of}): give this source one of its own"
            );
        }
    }
    if let Err(refusal) = inspect::contract(session, &wiring.routes, source)? {
        bail!("{refusal}");
    }
    session.query(rows::HONEST)?;
    let tables = routed(session, wiring)?;
    let unreadable: Vec<&str> = tables.iter().filter_map(|table| table.unreadable.as_deref()).collect();
    ensure!(unreadable.is_empty(), "{}", unreadable.join("; "));
    Ok(tables)
}

/// The published tables that have routes.
fn routed(session: &mut Session, wiring: &Wiring) -> Result<Vec<Table>> {
    let source = &wiring.source;
    let mut tables = rows::tables(session, source.publication.get_ref())?;
    tables.retain(|table| {
        let found = (table.relation.schema.as_str(), table.relation.name.as_str());
        source.tables.iter().any(|routed| routed.qualified() == found)
    });
    Ok(tables)
}

fn plan(wiring: &Wiring, cluster: &Cluster, slot: &Slot, refusal: Option<String>, tables: &[Table]) -> Plan {
    let planned = |table: &Table| Planned { table: table.name(), estimated_rows: table.estimate };
    Plan {
        source: wiring.source.name.get_ref().clone(),
        slot: wiring.source.slot.get_ref().clone(),
        refusal,
        drops: Dropped {
            confirmed: slot.confirmed.map(|lsn| lsn.to_string()),
            wal_status: slot.wal_status.clone(),
            bytes_behind: slot.confirmed.map(|lsn| cluster.flush.0.saturating_sub(lsn.0)),
        },
        tables: tables.iter().map(planned).collect(),
    }
}

/// The slot must still be the one that was made, and unread: otherwise somebody has told from it, or it is another.
fn untouched(wiring: &Wiring, slot_name: &str, begins_at: Lsn) -> Result<()> {
    // By another session: this one's sight is as old as the slot.
    let mut session = Session::connect(&wiring.config)?;
    let slot = inspect::slot(&mut session, slot_name)?;
    let slot = slot.with_context(|| format!("slot {slot_name} is gone again; start over"))?;
    ensure!(
        slot.confirmed == Some(begins_at) && slot.active_pid.is_none() && slot.wal_status != "lost",
        "slot {slot_name} was read, advanced or lost meanwhile; start over"
    );
    Ok(())
}

/// Tables whose existing rows the stream would tell in chunks need that no more.
fn done_snapshots(
    wiring: &Wiring,
    clients: &Clients,
    cluster: &Cluster,
    tables: &[(Table, TableReport)],
) -> Result<()> {
    for (table, report) in tables {
        let name = (table.relation.schema.as_str(), table.relation.name.as_str());
        if wiring.source.tables.iter().any(|routed| routed.snapshot && routed.qualified() == name) {
            let position = Position {
                system_id: cluster.system_id.clone(),
                key: table.key_columns().map(str::to_owned).collect(),
                after: Vec::new(),
                rows: report.rows,
                done: true,
            };
            clients.remember_position(&table.name(), &position)?;
        }
    }
    Ok(())
}

impl<'a> Reconcile<'a> {
    fn new(
        wiring: &Arc<Wiring>,
        clients: Clients,
        (cluster, begins_at): (&Cluster, Lsn),
        view: &'a mut dyn FnMut(Step<'_>),
    ) -> Reconcile<'a> {
        let committed_at = PgTime::now();
        let mut transaction = Transaction {
            cluster: format!("{}/{}", cluster.system_id, cluster.timeline),
            commit_lsn: begins_at,
            // When each row was committed is not known; this is when it was seen.
            committed_at,
            retold: true,
            existing: true,
            ..Transaction::default()
        };
        committed_at.write_rfc3339(&mut transaction.time);
        Reconcile {
            wiring: Arc::clone(wiring),
            clients,
            progress: Progress::new(0, Lsn::ZERO, Lsn::ZERO),
            transaction,
            landed: Vec::new(),
            stall: Stall::new(Instant::now(), 0),
            view,
        }
    }

    /// Tells every row of every routed table, and waits for the acknowledgements.
    fn tables(&mut self, session: &mut Session) -> Result<Vec<(Table, TableReport)>> {
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
        let plan = self.clients.teller()?.plan(&table.relation);
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
                let row = Row { new: pgoutput::data_row(body, &mut scratch)?, old: None };
                let Reconcile { clients, progress, transaction, .. } = self;
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
