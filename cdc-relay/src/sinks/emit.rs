//! Takes rows to the sinks: finds their routes, and decides between emitting, skipping and dead-lettering.

mod again;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::again::{Again, Tally};
use crate::checkpoint::progress::{Progress, Sink, TransactionSeq};
use crate::dead_letter::halts::{Halted, Halts, unrouted, untellable};
use crate::dead_letter::record::{self, Cause, Halt};
use crate::failpoints::{Failpoint, hit};
use crate::observe::metrics::SourceMetrics;
use crate::postgres::connection_url::Database;
use crate::postgres::decode::relation::Relation;
use crate::routes::catalog::Catalog;
use crate::routes::problem::Problem;
use crate::routes::route::{
    CompiledRoute, DELETE_NOT_HANDLED, Destination, Plan, Record, Topics, Transaction,
};
use crate::routes::row::{Op, Row};
use crate::routes::{NewTable, Routes, Source};
use crate::sinks::batch_size::BatchSize;
use crate::sinks::kafka::{Kafka, Sent};
use crate::sinks::rabbit::Rabbit;

/// How long the producer's queue may stay full before the session starts over.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(20);

/// The open transaction of the stream.
pub struct OpenTransaction<'a> {
    pub transaction: &'a mut Transaction,
    pub transaction_seq: TransactionSeq,
    pub progress: &'a mut Progress,
    /// This process emitted it before.
    pub again: bool,
}

/// The routes of one source for the columns its tables have now, and the sinks they lead to.
pub struct Emitter {
    routes: Arc<Routes>,
    source: Arc<Source>,
    database: Database,
    catalog: Catalog,
    plans: Vec<(u32, Plan)>,
    out: Outlet,
}

struct Outlet {
    source: String,
    dead_letter_topic: String,
    topics: Topics,
    kafka: Kafka,
    rabbit: Option<Arc<Rabbit>>,
    halted: Halted,
    /// Letters of this session stand in the topic at this offset or later.
    letters_from: i64,
    metrics: SourceMetrics,
    record: Record,
    letter: Vec<u8>,
}

impl Emitter {
    pub fn new(
        (routes, source, database): (Arc<Routes>, Arc<Source>, Database),
        topics: Topics,
        (kafka, rabbit): (Kafka, Option<Arc<Rabbit>>),
        metrics: SourceMetrics,
    ) -> Emitter {
        let out = Outlet {
            source: source.name.get_ref().clone(),
            dead_letter_topic: routes.relay.dead_letter_topic.get_ref().clone(),
            topics,
            kafka,
            rabbit,
            halted: Halted::default(),
            letters_from: 0,
            metrics,
            record: Record::default(),
            letter: Vec::new(),
        };
        Emitter { routes, source, database, catalog: Catalog::default(), plans: Vec::new(), out }
    }

    pub fn kafka(&self) -> &Kafka {
        &self.out.kafka
    }

    /// How much is coming.
    pub fn expect(&mut self, load: BatchSize) {
        self.out.kafka.choose(load);
    }

    /// Much is coming, for as long as nothing else is said.
    pub fn expect_much(&mut self) {
        self.out.kafka.choose_and_wait(BatchSize::Large);
    }

    /// The keys that are halted, as the dead-letter topic says up to the offset `end`.
    pub fn set_halted(&mut self, halted: Halted, end: i64) {
        self.out.metrics.halted.set(halted.len() as i64);
        (self.out.halted, self.out.letters_from) = (halted, end);
    }

    /// The dead-letter topic ends at the offset `end`, and all letters so far stand in it.
    pub fn letters_from(&mut self, end: i64) {
        self.out.letters_from = end;
    }

    pub fn halted(&self) -> &Halted {
        &self.out.halted
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The id that a template gives the row's event.
    pub fn id(
        &mut self,
        (plan, row): (&Plan, &Row<'_>),
        destination: &str,
        transaction: &Transaction,
    ) -> Option<Vec<u8>> {
        let route = plan.routes.iter().find(|route| route.leads_to == destination && route.has_id())?;
        let record = &mut self.out.record;
        // What else may be wrong with the row comes out when it is emitted.
        let _ = route.render(row, transaction, &self.out.topics, record);
        (!record.id.is_empty()).then(|| record.id.clone())
    }

    /// What the catalog said at the start of the session.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        self.catalog = catalog;
    }

    /// The server announces a table's columns: once per session and table, and after every change. What the catalog
    /// has to say of something new is asked on a session of its own.
    pub fn relation(&mut self, relation: &Relation) -> Result<()> {
        let announced = self.catalog.resolve_announced(&self.database, relation)?;
        let plan = Plan::compile(&self.routes, &self.source, &announced);
        if plan.without_topic && !self.routes.lists_topics {
            return Err(NewTable(relation.table_name()).into());
        }
        for problem in plan.problems() {
            tracing::error!(source = self.out.source, table = plan.relation, "{}", problem.0);
        }
        match self.plans.iter_mut().find(|(id, _)| *id == relation.id) {
            Some((_, known)) => *known = plan,
            None => self.plans.push((relation.id, plan)),
        }
        Ok(())
    }

    /// With what the catalog says of its columns.
    fn settled(&mut self, relation: &Relation) -> Result<Relation> {
        Ok(self.catalog.resolve(&self.database, relation)?)
    }

    /// Emits a row to every route that it matches.
    pub fn row(&mut self, relation: u32, row: &Row<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.out.metrics.rows.inc();
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a row came before the columns of its table");
        };
        self.out.row(plan, row, open)
    }

    /// The routes for rows that a query answers, which are whole. The stream's own plan of that table may be for other
    /// columns.
    pub fn plan(&mut self, relation: &Relation) -> Result<Plan> {
        let mut relation = self.settled(relation)?;
        relation.identity = b'f';
        Ok(Plan::compile(&self.routes, &self.source, &relation))
    }

    /// The routes for a table as the WAL has it: now, or when a letter was written.
    pub fn plan_as_was(&mut self, relation: &Relation) -> Result<Plan> {
        let relation = self.settled(relation)?;
        Ok(Plan::compile(&self.routes, &self.source, &relation))
    }

    /// As `row`, for a row that a query answered.
    pub fn re_emit(&mut self, plan: &Plan, row: &Row<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.out.row(plan, row, open)
    }

    /// Emits a row once more, by all routes of `to` that it matches. `Err` in `Ok`: one of them cannot emit it.
    pub fn again(
        &mut self,
        (plan, row): (&Plan, &Row<'_>),
        mut to: Again<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<Result<(), Problem>> {
        for route in &plan.routes {
            if matches!(to, Again::Destination(only) if only != route.leads_to) {
                continue;
            }
            match route.matches(row) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(problem) => return Ok(Err(problem)),
            }
            for &emission in route.emissions(row.op) {
                let (topics, record) = (&self.out.topics, &mut self.out.record);
                let destination = match route.render_as(emission, row, open.transaction, topics, record) {
                    Ok(destination) => destination,
                    Err(problem) => return Ok(Err(problem)),
                };
                if let Again::Emitted(tally) = &mut to {
                    if tally.key.as_ref().is_some_and(|key| key.as_bytes() != self.out.record.key) {
                        continue;
                    }
                    tally.seen += 1;
                    if self.out.is_halted(&route.leads_to) {
                        tally.halted += 1;
                        continue;
                    }
                }
                if let Err(problem) = self.out.send(destination, plan, open)? {
                    return Ok(Err(problem));
                }
                if let Again::Emitted(tally) = &mut to {
                    tally.count(&route.leads_to);
                }
            }
        }
        Ok(Ok(()))
    }

    /// Writes a record of ours to the dead-letter topic, as part of the open transaction.
    pub fn note(&mut self, (halts, value): (&Halts, &[u8]), open: &mut OpenTransaction<'_>) -> Result<()> {
        self.out.write_dead((halts, value), open)
    }

    /// Applies what was noted to the halted keys.
    pub fn noted(&mut self, value: &[u8]) -> Result<()> {
        self.out.halted.apply(self.out.letters_from, value)?;
        self.out.metrics.halted.set(self.out.halted.len() as i64);
        Ok(())
    }

    /// A change that no route can express: a truncated table.
    pub fn untellable(
        &mut self,
        relation: u32,
        row: &Row<'_>,
        (op, why): (&str, &str),
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        open.transaction.rows += 1;
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a change came before the columns of its table");
        };
        if plan.unknown || !plan.routes.is_empty() {
            let cause = Cause { reason: why, op, id: None };
            let destination = untellable(&plan.relation);
            self.out.dead_letter((&destination, &Halts::default()), cause, (plan, row), open)?;
        }
        Ok(())
    }
}

impl Outlet {
    fn row(&mut self, plan: &Plan, row: &Row<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        if plan.unknown {
            return self.cannot_emit(
                plan,
                row,
                "the routes neither tell nor ignore this published table",
                open,
            );
        }
        if !self.halted.is_empty() && self.halted.contains(&unrouted(&plan.relation), None) {
            return self.cannot_emit(plan, row, "follows an earlier row of its table", open);
        }
        let mut matched = false;
        for route in &plan.routes {
            if row.op == Op::Update && row.old.is_some() {
                match route.ended(row, &mut self.record) {
                    Ok(None) => {}
                    Ok(Some(ended)) => matched |= self.route((plan, route, &ended), open)?,
                    // Whatever keeps the keys from being compared keeps the row from being emitted.
                    Err(problem) => {
                        matched = true;
                        route.render_key(row, &mut self.record);
                        self.deliver(Err(problem), (plan, route, row), open)?;
                        continue;
                    }
                }
            }
            matched |= self.route((plan, route, row), open)?;
        }
        if row.op == Op::Delete && !plan.handles_deletes() {
            let cause = Cause { reason: DELETE_NOT_HANDLED, op: row.op.name(), id: None };
            self.dead_letter((&untellable(&plan.relation), &Halts::default()), cause, (plan, row), open)?;
        } else if !matched {
            self.metrics.unrouted.inc();
        }
        Ok(())
    }

    /// Emits the row by one route, if it matches.
    #[inline]
    fn route(
        &mut self,
        (plan, route, row): (&Plan, &CompiledRoute, &Row<'_>),
        open: &mut OpenTransaction<'_>,
    ) -> Result<bool> {
        let emissions = route.emissions(row.op);
        if emissions.is_empty() {
            return Ok(false);
        }
        match route.matches(row) {
            Ok(false) => return Ok(false),
            Ok(true) => {
                for &emission in emissions {
                    let (topics, record) = (&self.topics, &mut self.record);
                    let rendered = route.render_as(emission, row, open.transaction, topics, record);
                    self.deliver(rendered, (plan, route, row), open)?;
                }
            }
            Err(problem) => {
                route.render_key(row, &mut self.record);
                self.deliver(Err(problem), (plan, route, row), open)?;
            }
        }
        Ok(true)
    }

    fn deliver(
        &mut self,
        rendered: Result<Destination, Problem>,
        (plan, route, row): (&Plan, &CompiledRoute, &Row<'_>),
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let rendered = match rendered {
            Ok(_) if !self.halted.is_empty() && self.is_halted(&route.leads_to) => {
                Err(Problem("follows an earlier row of its key".to_owned()))
            }
            rendered => rendered,
        };
        let problem = match rendered {
            Ok(destination) => match self.send(destination, plan, open)? {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            },
            Err(problem) => problem,
        };
        let id = (route.has_id() && !self.record.id.is_empty()).then(|| self.record.id.clone());
        let cause = Cause { reason: &problem.0, op: row.op.name(), id: id.as_deref() };
        let halts = match key(&self.record) {
            Some(key) => Halts::key(&key),
            None => Halts::row(&plan.row_name(row, open.transaction)),
        };
        self.dead_letter((&route.leads_to, &halts), cause, (plan, row), open)
    }

    /// Hands the record to its sink.
    fn send(
        &mut self,
        destination: Destination,
        plan: &Plan,
        open: &mut OpenTransaction<'_>,
    ) -> Result<Result<(), Problem>> {
        match destination {
            Destination::Topic(topic) => self.emit_to_topic(topic, plan, open).map(Ok),
            Destination::Queue(queue) => self.emit_to_queue(queue, plan, open),
        }
    }

    /// Whether the record's key is halted towards this destination.
    fn is_halted(&self, leads_to: &str) -> bool {
        self.halted.contains(leads_to, key(&self.record).as_deref())
    }

    fn emit_to_topic(&mut self, topic: usize, plan: &Plan, open: &mut OpenTransaction<'_>) -> Result<()> {
        let (kafka, record) = (&mut self.kafka, &self.record);
        hit(Failpoint::BeforeProduce);
        offer(|| kafka.produce(topic, (record, plan), open.transaction, open.transaction_seq))?;
        hit(Failpoint::AfterProduce);
        self.count_emitted(Sink::Kafka, self.record.key.len() + self.record.value.len(), open);
        Ok(())
    }

    fn emit_to_queue(
        &mut self,
        queue: usize,
        plan: &Plan,
        open: &mut OpenTransaction<'_>,
    ) -> Result<Result<(), Problem>> {
        let rabbit = self.rabbit.as_ref().context("a route leads to a queue, and AMQP_URL is not set")?;
        if let Err(problem) =
            rabbit.publish(queue, (&self.record, plan), open.transaction, open.transaction_seq)
        {
            return Ok(Err(problem));
        }
        self.count_emitted(Sink::Rabbit, self.record.value.len(), open);
        Ok(Ok(()))
    }

    fn count_emitted(&self, sink: Sink, bytes: usize, open: &mut OpenTransaction<'_>) {
        if open.transaction.re_emitted {
            open.progress.re_emit(sink);
        } else {
            open.progress.added(sink);
        }
        if sink == Sink::Kafka {
            open.transaction.emitted += 1;
        }
        self.metrics.emitted(sink, bytes);
        if open.again {
            self.metrics.resent(sink, 1);
        }
    }

    /// Buries a row that has no route at all, and with it what follows in its table.
    fn cannot_emit(
        &mut self,
        plan: &Plan,
        row: &Row<'_>,
        why: &str,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let cause = Cause { reason: why, op: row.op.name(), id: None };
        self.dead_letter((&unrouted(&plan.relation), &Halts::default()), cause, (plan, row), open)
    }

    fn dead_letter(
        &mut self,
        (destination, halts): (&str, &Halts),
        cause: Cause<'_>,
        (plan, row): (&Plan, &Row<'_>),
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let halt = Halt { source: &self.source, destination, halts };
        let mut value = std::mem::take(&mut self.letter);
        record::write(halt, cause, (plan, row, open.transaction), &mut value);
        let written = self.write_dead((halts, &value), open);
        self.letter = value;
        written?;
        self.metrics.dead.inc();
        // Many rows may be without a key; the first says enough.
        let is_news = match halts {
            Halts { key: None, keyless: Some(_) } => !self.halted.has_keyless(destination),
            Halts { key, .. } => !self.halted.contains(destination, key.as_deref()),
        };
        if is_news {
            let (table, reason, position) = (&plan.relation, cause.reason, open.transaction.commit_lsn);
            let Halts { key, keyless } = halts;
            tracing::error!(source = self.source, table, key, keyless, destination, %position, reason, "dead letter");
        }
        self.halted.halt(destination, halts, self.letters_from);
        self.metrics.halted.set(self.halted.len() as i64);
        Ok(())
    }

    fn write_dead(&mut self, (halts, value): (&Halts, &[u8]), open: &mut OpenTransaction<'_>) -> Result<()> {
        let key = halts.key.as_ref().or(halts.keyless.as_ref()).map_or(&b""[..], |key| key.as_bytes());
        let (kafka, topic) = (&mut self.kafka, &self.dead_letter_topic);
        offer(|| kafka.dead_letter(topic, (key, value), open.transaction, open.transaction_seq))?;
        self.count_emitted(Sink::Kafka, key.len() + value.len(), open);
        Ok(())
    }
}

/// The record's key; `None`: it could not be emitted.
fn key(record: &Record) -> Option<std::borrow::Cow<'_, str>> {
    record.has_key.then(|| String::from_utf8_lossy(&record.key))
}

/// Offers the same record until the producer takes it: taking the next one first would break the order.
fn offer(mut send: impl FnMut() -> Result<Sent>) -> Result<()> {
    let mut since = None;
    while send()? == Sent::Full {
        if since.get_or_insert_with(Instant::now).elapsed() > QUEUE_FULL_TIMEOUT {
            bail!("Kafka's queue stays full");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
