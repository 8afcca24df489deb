//! Takes rows to the sinks: finds their routes, and decides between telling, passing over and burying.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_postgres::Config;

use crate::catalog::Catalog;
use crate::dead::{Halt, Halted, letter};
use crate::failpoints::{Place, reach};
use crate::kafka::{Kafka, Sent};
use crate::metrics::SourceMetrics;
use crate::pace::Load;
use crate::pgoutput::Relation;
use crate::progress::{Progress, Sink, Ticket};
use crate::rabbit::Rabbit;
use crate::route::{Compiled, Destination, Plan, Record, Topics, Transaction, UNSAID};
use crate::routes::{Routes, Source};
use crate::template::{Op, Problem, Row};
use crate::wire::Session;

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
    database: Config,
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
    metrics: SourceMetrics,
    record: Record,
    letter: Vec<u8>,
}

impl Teller {
    pub fn new(
        (routes, source, database): (Arc<Routes>, Arc<Source>, Config),
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
        Teller { routes, source, database, catalog: Catalog::default(), plans: Vec::new(), out }
    }

    pub fn kafka(&self) -> &Kafka {
        &self.out.kafka
    }

    /// How much is coming.
    pub fn expect(&mut self, load: Load) {
        self.out.kafka.choose(load);
    }

    /// The keys that are halted, as the dead-letter topic tells.
    pub fn set_halted(&mut self, halted: Halted) {
        self.out.metrics.halted.set(halted.len() as i64);
        self.out.halted = halted;
    }

    /// What the catalog said at the start of the session.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        self.catalog = catalog;
    }

    /// The server announces a table's columns: once per session and table, and after every change. What the catalog
    /// has to say of something new is asked on a session of its own.
    pub fn relation(&mut self, relation: Relation) -> Result<()> {
        let relation = self.settled(relation)?;
        let plan = Plan::compile(&self.routes, &self.source, &relation);
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
    fn settled(&mut self, mut relation: Relation) -> Result<Relation> {
        if !self.catalog.knows(&relation) {
            let mut session = Session::connect(&self.database)?;
            self.catalog.learn(&mut session, std::slice::from_ref(&relation))?;
        }
        self.catalog.settle(&mut relation);
        Ok(relation)
    }

    /// Tells a row to every route that it matches.
    pub fn row(&mut self, relation: u32, row: &Row<'_>, open: &mut Open<'_>) -> Result<()> {
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
        let mut relation = self.settled(relation.clone())?;
        relation.identity = b'f';
        Ok(Plan::compile(&self.routes, &self.source, &relation))
    }

    /// As `row`, for a row that a query answered.
    pub fn retell(&mut self, plan: &Plan, row: &Row<'_>, open: &mut Open<'_>) -> Result<()> {
        open.transaction.rows += 1;
        self.out.row(plan, row, open)
    }

    /// A change that no route can express: a truncated table.
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
    fn row(&mut self, plan: &Plan, row: &Row<'_>, open: &mut Open<'_>) -> Result<()> {
        let mut matched = false;
        for route in &plan.routes {
            if row.op == Op::Update && row.old.is_some() {
                match route.ended(row, &mut self.record) {
                    Ok(None) => {}
                    Ok(Some(ended)) => matched |= self.route((plan, route, &ended), open)?,
                    // Whatever keeps the keys from being compared keeps the row from being told.
                    Err(problem) => {
                        matched = true;
                        self.deliver(Err(problem), (plan, route, row), open)?;
                        continue;
                    }
                }
            }
            matched |= self.route((plan, route, row), open)?;
        }
        if plan.unknown {
            self.untold(plan, row, "the routes neither tell nor ignore this published table", open)?;
        } else if row.op == Op::Delete && !plan.says_deletes() {
            self.untold(plan, row, UNSAID, open)?;
        } else if !matched {
            self.metrics.unrouted.inc();
        }
        Ok(())
    }

    /// Tells the row by one route, if it matches.
    #[inline]
    fn route(
        &mut self,
        (plan, route, row): (&Plan, &Compiled, &Row<'_>),
        open: &mut Open<'_>,
    ) -> Result<bool> {
        let tellings = route.tellings(row.op);
        match route.matches(row) {
            _ if tellings.is_empty() => return Ok(false),
            Ok(false) => return Ok(false),
            Ok(true) => {
                for &telling in tellings {
                    let what = (&*open.transaction, &self.topics);
                    let told = route.tell_as(telling, row, what, &mut self.record);
                    self.deliver(told, (plan, route, row), open)?;
                }
            }
            Err(problem) => {
                self.record.key.clear();
                self.deliver(Err(problem), (plan, route, row), open)?;
            }
        }
        Ok(true)
    }

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
        reach(Place::BeforeProduce);
        offer(|| kafka.tell(topic, (record, plan), open.transaction, open.ticket))?;
        reach(Place::AfterProduce);
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
        if open.transaction.retold {
            open.progress.retell(sink);
        } else {
            open.progress.tell(sink);
        }
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
