//! Renders the records of a row: pure, into reused buffers.
//!
//! * The routes of a table are compiled when the server announces its columns.
//! * A route that does not fit the columns (one was dropped) stays, and reports its problem for every row: no row is skipped
//!   silently.

mod compile;
mod plan;
mod record;
mod topics;

pub use self::plan::Plan;
pub use self::record::{HeaderSpan, Record};
pub use self::topics::Topics;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::routes::Deletes;
use crate::routes::body::Body;
use crate::routes::problem::Problem;
use crate::routes::row::{Op, Row};
use crate::routes::template::BoundTemplate;
use crate::routes::when::Filter;

/// A record's destination: an index into the topics or queues of the routes file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    Topic(usize),
    Queue(usize),
}

/// The values that all rows of a transaction share.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// System id and timeline, which make a position unique.
    pub cluster: String,
    pub commit_lsn: Lsn,
    pub committed_at: PgTime,
    /// The previous commit that emitted anything on Kafka.
    pub previous: Lsn,
    /// `ce_time`.
    pub time: Vec<u8>,
    /// The number of rows so far.
    pub rows: u64,
    /// The number of records emitted on Kafka so far.
    pub emitted: u64,
    /// The rows are emitted once more, or come from a query. Their records have no position, and are no link of the chain.
    pub re_emitted: bool,
    /// The rows existed before, and come from a query.
    pub existing: bool,
}

impl Transaction {
    /// The values of rows that come from a query at `commit_lsn`. Their commit times are unknown; they have the time of the query.
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

#[derive(Debug, Clone)]
enum Target {
    Fixed(Destination),
    /// The topic depends on the row.
    ByRow(BoundTemplate),
}

/// A route bound to the columns of its table.
#[derive(Debug, Clone)]
struct BoundRoute {
    target: Target,
    key: BoundTemplate,
    /// None: ids are by position.
    id: Option<BoundTemplate>,
    /// Distinguishes the id of a deletion from the row's earlier ids.
    id_end: &'static [u8],
    kind: BoundTemplate,
    subject: Option<BoundTemplate>,
    headers: Vec<BoundHeader>,
    /// None: a tombstone.
    body: Option<Body>,
}

/// A header of a bound route; `name` is an index into `Plan::header_names`.
#[derive(Debug, Clone)]
struct BoundHeader {
    name: usize,
    value: BoundTemplate,
}

/// A record that a route emits of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emission {
    Event,
    /// A null value under the same key.
    Tombstone,
}

#[derive(Debug, Clone)]
pub struct CompiledRoute {
    filter: Result<Filter, Problem>,
    /// For inserts and updates.
    upsert: Result<BoundRoute, Problem>,
    deletes: Option<Deletes>,
    /// For deletes.
    delete_event: Option<Result<BoundRoute, Problem>>,
    tombstone: Option<Result<BoundRoute, Problem>>,
    /// The key, for dead letters.
    key: Option<BoundTemplate>,
    /// The destination as the routes file names it: `topic:PaymentTopic`. Halted keys are stored under it.
    pub leads_to: String,
}

impl CompiledRoute {
    #[inline]
    pub fn matches(&self, row: &Row<'_>) -> Result<bool, Problem> {
        self.filter.as_ref().map_err(Clone::clone)?.matches(row)
    }

    /// The records of a change, in order. Empty for deletes that the route does not emit.
    #[inline]
    pub fn emissions(&self, op: Op) -> &'static [Emission] {
        match (op, self.deletes) {
            (Op::Insert | Op::Update, _) | (Op::Delete, Some(Deletes::Event)) => &[Emission::Event],
            (Op::Delete, Some(Deletes::Tombstone)) => &[Emission::Tombstone],
            (Op::Delete, Some(Deletes::Both)) => &[Emission::Event, Emission::Tombstone],
            (Op::Delete, Some(Deletes::Ignore) | None) => &[],
        }
    }

    /// Whether the id has a template.
    pub fn has_id(&self) -> bool {
        self.upsert.as_ref().is_ok_and(|route| route.id.is_some())
    }

    /// Whether the routes file decides on deletes.
    pub fn handles_deletes(&self) -> bool {
        self.deletes.is_some()
    }

    /// Fills the record with the row's key alone, if it has one.
    pub fn render_key(&self, row: &Row<'_>, record: &mut Record) {
        record.clear();
        if let Some(key) = &self.key {
            record.has_key = key.write(row, &mut record.key).unwrap_or(false);
        }
    }

    /// The row under the old key, if an update changed the key and the route emits deletes. A null key had no record, so it
    /// does not end.
    pub fn ended<'r>(&self, row: &Row<'r>, record: &mut Record) -> Result<Option<Row<'r>>, Problem> {
        let (Op::Update, Some(old), Some(Ok(delete))) =
            (row.op, row.old, self.delete_event.as_ref().or(self.tombstone.as_ref()))
        else {
            return Ok(None);
        };
        let (ended, key) = (Row::delete(old), self.upsert.as_ref().map_err(Clone::clone)?);
        record.clear();
        if !delete.key.write(&ended, &mut record.key)? {
            return Ok(None);
        }
        record.scratch.clear();
        let has_key = key.key.write(row, &mut record.scratch)?;
        Ok((!has_key || record.key != record.scratch).then_some(ended))
    }

    /// Fills the record with the event. After an error it has at least the key, if there is one.
    #[inline]
    pub fn render(
        &self,
        row: &Row<'_>,
        transaction: &Transaction,
        topics: &Topics,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        self.render_as(Emission::Event, row, transaction, topics, record)
    }

    /// As `render`, for either kind of record.
    #[inline]
    pub fn render_as(
        &self,
        emission: Emission,
        row: &Row<'_>,
        transaction: &Transaction,
        topics: &Topics,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        record.clear();
        let route = match (row.op, emission) {
            (Op::Insert | Op::Update, _) => Some(&self.upsert),
            (Op::Delete, Emission::Event) => self.delete_event.as_ref(),
            (Op::Delete, Emission::Tombstone) => self.tombstone.as_ref(),
        };
        let not_handled = || Problem(DELETE_NOT_HANDLED.to_owned());
        match route.ok_or_else(not_handled)? {
            Ok(route) => route.render(row, transaction, topics, record),
            Err(problem) => {
                self.render_key(row, record);
                Err(problem.clone())
            }
        }
    }

    /// Why the route does not fit its table, if so.
    pub fn problem(&self) -> Option<&Problem> {
        let deletes = [&self.delete_event, &self.tombstone].into_iter().flatten();
        let route = std::iter::once(&self.upsert).chain(deletes).find_map(|route| route.as_ref().err());
        route.or(self.filter.as_ref().err())
    }
}

/// The problem of a deleted row whose route does not decide on deletes.
pub const DELETE_NOT_HANDLED: &str =
    "the row was deleted, and no route emits that unless it says how (`deletes`)";

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
        for header in &self.headers {
            if header.value.write(row, &mut record.header_values)? {
                record.headers.push(HeaderSpan { name: header.name, end: record.header_values.len() });
            }
        }
        let destination = match &self.target {
            Target::Fixed(destination) => *destination,
            Target::ByRow(template) => {
                template.require("topic", row, &mut record.topic)?;
                let index = topics.index(&record.topic).ok_or_else(|| {
                    Problem(format!("`{}` is not one of [[topics]]", String::from_utf8_lossy(&record.topic)))
                })?;
                Destination::Topic(index)
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

/// The id by position, for tables without a version. A slot may begin at a commit, so ids of its snapshot are marked.
fn fallback_id(transaction: &Transaction, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let mark = if transaction.existing { "r" } else { "" };
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{}/{}/{mark}{}", transaction.cluster, transaction.commit_lsn, transaction.rows);
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "route/changes_tests.rs"]
mod changes_tests;
