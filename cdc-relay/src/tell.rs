//! Takes rows to the sinks: finds their routes, and decides between telling, passing over and burying.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dead::{Halt, Halted, letter};
use crate::kafka::{Kafka, Sent, Which};
use crate::metrics::SourceMetrics;
use crate::pgoutput::Relation;
use crate::progress::{Progress, Sink, Ticket};
use crate::rabbit::Rabbit;
use crate::route::{Compiled, Destination, Plan, Record, Topics, Transaction};
use crate::routes::{Routes, Source};
use crate::template::{Problem, Row};

/// How long the producer's queue may stay full before the session starts over.
const FULL: Duration = Duration::from_secs(20);

/// The open transaction of the stream.
pub struct Open<'a> {
    pub transaction: &'a mut Transaction,
    pub ticket: Ticket,
    pub progress: &'a mut Progress,
    /// This process told it before.
    pub again: bool,
}

/// The routes of one source for the columns its tables have now, and the sinks they lead to.
pub struct Teller {
    routes: Arc<Routes>,
    source: Arc<Source>,
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
    metrics: SourceMetrics,
    record: Record,
    letter: Vec<u8>,
}

impl Teller {
    pub fn new(
        (routes, source): (Arc<Routes>, Arc<Source>),
        topics: Topics,
        (kafka, rabbit): (Kafka, Option<Arc<Rabbit>>),
        metrics: SourceMetrics,
    ) -> Teller {
        let out = Outlet {
            source: source.name.get_ref().clone(),
            dead_letter_topic: routes.relay.dead_letter_topic.get_ref().clone(),
            topics,
            kafka,
            rabbit,
            halted: Halted::default(),
            metrics,
            record: Record::default(),
            letter: Vec::new(),
        };
        Teller { routes, source, plans: Vec::new(), out }
    }

    pub fn kafka(&self) -> &Kafka {
        &self.out.kafka
    }

    /// Whether much is coming, or a row at a time.
    pub fn expect(&mut self, backlog: bool) {
        self.out.kafka.choose(if backlog { Which::Patient } else { Which::Prompt });
    }

    /// The keys that are halted, as the dead-letter topic tells.
    pub fn set_halted(&mut self, halted: Halted) {
        self.out.metrics.halted.set(halted.len() as i64);
        self.out.halted = halted;
    }

    /// The server announces a table's columns: once per session and table, and after every change.
    pub fn relation(&mut self, relation: &Relation) {
        let plan = Plan::compile(&self.routes, &self.source, relation);
        for problem in plan.problems() {
            tracing::error!(source = self.out.source, table = plan.relation, "{}", problem.0);
        }
        match self.plans.iter_mut().find(|(id, _)| *id == relation.id) {
            Some((_, known)) => *known = plan,
            None => self.plans.push((relation.id, plan)),
        }
    }

    /// Tells a row to every route that it matches.
    pub fn row(&mut self, relation: u32, row: &Row<'_>, open: &mut Open<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.out.metrics.rows.inc();
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a row came before the columns of its table");
        };
        let mut matched = false;
        for route in &plan.routes {
            let told = match route.matches(row) {
                Ok(false) => continue,
                Ok(true) => route.tell(row, open.transaction, &self.out.topics, &mut self.out.record),
                Err(problem) => {
                    self.out.record.key.clear();
                    Err(problem)
                }
            };
            matched = true;
            self.out.deliver(told, (plan, route, row), open)?;
        }
        if plan.unknown {
            self.out.untold(plan, row, "the routes neither tell nor ignore this published table", open)?;
        } else if !matched {
            self.out.metrics.unrouted.inc();
        }
        Ok(())
    }

    /// A change that no route can express: a deleted row, a truncated table.
    pub fn untellable(&mut self, relation: u32, row: &Row<'_>, why: &str, open: &mut Open<'_>) -> Result<()> {
        open.transaction.rows += 1;
        let Some((_, plan)) = self.plans.iter().find(|(id, _)| *id == relation) else {
            bail!("a change came before the columns of its table");
        };
        if plan.unknown || !plan.routes.is_empty() {
            self.out.untold(plan, row, why, open)?;
        }
        Ok(())
    }
}

impl Outlet {
    fn deliver(
        &mut self,
        told: Result<Destination, Problem>,
        (plan, route, row): (&Plan, &Compiled, &Row<'_>),
        open: &mut Open<'_>,
    ) -> Result<()> {
        let mut told = told;
        if !self.halted.is_empty() && told.is_ok() && self.halted.contains(&self.halt(&route.leads_to)) {
            told = Err(Problem("follows an earlier row of its key".to_owned()));
        }
        match told {
            Ok(Destination::Topic(topic)) => self.tell_topic(topic, plan, open),
            Ok(Destination::Queue(queue)) => match self.tell_queue(queue, plan, open)? {
                Ok(()) => Ok(()),
                Err(problem) => self.bury(self.halt(&route.leads_to), &problem, (plan, row), open),
            },
            Err(problem) => self.bury(self.halt(&route.leads_to), &problem, (plan, row), open),
        }
    }

    fn tell_topic(&mut self, topic: usize, plan: &Plan, open: &mut Open<'_>) -> Result<()> {
        let (kafka, record) = (&mut self.kafka, &self.record);
        offer(|| kafka.tell(topic, (record, plan), open.transaction, open.ticket))?;
        self.told(Sink::Kafka, self.record.key.len() + self.record.value.len(), open);
        Ok(())
    }

    fn tell_queue(&mut self, queue: usize, plan: &Plan, open: &mut Open<'_>) -> Result<Result<(), Problem>> {
        let rabbit = self.rabbit.as_ref().context("a route leads to a queue, and AMQP_URL is not set")?;
        if let Err(problem) = rabbit.tell(queue, (&self.record, plan), open.transaction, open.ticket) {
            return Ok(Err(problem));
        }
        self.told(Sink::Rabbit, self.record.value.len(), open);
        Ok(Ok(()))
    }

    fn told(&self, sink: Sink, bytes: usize, open: &mut Open<'_>) {
        open.progress.tell(sink);
        if sink == Sink::Kafka {
            open.transaction.told += 1;
        }
        self.metrics.told(sink, bytes);
        if open.again {
            self.metrics.resent(sink, 1);
        }
    }

    fn halt(&self, leads_to: &str) -> Halt {
        let key =
            (!self.record.key.is_empty()).then(|| String::from_utf8_lossy(&self.record.key).into_owned());
        Halt { source: self.source.clone(), destination: leads_to.to_owned(), key }
    }

    /// Buries a change that has no route at all, and with it what follows in its table.
    fn untold(&mut self, plan: &Plan, row: &Row<'_>, why: &str, open: &mut Open<'_>) -> Result<()> {
        self.record.key.clear();
        let halt = self.halt(&format!("table:{}", plan.relation));
        self.bury(halt, &Problem(why.to_owned()), (plan, row), open)
    }

    fn bury(
        &mut self,
        halt: Halt,
        reason: &Problem,
        (plan, row): (&Plan, &Row<'_>),
        open: &mut Open<'_>,
    ) -> Result<()> {
        letter(&halt, reason, (plan, row, open.transaction), &mut self.letter);
        let key = halt.key.clone().unwrap_or_default();
        let (kafka, topic, value) = (&mut self.kafka, &self.dead_letter_topic, self.letter.as_slice());
        offer(|| kafka.bury(topic, (key.as_bytes(), value), open.transaction, open.ticket))?;
        self.told(Sink::Kafka, key.len() + value.len(), open);
        self.metrics.dead.inc();
        if !self.halted.contains(&halt) {
            let (table, destination, position) =
                (&plan.relation, &halt.destination, open.transaction.commit_lsn);
            let reason = &reason.0;
            tracing::error!(source = self.source, table, destination, key, %position, reason, "dead letter");
            self.halted.halt(halt);
            self.metrics.halted.set(self.halted.len() as i64);
        }
        Ok(())
    }
}

/// Offers the same record until the producer takes it: taking the next one first would break the order.
fn offer(mut send: impl FnMut() -> Result<Sent>) -> Result<()> {
    let mut since = None;
    while send()? == Sent::Full {
        if since.get_or_insert_with(Instant::now).elapsed() > FULL {
            bail!("Kafka's queue stays full");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
