//! From a row to what is told of it: pure, and into buffers that are reused.
//!
//! The routes of a table are compiled when the server announces its columns. A route that does not fit them (a
//! column is gone) stays, and says so for every row: nothing is passed over in silence.

mod compile;

use std::collections::BTreeMap;

use self::compile::compile;
use crate::postgres::decode::pgoutput::Relation;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::routes::body::Body;
use crate::routes::template::{BoundTemplate, Op, Problem, Row, Scope, Template};
use crate::routes::when::Filter;
use crate::routes::{Deletes, Routes, Routing, Source, Table};

/// Where a record goes: an index into the topics or queues of the routes file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    Topic(usize),
    Queue(usize),
}

/// What every row of a transaction shares.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// System id and timeline: what makes a position unique.
    pub cluster: String,
    pub commit_lsn: Lsn,
    pub committed_at: PgTime,
    /// The commit before this one that emitted anything on Kafka.
    pub previous: Lsn,
    /// `ce_time`.
    pub time: Vec<u8>,
    /// Rows seen so far.
    pub rows: u64,
    /// Records emitted on Kafka so far.
    pub emitted: u64,
    /// Emitted once more, or from a query: no link of the chain, and without a position.
    pub re_emitted: bool,
    /// Of rows that existed before, from a query.
    pub existing: bool,
}

impl Transaction {
    /// What rows that a query answers share. When each was committed is not known; this is when they were seen, at
    /// `commit_lsn` if that has a place.
    pub fn of_existing(cluster: String, commit_lsn: Lsn) -> Transaction {
        let committed_at = PgTime::now();
        let mut time = Vec::new();
        committed_at.write_rfc3339(&mut time);
        let (re_emitted, existing) = (true, true);
        Transaction {
            cluster,
            commit_lsn,
            committed_at,
            time,
            re_emitted,
            existing,
            ..Transaction::default()
        }
    }
}

/// One record, in buffers that the next one uses again.
#[derive(Debug, Default)]
pub struct Record {
    pub key: Vec<u8>,
    /// The key could be emitted; it may be empty.
    pub has_key: bool,
    pub value: Vec<u8>,
    /// The value is null: for a compacted topic, the end of its key.
    pub tombstone: bool,
    pub id: Vec<u8>,
    pub kind: Vec<u8>,
    pub subject: Vec<u8>,
    /// Further headers: the name's index in `Plan::header_names`, and the end of the value in `header_values`.
    pub headers: Vec<(usize, usize)>,
    pub header_values: Vec<u8>,
    topic: Vec<u8>,
    scratch: Vec<u8>,
}

impl Record {
    fn clear(&mut self) {
        for part in [&mut self.key, &mut self.value, &mut self.id, &mut self.kind, &mut self.subject] {
            part.clear();
        }
        self.headers.clear();
        self.header_values.clear();
        self.topic.clear();
        (self.tombstone, self.has_key) = (false, false);
    }

    /// Names and values of the further headers.
    pub fn headers<'r>(&'r self, plan: &'r Plan) -> impl Iterator<Item = (&'r str, &'r [u8])> {
        let starts = std::iter::once(0).chain(self.headers.iter().map(|&(_, end)| end));
        self.headers.iter().zip(starts).map(|(&(name, end), start)| {
            let name = plan.header_names.get(name).map_or("", String::as_str);
            (name, self.header_values.get(start..end).unwrap_or_default())
        })
    }

    /// Bytes on the wire, roughly and never below.
    pub fn size(&self) -> usize {
        const FRAME: usize = 256; // names of the fixed headers, lengths, ce_time, position
        self.key.len()
            + self.value.len()
            + self.id.len()
            + self.kind.len()
            + self.subject.len()
            + self.header_values.len()
            + self.headers.len() * 32
            + FRAME
    }
}

#[derive(Debug, Clone)]
enum Target {
    Fixed(Destination),
    /// The topic depends on the row.
    ByRow(BoundTemplate),
}

/// What is told of a row by a route that fits the columns of its table.
#[derive(Debug, Clone)]
struct BoundRoute {
    target: Target,
    key: BoundTemplate,
    /// Without it, ids are by position.
    id: Option<BoundTemplate>,
    /// Keeps what is told of a deletion apart from what was told of the row.
    id_end: &'static [u8],
    kind: BoundTemplate,
    subject: Option<BoundTemplate>,
    headers: Vec<(usize, BoundTemplate)>,
    /// None: a tombstone.
    body: Option<Body>,
}

/// What a route emits of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emission {
    Event,
    /// A null value under the same key.
    Tombstone,
}

#[derive(Debug, Clone)]
pub struct CompiledRoute {
    filter: Result<Filter, Problem>,
    /// Of inserts and updates.
    fitted: Result<BoundRoute, Problem>,
    deletes: Option<Deletes>,
    /// Of deletes.
    event: Option<Result<BoundRoute, Problem>>,
    tombstone: Option<Result<BoundRoute, Problem>>,
    /// For the dead letters of rows that cannot be emitted, for whatever reason.
    key: Option<BoundTemplate>,
    /// Where it leads, as the routes file says: `topic:PaymentTopic`. Halted keys are kept under it.
    pub leads_to: String,
}

/// The routes of one table, for the columns it has now.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub relation: String,
    pub columns: Vec<String>,
    pub shape: Relation,
    /// Names a row, for dead letters of rows without a key.
    pub row_name: Option<BoundTemplate>,
    pub header_names: Vec<String>,
    pub routes: Vec<CompiledRoute>,
    /// A deleted row comes with all of its columns, not with its key alone.
    pub whole_deletes: bool,
    /// The table is published, and the routes file neither routes nor ignores it.
    pub unknown: bool,
    /// A pattern matches the table, and the topic that its routes lead to is not made.
    pub without_topic: bool,
}

/// Looks up topic names that depend on rows, and limits.
#[derive(Debug, Clone, Default)]
pub struct Topics {
    by_name: BTreeMap<Vec<u8>, usize>,
    /// By topic index: the largest record.
    limits: Vec<usize>,
    /// Of queues.
    default_limit: usize,
}

impl Topics {
    /// `limits` is by topic index.
    pub fn new(routes: &Routes, limits: Vec<usize>) -> Topics {
        let by_name = routes.topics.iter().enumerate();
        Topics {
            by_name: by_name
                .map(|(index, topic)| (topic.name.get_ref().as_bytes().to_vec(), index))
                .collect(),
            limits,
            default_limit: routes.relay.max_record_bytes,
        }
    }

    fn limit(&self, destination: Destination) -> usize {
        match destination {
            Destination::Topic(index) => self.limits.get(index).copied().unwrap_or(self.default_limit),
            Destination::Queue(_) => self.default_limit,
        }
    }
}

impl CompiledRoute {
    #[inline]
    pub fn matches(&self, row: &Row<'_>) -> Result<bool, Problem> {
        self.filter.as_ref().map_err(Clone::clone)?.matches(row)
    }

    /// What the route emits of a change, in this order. Nothing, where it does not emit deletes.
    #[inline]
    pub fn emissions(&self, op: Op) -> &'static [Emission] {
        match (op, self.deletes) {
            (Op::Insert | Op::Update, _) | (Op::Delete, Some(Deletes::Event)) => &[Emission::Event],
            (Op::Delete, Some(Deletes::Tombstone)) => &[Emission::Tombstone],
            (Op::Delete, Some(Deletes::Both)) => &[Emission::Event, Emission::Tombstone],
            (Op::Delete, Some(Deletes::Ignore) | None) => &[],
        }
    }

    /// Whether a template gives the id.
    pub fn has_id(&self) -> bool {
        self.fitted.as_ref().is_ok_and(|fitted| fitted.id.is_some())
    }

    /// Whether the routes file says what becomes of deletes.
    pub fn handles_deletes(&self) -> bool {
        self.deletes.is_some()
    }

    /// Fills the record with the row's key alone, if it can be emitted.
    pub fn render_key(&self, row: &Row<'_>, record: &mut Record) {
        record.clear();
        if let Some(key) = &self.key {
            record.has_key = key.write(row, &mut record.key).unwrap_or(false);
        }
    }

    /// An update that gave the row another key ends the old one, where the route emits deletes: the row that ended.
    /// Under a key that is null nothing was emitted, so there is nothing to end.
    pub fn ended<'r>(&self, row: &Row<'r>, record: &mut Record) -> Result<Option<Row<'r>>, Problem> {
        let (Op::Update, Some(old), Some(Ok(delete))) =
            (row.op, row.old, self.event.as_ref().or(self.tombstone.as_ref()))
        else {
            return Ok(None);
        };
        let (ended, key) = (Row::delete(old), self.fitted.as_ref().map_err(Clone::clone)?);
        record.clear();
        if !delete.key.write(&ended, &mut record.key)? {
            return Ok(None);
        }
        record.scratch.clear();
        let has_key = key.key.write(row, &mut record.scratch)?;
        Ok((!has_key || record.key != record.scratch).then_some(ended))
    }

    /// Fills the record with the event. After an error it holds what could be emitted: the key at least, if there is one.
    #[inline]
    pub fn render(
        &self,
        row: &Row<'_>,
        transaction: &Transaction,
        topics: &Topics,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        self.render_as(Emission::Event, row, (transaction, topics), record)
    }

    #[inline]
    pub fn render_as(
        &self,
        emission: Emission,
        row: &Row<'_>,
        (transaction, topics): (&Transaction, &Topics),
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        record.clear();
        let fitted = match (row.op, emission) {
            (Op::Insert | Op::Update, _) => Some(&self.fitted),
            (Op::Delete, Emission::Event) => self.event.as_ref(),
            (Op::Delete, Emission::Tombstone) => self.tombstone.as_ref(),
        };
        let unsaid = || Problem(DELETE_NOT_HANDLED.to_owned());
        match fitted.ok_or_else(unsaid)? {
            Ok(fitted) => fitted.render(row, transaction, topics, record),
            Err(problem) => {
                self.render_key(row, record);
                Err(problem.clone())
            }
        }
    }

    /// Why the route does not fit its table, if so.
    pub fn problem(&self) -> Option<&Problem> {
        let deletes = [&self.event, &self.tombstone].into_iter().flatten();
        let fitted = std::iter::once(&self.fitted).chain(deletes).find_map(|fitted| fitted.as_ref().err());
        fitted.or(self.filter.as_ref().err())
    }
}

/// Of a deleted row, where a route does not say what becomes of it.
pub const DELETE_NOT_HANDLED: &str =
    "the row was deleted, which no route can tell unless it says how (`deletes`)";

impl BoundRoute {
    #[inline]
    fn render(
        &self,
        row: &Row<'_>,
        transaction: &Transaction,
        topics: &Topics,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        self.key.require("key", row, &mut record.key)?;
        record.has_key = true;
        match &self.id {
            Some(id) => id.require("id", row, &mut record.id)?,
            None => fallback_id(transaction, &mut record.id),
        }
        record.id.extend_from_slice(self.id_end);
        self.kind.require("type", row, &mut record.kind)?;
        if let Some(subject) = &self.subject {
            subject.require("subject", row, &mut record.subject)?;
        }
        for (name, template) in &self.headers {
            if template.write(row, &mut record.header_values)? {
                record.headers.push((*name, record.header_values.len()));
            }
        }
        let destination = match &self.target {
            Target::Fixed(destination) => *destination,
            Target::ByRow(template) => {
                template.require("topic", row, &mut record.topic)?;
                let index = topics.by_name.get(record.topic.as_slice()).ok_or_else(|| {
                    Problem(format!("`{}` is not one of [[topics]]", String::from_utf8_lossy(&record.topic)))
                })?;
                Destination::Topic(*index)
            }
        };
        match &self.body {
            Some(body) => body.write(row, &mut record.scratch, &mut record.value)?,
            None => record.tombstone = true,
        }
        let (size, limit) = (record.size(), topics.limit(destination));
        if size > limit {
            return Err(Problem(format!("the record has {size} bytes; {limit} are allowed")));
        }
        Ok(destination)
    }
}

/// For tables without a version. A slot may begin where a commit does, so what is emitted from its snapshot is marked.
fn fallback_id(transaction: &Transaction, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let mark = if transaction.existing { "r" } else { "" };
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{}/{}/{mark}{}", transaction.cluster, transaction.commit_lsn, transaction.rows);
}

impl Plan {
    /// Compiles the routes of `source` for a relation.
    pub fn compile(routes: &Routes, source: &Source, relation: &Relation) -> Plan {
        let of = relation.table_name();
        let mut plan = Plan {
            relation: of.to_string(),
            columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
            whole_deletes: relation.is_full(),
            shape: relation.clone(),
            row_name: BoundTemplate::row_name(relation),
            ..Plan::default()
        };
        let name = source.name.get_ref();
        match source.routing(&of) {
            Routing::Named(table) => plan.add(routes, name, table),
            // It was made after the session began.
            Routing::Pattern(pattern) => plan.add(routes, name, &pattern.table(name, &of)),
            Routing::Ignored => {}
            Routing::Unknown => plan.unknown = true,
        }
        plan
    }

    /// The name of a row whose key cannot be emitted: by the table's key, or by its place in the WAL.
    pub fn row_name(&self, row: &Row<'_>, transaction: &Transaction) -> String {
        let mut name = Vec::new();
        match self.row_name.as_ref().map(|bound| bound.write(row, &mut name)) {
            Some(Ok(true)) => String::from_utf8_lossy(&name).into_owned(),
            _ => {
                let Transaction { cluster, commit_lsn, rows, .. } = transaction;
                format!("{} at {cluster}/{commit_lsn}/{rows}", self.relation)
            }
        }
    }

    fn add(&mut self, routes: &Routes, source: &str, table: &Table) {
        let relation = self.shape.clone();
        let scope = Scope { source, relation: &relation, names: &table.names, deleted: false };
        for route in &table.routes {
            let topic = route.topic.as_ref().and_then(|topic| Template::parse(topic.get_ref()).ok());
            let name = topic.as_ref().and_then(Template::constant);
            self.without_topic |= name.is_some_and(|name| routes.topic_index(name).is_none());
            self.routes.push(compile(routes, (table, route), scope, &mut self.header_names));
        }
    }

    /// Whether every route says what becomes of deletes.
    pub fn handles_deletes(&self) -> bool {
        self.routes.iter().all(CompiledRoute::handles_deletes)
    }

    /// Whether some route emits deletes.
    pub fn emits_deletes(&self) -> bool {
        self.routes.iter().any(|route| !route.emissions(Op::Delete).is_empty())
    }

    /// What does not fit, one line each.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.routes.iter().filter_map(CompiledRoute::problem)
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
