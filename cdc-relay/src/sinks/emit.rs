//! Emits rows: finds the routes of their table and hands each row to the sinks.
//!
//! * The routes of a table are compiled when the server announces its columns, and again after each change of them.
//! * A row that a query answered is emitted by a plan of its own: the stream's plan may be for other columns.
//! * [`row_emitter`] decides for each row between emitting, skipping and dead-lettering.

mod dead_letters;
mod offer;
mod outcome;
mod re_emission;
mod row_emitter;

use std::sync::Arc;

use anyhow::{Result, bail};

pub use self::outcome::EmitOutcome;
pub use self::re_emission::{ReEmission, Tally};
use self::row_emitter::RowEmitter;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::progress::{Progress, Sink, TransactionSeq};
use crate::dead_letter::halts::{Halted, Halts, change_destination};
use crate::dead_letter::record::Cause;
use crate::observe::metrics::SourceMetrics;
use crate::postgres::connection_url::Database;
use crate::postgres::decode::relation::Relation;
use crate::routes::catalog::Catalog;
use crate::routes::route::{Plan, Topics, Transaction};
use crate::routes::row::Row;
use crate::routes::{NewTable, Routes, Source};
use crate::sinks::batch_size::BatchSize;
use crate::sinks::kafka::Kafka;
use crate::sinks::rabbit::Rabbit;

/// The open transaction of the stream.
pub struct OpenTransaction<'a> {
    pub transaction: &'a mut Transaction,
    pub transaction_seq: TransactionSeq,
    pub progress: &'a mut Progress,
    /// This process emitted the transaction before.
    pub again: bool,
}

impl OpenTransaction<'_> {
    /// A sink took a message of this transaction.
    fn count(&mut self, message: SinkMessage, metrics: &SourceMetrics) {
        let SinkMessage { sink, bytes, is_link } = message;
        if self.transaction.re_emitted {
            self.progress.re_emit(sink);
        } else {
            self.progress.added(sink, is_link);
        }
        if is_link {
            self.transaction.emitted += 1;
        }
        metrics.emitted(sink, bytes);
        if self.again {
            metrics.resent(sink, 1);
        }
    }
}

/// A message that a sink took.
#[derive(Clone, Copy)]
struct SinkMessage {
    sink: Sink,
    bytes: usize,
    /// It is a link of the chain of positions: a record on Kafka that compaction does not remove.
    is_link: bool,
}

/// A row, with the routes of its table.
#[derive(Clone, Copy)]
pub struct PlannedRow<'a> {
    pub plan: &'a Plan,
    pub row: &'a Row<'a>,
}

/// A change that no route can express, e.g. a truncated table.
#[derive(Debug, Clone, Copy)]
pub struct Inexpressible<'a> {
    pub op: &'a str,
    pub reason: &'a str,
}

/// The objects that an emitter is made of.
pub struct EmitterParts {
    pub routes: Arc<Routes>,
    pub source: Arc<Source>,
    pub database: Database,
    pub topics: Topics,
    pub kafka: Kafka,
    pub rabbit: Option<Arc<Rabbit>>,
    pub metrics: SourceMetrics,
}

/// The routes of one source for the present columns of its tables, and the sinks that the routes lead to.
pub struct Emitter {
    routes: Arc<Routes>,
    source: Arc<Source>,
    database: Database,
    catalog: Catalog,
    plans: Vec<(u32, Plan)>,
    rows: RowEmitter,
}

impl Emitter {
    pub fn new(parts: EmitterParts) -> Emitter {
        let EmitterParts { routes, source, database, topics, kafka, rabbit, metrics } = parts;
        let dead_letter_topic = routes.relay.dead_letter_topic.get_ref().clone();
        let dead_letters =
            dead_letters::DeadLetters::new(source.name.get_ref().clone(), dead_letter_topic, metrics.clone());
        let rows = RowEmitter::new(topics, kafka, rabbit, dead_letters, metrics);
        Emitter { routes, source, database, catalog: Catalog::default(), plans: Vec::new(), rows }
    }

    pub fn kafka(&self) -> &Kafka {
        &self.rows.kafka
    }

    /// The chain that the records of the session name.
    pub fn set_chain(&mut self, name: &ChainName) {
        self.rows.kafka.set_chain(name);
    }

    /// Chooses the producer for the rows that come next.
    pub fn set_batch_size(&mut self, size: BatchSize) {
        self.rows.kafka.choose(size);
    }

    /// Chooses the producer for large batches, and waits for it.
    pub fn set_large_batches(&mut self) {
        self.rows.kafka.choose_and_wait(BatchSize::Large);
    }

    /// The halted keys, read from the dead-letter topic up to the offset `end`.
    pub fn set_halted(&mut self, halted: Halted, end: i64) {
        self.rows.dead_letters.set_halted(halted, end);
    }

    /// The dead-letter topic ends at the offset `end`, and contains all dead letters so far.
    pub fn set_dead_letter_offset(&mut self, end: i64) {
        self.rows.dead_letters.set_offset_min(end);
    }

    pub fn halted(&self) -> &Halted {
        self.rows.dead_letters.halted()
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The id that a template gives the row's event.
    pub fn id(
        &mut self,
        routed: PlannedRow<'_>,
        destination: &str,
        transaction: &Transaction,
    ) -> Option<Vec<u8>> {
        self.rows.id(routed, destination, transaction)
    }

    /// Takes the catalog of the session's start.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        self.catalog = catalog;
    }

    /// The server announces a table's columns: once per session and table, and after every change. For a table that the
    /// catalog does not know yet, it is queried on a session of its own.
    ///
    /// # Errors
    /// When the catalog cannot be queried, or a table is new and its topic does not exist yet.
    pub fn relation(&mut self, relation: &Relation) -> Result<()> {
        let announced = self.catalog.resolve_announced(&self.database, relation)?;
        let plan = Plan::compile(&self.routes, &self.source, &announced);
        if plan.without_topic && !self.routes.lists_topics {
            return Err(NewTable(relation.table_name()).into());
        }
        for problem in plan.problems() {
            tracing::error!(source = self.source.name.get_ref(), table = plan.relation, "{}", problem.0);
        }
        match self.plans.iter_mut().find(|(id, _)| *id == relation.id) {
            Some((_, known)) => *known = plan,
            None => self.plans.push((relation.id, plan)),
        }
        Ok(())
    }

    /// Emits a row of the stream to every route that it matches.
    ///
    /// # Errors
    /// When a sink cannot go on.
    pub fn row(&mut self, relation: u32, row: &Row<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.rows.count_row();
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a row came before the columns of its table");
        };
        self.rows.emit(PlannedRow { plan, row }, open)
    }

    /// The routes for rows that a query answers, which have all columns.
    pub fn plan(&mut self, relation: &Relation) -> Result<Plan> {
        let mut relation = self.catalog.resolve(&self.database, relation)?;
        relation.identity = b'f';
        Ok(Plan::compile(&self.routes, &self.source, &relation))
    }

    /// The routes for a table as it is in the WAL, now or when a dead letter was written.
    pub fn wal_plan(&mut self, relation: &Relation) -> Result<Plan> {
        let relation = self.catalog.resolve(&self.database, relation)?;
        Ok(Plan::compile(&self.routes, &self.source, &relation))
    }

    /// As [`row`](Self::row), for a row that a query answered.
    pub fn existing_row(&mut self, routed: PlannedRow<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.rows.emit(routed, open)
    }

    /// Emits a row once more, by all routes of `to` that it matches.
    ///
    /// # Errors
    /// When a sink cannot go on. A route that cannot emit the row is an outcome.
    pub fn re_emit(
        &mut self,
        routed: PlannedRow<'_>,
        to: ReEmission<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<EmitOutcome> {
        self.rows.re_emit(routed, to, open)
    }

    /// Writes the record of a release to the dead-letter topic, as part of the open transaction.
    pub fn write_release(
        &mut self,
        halts: &Halts,
        value: &[u8],
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        self.rows.write_release(halts, value, open)
    }

    /// Applies the record of a release to the halted keys.
    pub fn apply_release(&mut self, value: &[u8]) -> Result<()> {
        self.rows.dead_letters.apply_release(value)
    }

    /// Writes a dead letter for a change that no route can express.
    pub fn inexpressible(
        &mut self,
        relation: u32,
        row: &Row<'_>,
        change: Inexpressible<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        open.transaction.rows += 1;
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a change came before the columns of its table");
        };
        if plan.unknown || !plan.routes.is_empty() {
            let cause = Cause { reason: change.reason, op: change.op, id: None };
            let destination = change_destination(&plan.relation);
            self.rows.dead_letter(&destination, &Halts::default(), cause, PlannedRow { plan, row }, open)?;
        }
        Ok(())
    }
}
