//! Emits the rows of a source from the snapshot of its new slot, in bounded memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Step;
use super::examine::routed;
use crate::checkpoint::state::Cluster;
use crate::postgres::decode::pgoutput::{self, Scratch};
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::routes::route::Transaction;
use crate::routes::row::Row;
use crate::sinks::ack_waiter::AckWaiter;
use crate::sinks::emit::{Emitter, OpenTransaction, PlannedRow};
use crate::source::backfill::rows::{self, Table};
use crate::source::clients::KafkaClients;
use crate::source::context::SourceContext;

/// Rows that share a transaction_seq.
const TRANSACTION_ROWS_MAX: u64 = 4096;
/// How often the terminal shows the number of rows.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

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

pub struct Resnapshot<'a> {
    context: Arc<SourceContext>,
    clients: KafkaClients,
    waiter: AckWaiter,
    transaction: Transaction,
    view: &'a mut dyn FnMut(Step<'_>),
}

impl<'a> Resnapshot<'a> {
    pub fn new(
        context: &Arc<SourceContext>,
        clients: KafkaClients,
        cluster: &Cluster,
        begins_at: Lsn,
        view: &'a mut dyn FnMut(Step<'_>),
    ) -> Resnapshot<'a> {
        let cluster = format!("{}/{}", cluster.system_id, cluster.timeline);
        Resnapshot {
            context: Arc::clone(context),
            clients,
            // No time limit: a resnapshot that starts over costs more than waiting.
            waiter: AckWaiter::new(&context.acks, context.routes.relay.in_flight_bytes as i64, None),
            transaction: Transaction::of_existing(cluster, begins_at),
            view,
        }
    }

    /// Returns the clients and the view that `new` was given.
    pub fn into_parts(self) -> (KafkaClients, &'a mut dyn FnMut(Step<'_>)) {
        (self.clients, self.view)
    }

    /// Emits every row of every routed table, and waits until every sink has acknowledged them.
    pub fn tables(&mut self, session: &mut Session) -> Result<Vec<(Table, TableReport)>> {
        let tables = routed(session, &self.context)?;
        for table in &tables {
            session.query(&format!("lock table {} in access share mode", table.target()))?;
        }
        if let Some(table) = rows::rewritten(session, &tables)? {
            bail!(
                "{table} was rewritten or truncated while the slot was made, so its snapshot is incomplete. Run the command again"
            );
        }
        self.clients.emitter()?.set_large_batches();
        let mut reports = Vec::new();
        for table in tables {
            let report = self.table(session, &table)?;
            (self.view)(Step::TableDone(&report));
            reports.push((table, report));
        }
        // The server need not keep old row versions any longer.
        session.query("commit")?;
        (self.view)(Step::Waits("waiting for the last acknowledgements"));
        let Resnapshot { waiter, clients, view, .. } = self;
        waiter.finish(clients.emitter()?.kafka(), &mut |what| view(Step::Waits(what)))?;
        Ok(reports)
    }

    fn table(&mut self, session: &mut Session, table: &Table) -> Result<TableReport> {
        let (began, name) = (Instant::now(), table.name());
        (self.view)(Step::Table { name: name.clone(), estimate: table.estimate });
        let counts = |metrics: &crate::observe::metrics::SourceMetrics| {
            let of = |counter: &prometheus::IntCounter| counter.get();
            [
                of(&metrics.sinks.messages[0]),
                of(&metrics.sinks.messages[1]),
                of(&metrics.stream.dead_letters),
                of(&metrics.stream.unrouted),
            ]
        };
        let before = counts(&self.context.metrics);
        let (mut rows, mut scratch, mut reported_at) = (0u64, Scratch::default(), began);
        let plan = self.clients.emitter()?.plan(&table.relation)?;
        let mut transaction_seq = None;
        session
            .each(&table.select(None), |body| {
                let Resnapshot { clients, waiter, transaction, view, .. } = self;
                let emitter: &mut Emitter = clients.emitter()?;
                waiter.make_room(emitter.kafka(), &mut |what| view(Step::Waits(what)))?;
                if rows.is_multiple_of(TRANSACTION_ROWS_MAX) {
                    close(waiter, transaction, transaction_seq.take());
                    waiter.collect()?;
                    transaction_seq =
                        Some(waiter.progress.begin(transaction.commit_lsn, transaction.committed_at));
                }
                let row = Row::insert(pgoutput::data_row(body, &mut scratch)?);
                let transaction_seq = transaction_seq.context("no transaction is open")?;
                let mut open = OpenTransaction {
                    transaction,
                    transaction_seq,
                    progress: &mut waiter.progress,
                    again: false,
                };
                emitter.existing_row(PlannedRow { plan: &plan, row: &row }, &mut open)?;
                rows += 1;
                if rows.is_multiple_of(256) && reported_at.elapsed() >= PROGRESS_INTERVAL {
                    reported_at = Instant::now();
                    view(Step::Rows(rows));
                }
                Ok(())
            })
            .with_context(|| format!("the rows of {name} could not be read and emitted"))?;
        close(&mut self.waiter, &self.transaction, transaction_seq);
        let after = counts(&self.context.metrics);
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
}

/// Ends a batch of rows.
fn close(waiter: &mut AckWaiter, transaction: &Transaction, transaction_seq: Option<u64>) {
    if transaction_seq.is_some() {
        waiter.progress.commit(transaction.commit_lsn);
    }
}
