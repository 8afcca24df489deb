//! Emits one row by the routes of its table, or writes a dead letter for it.
//!
//! * Each route of the table is tried, in the order of the routes file.
//! * A row whose key is halted towards a destination follows its key to the dead-letter topic.
//! * A row that a route cannot emit halts its key; a row without a key halts only itself.
//! * A row that no route matches is counted as unrouted.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::dead_letters::DeadLetters;
use super::offer::offer;
use super::{EmitOutcome, OpenTransaction, PlannedRow, SinkMessage};
use crate::checkpoint::progress::Sink;
use crate::dead_letter::halts::{Halts, change_destination, table_destination};
use crate::dead_letter::record::{Cause, Halt};
use crate::failpoints::{Failpoint, hit};
use crate::observe::metrics::SourceMetrics;
use crate::routes::problem::Problem;
use crate::routes::route::{
    CompiledRoute, DELETE_NOT_HANDLED, Destination, Plan, Record, Topics, Transaction,
};
use crate::routes::row::Op;
use crate::sinks::event::Event;
use crate::sinks::kafka::Kafka;
use crate::sinks::rabbit::Rabbit;

pub struct RowEmitter {
    pub(super) topics: Topics,
    pub kafka: Kafka,
    rabbit: Option<Arc<Rabbit>>,
    pub dead_letters: DeadLetters,
    metrics: SourceMetrics,
    pub(super) record: Record,
}

/// A row that a route could not emit, with as much of its event as could be rendered.
struct FailedEvent {
    problem: Problem,
    key: Option<String>,
    id: Option<Vec<u8>>,
}

impl FailedEvent {
    /// `record`: the event so far.
    fn new(problem: Problem, route: &CompiledRoute, record: &Record) -> FailedEvent {
        FailedEvent {
            problem,
            key: key(record).map(std::borrow::Cow::into_owned),
            id: (route.has_id() && !record.id.is_empty()).then(|| record.id.clone()),
        }
    }
}

impl RowEmitter {
    pub fn new(
        topics: Topics,
        kafka: Kafka,
        rabbit: Option<Arc<Rabbit>>,
        dead_letters: DeadLetters,
        metrics: SourceMetrics,
    ) -> RowEmitter {
        RowEmitter { topics, kafka, rabbit, dead_letters, metrics, record: Record::default() }
    }

    pub fn count_row(&self) {
        self.metrics.stream.rows.inc();
    }

    pub fn id(
        &mut self,
        routed: PlannedRow<'_>,
        destination: &str,
        transaction: &Transaction,
    ) -> Option<Vec<u8>> {
        let mut routes = routed.plan.routes.iter();
        let route = routes.find(|route| route.leads_to == destination && route.has_id())?;
        // Any other problem of the row comes out when it is emitted.
        let _ = route.render(routed.row, transaction, &self.topics, &mut self.record);
        (!self.record.id.is_empty()).then(|| self.record.id.clone())
    }

    /// Emits a row to every route that it matches.
    pub fn emit(&mut self, routed: PlannedRow<'_>, open: &mut OpenTransaction<'_>) -> Result<()> {
        let PlannedRow { plan, row } = routed;
        if plan.unknown {
            let reason = "the routes neither emit nor ignore this published table";
            return self.unrouted_table(routed, reason, open);
        }
        if self.is_halted_table(plan) {
            return self.unrouted_table(routed, "follows an earlier row of its table", open);
        }
        let mut matched = false;
        for route in &plan.routes {
            if row.op == Op::Update && row.old.is_some() {
                match route.ended(row, &mut self.record) {
                    Ok(None) => {}
                    Ok(Some(ended)) => {
                        matched |= self.route(route, PlannedRow { plan, row: &ended }, open)?;
                    }
                    // A problem that keeps the keys from being compared keeps the row from being emitted.
                    Err(problem) => {
                        matched = true;
                        self.fail_unrendered(problem, route, routed, open)?;
                        continue;
                    }
                }
            }
            matched |= self.route(route, routed, open)?;
        }
        if row.op == Op::Delete && !plan.handles_deletes() {
            let cause = Cause { reason: DELETE_NOT_HANDLED, op: row.op.name(), id: None };
            self.dead_letter(&change_destination(&plan.relation), &Halts::default(), cause, routed, open)?;
        } else if !matched {
            self.metrics.stream.unrouted.inc();
        }
        Ok(())
    }

    /// Writes the record of a release to the dead-letter topic.
    pub fn write_release(
        &mut self,
        halts: &Halts,
        value: &[u8],
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        self.dead_letters.produce(&mut self.kafka, halts, value, open)
    }

    pub fn dead_letter(
        &mut self,
        destination: &str,
        halts: &Halts,
        cause: Cause<'_>,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        self.dead_letters.write(&mut self.kafka, Halt { destination, halts }, cause, routed, open)
    }

    /// Emits the row by one route. Returns whether the route matches.
    #[inline]
    fn route(
        &mut self,
        route: &CompiledRoute,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<bool> {
        let emissions = route.emissions(routed.row.op);
        if emissions.is_empty() {
            return Ok(false);
        }
        match route.matches(routed.row) {
            Ok(false) => return Ok(false),
            Ok(true) => {
                for &emission in emissions {
                    let (topics, record) = (&self.topics, &mut self.record);
                    match route.render_as(emission, routed.row, open.transaction, topics, record) {
                        Ok(destination) => self.deliver(destination, route, routed, open)?,
                        Err(problem) => {
                            let failed = FailedEvent::new(problem, route, &self.record);
                            self.fail(&failed, route, routed, open)?;
                        }
                    }
                }
            }
            Err(problem) => self.fail_unrendered(problem, route, routed, open)?,
        }
        Ok(true)
    }

    /// Sends the rendered record, unless its key is halted.
    #[inline]
    fn deliver(
        &mut self,
        destination: Destination,
        route: &CompiledRoute,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let problem = if self.is_halted(route) {
            Problem("follows an earlier row of its key".to_owned())
        } else {
            match self.send(destination, routed.plan, open)? {
                EmitOutcome::Emitted => return Ok(()),
                EmitOutcome::Failed(problem) => problem,
            }
        };
        let failed = FailedEvent::new(problem, route, &self.record);
        self.fail(&failed, route, routed, open)
    }

    /// A problem before the event was rendered: of the event, only the key can be known.
    fn fail_unrendered(
        &mut self,
        problem: Problem,
        route: &CompiledRoute,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        route.render_key(routed.row, &mut self.record);
        let failed = FailedEvent::new(problem, route, &self.record);
        self.fail(&failed, route, routed, open)
    }

    /// Writes a dead letter that halts the event's key, or the row alone where it has no key.
    fn fail(
        &mut self,
        failed: &FailedEvent,
        route: &CompiledRoute,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let FailedEvent { problem, key, id } = failed;
        let cause = Cause { reason: &problem.0, op: routed.row.op.name(), id: id.as_deref() };
        let halts = match key {
            Some(key) => Halts::key(key),
            None => Halts::row(&routed.plan.row_name(routed.row, open.transaction)),
        };
        self.dead_letter(&route.leads_to, &halts, cause, routed, open)
    }

    /// Writes a dead letter for a row whose table has no routes. It halts the whole table.
    fn unrouted_table(
        &mut self,
        routed: PlannedRow<'_>,
        reason: &str,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let cause = Cause { reason, op: routed.row.op.name(), id: None };
        let destination = table_destination(&routed.plan.relation);
        self.dead_letter(&destination, &Halts::default(), cause, routed, open)
    }

    fn is_halted_table(&self, plan: &Plan) -> bool {
        let halted = self.dead_letters.halted();
        !halted.is_empty() && halted.contains(&table_destination(&plan.relation), None)
    }

    /// Whether the key of the rendered record is halted towards the route's destination.
    pub(super) fn is_halted(&self, route: &CompiledRoute) -> bool {
        let halted = self.dead_letters.halted();
        !halted.is_empty() && halted.contains(&route.leads_to, key(&self.record).as_deref())
    }

    /// Hands the rendered record to its sink.
    pub(super) fn send(
        &mut self,
        destination: Destination,
        plan: &Plan,
        open: &mut OpenTransaction<'_>,
    ) -> Result<EmitOutcome> {
        match destination {
            Destination::Topic(topic) => self.emit_to_topic(topic, plan, open).map(|()| EmitOutcome::Emitted),
            Destination::Queue(queue) => self.emit_to_queue(queue, plan, open),
        }
    }

    fn emit_to_topic(&mut self, topic: usize, plan: &Plan, open: &mut OpenTransaction<'_>) -> Result<()> {
        let (kafka, record, transaction_seq) = (&mut self.kafka, &self.record, open.transaction_seq);
        let is_link = kafka.is_chained(topic);
        let event = Event { record, plan, transaction: open.transaction, transaction_seq };
        hit(Failpoint::BeforeProduce);
        offer(|| kafka.produce(topic, &event))?;
        hit(Failpoint::AfterProduce);
        let bytes = self.record.key.len() + self.record.value.len();
        open.count(SinkMessage { sink: Sink::Kafka, bytes, is_link }, &self.metrics);
        Ok(())
    }

    fn emit_to_queue(
        &mut self,
        queue: usize,
        plan: &Plan,
        open: &mut OpenTransaction<'_>,
    ) -> Result<EmitOutcome> {
        let rabbit = self.rabbit.as_ref().context("a route leads to a queue, and AMQP_URL is not set")?;
        let event = Event {
            record: &self.record,
            plan,
            transaction: open.transaction,
            transaction_seq: open.transaction_seq,
        };
        if let Err(problem) = rabbit.publish(queue, &event) {
            return Ok(EmitOutcome::Failed(problem));
        }
        let bytes = self.record.value.len();
        open.count(SinkMessage { sink: Sink::Rabbit, bytes, is_link: false }, &self.metrics);
        Ok(EmitOutcome::Emitted)
    }
}

/// The record's key; `None`: it could not be rendered.
fn key(record: &Record) -> Option<std::borrow::Cow<'_, str>> {
    record.has_key.then(|| String::from_utf8_lossy(&record.key))
}
