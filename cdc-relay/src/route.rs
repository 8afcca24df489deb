//! From a row to what is told of it: pure, and into buffers that are reused.
//!
//! The routes of a table are compiled when the server announces its columns. A route that does not fit them (a
//! column is gone) stays, and says so for every row: nothing is passed over in silence.

use std::collections::BTreeMap;

use crate::body::Body;
use crate::lsn::{Lsn, PgTime};
use crate::pgoutput::Relation;
use crate::routes::{Route, Routes, Source, Table, Text};
use crate::template::{Bound, Problem, Row, Template, column};

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
    /// The commit before this one that told anything on Kafka.
    pub previous: Lsn,
    /// `ce_time`.
    pub time: Vec<u8>,
    /// Rows seen so far.
    pub rows: u64,
    /// Records told on Kafka so far.
    pub told: u64,
    /// Told once more, or from a query: no link of the chain, and without a position.
    pub retold: bool,
    /// Of rows that existed before, from a query.
    pub existing: bool,
}

/// One record, in buffers that the next one uses again.
#[derive(Debug, Default)]
pub struct Record {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub id: Vec<u8>,
    pub kind: Vec<u8>,
    pub subject: Vec<u8>,
    /// Further headers: the name's index in `Plan::header_names`, and the end of the value in `header_values`.
    pub headers: Vec<(usize, usize)>,
    pub header_values: Vec<u8>,
    topic: Vec<u8>,
}

impl Record {
    fn clear(&mut self) {
        for part in [&mut self.key, &mut self.value, &mut self.id, &mut self.kind, &mut self.subject] {
            part.clear();
        }
        self.headers.clear();
        self.header_values.clear();
        self.topic.clear();
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
    ByRow(Bound),
}

#[derive(Debug, Clone)]
struct Filter {
    index: usize,
    values: Vec<Box<[u8]>>,
}

/// A route that fits the columns of its table.
#[derive(Debug, Clone)]
struct Fitted {
    target: Target,
    key: Bound,
    id: Option<Bound>,
    kind: Bound,
    subject: Option<Bound>,
    headers: Vec<(usize, Bound)>,
    body: Body,
}

#[derive(Debug, Clone)]
pub struct Compiled {
    filters: Result<Vec<Filter>, Problem>,
    fitted: Result<Fitted, Problem>,
    /// For the dead letters of a route that does not fit.
    key: Option<Bound>,
    /// Where it leads, as the routes file says: `topic:PaymentTopic`. Halted keys are kept under it.
    pub leads_to: String,
}

/// The routes of one table, for the columns it has now.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub relation: String,
    pub columns: Vec<String>,
    pub shape: Relation,
    pub header_names: Vec<String>,
    pub routes: Vec<Compiled>,
    /// The table is published, and the routes file neither routes nor ignores it.
    pub unknown: bool,
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

impl Compiled {
    #[inline]
    pub fn matches(&self, row: &Row<'_>) -> Result<bool, Problem> {
        let filters = self.filters.as_ref().map_err(Clone::clone)?;
        for filter in filters {
            let Some(text) = row.text(filter.index)? else { return Ok(false) };
            if !filter.values.iter().any(|value| value.as_ref() == text) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills the record. After an error it holds what could be told: the key at least, if there is one.
    #[inline]
    pub fn tell(
        &self,
        row: &Row<'_>,
        transaction: &Transaction,
        topics: &Topics,
        record: &mut Record,
    ) -> Result<Destination, Problem> {
        record.clear();
        let fitted = match &self.fitted {
            Ok(fitted) => fitted,
            Err(problem) => {
                if let Some(key) = &self.key {
                    key.write(row, &mut record.key)?;
                }
                return Err(problem.clone());
            }
        };
        fitted.key.require("key", row, &mut record.key)?;
        match &fitted.id {
            Some(id) => id.require("id", row, &mut record.id)?,
            None => fallback_id(transaction, &mut record.id),
        }
        fitted.kind.require("type", row, &mut record.kind)?;
        if let Some(subject) = &fitted.subject {
            subject.require("subject", row, &mut record.subject)?;
        }
        for (name, template) in &fitted.headers {
            if template.write(row, &mut record.header_values)? {
                record.headers.push((*name, record.header_values.len()));
            }
        }
        let destination = match &fitted.target {
            Target::Fixed(destination) => *destination,
            Target::ByRow(template) => {
                template.require("topic", row, &mut record.topic)?;
                let index = topics.by_name.get(record.topic.as_slice()).ok_or_else(|| {
                    Problem(format!("`{}` is not one of [[topics]]", String::from_utf8_lossy(&record.topic)))
                })?;
                Destination::Topic(*index)
            }
        };
        fitted.body.write(row, &mut record.value)?;
        let (size, limit) = (record.size(), topics.limit(destination));
        if size > limit {
            return Err(Problem(format!("the record has {size} bytes; {limit} are allowed")));
        }
        Ok(destination)
    }

    /// Whether a template gives the id.
    pub fn has_id(&self) -> bool {
        self.fitted.as_ref().is_ok_and(|fitted| fitted.id.is_some())
    }

    /// Why the route does not fit its table, if so.
    pub fn problem(&self) -> Option<&Problem> {
        self.fitted.as_ref().err().or(self.filters.as_ref().err())
    }
}

/// For tables without a version. A slot may begin where a commit does, so what is told from its snapshot is marked.
fn fallback_id(transaction: &Transaction, out: &mut Vec<u8>) {
    let mark = if transaction.existing { "r" } else { "" };
    out.extend_from_slice(
        format!("{}/{}/{mark}{}", transaction.cluster, transaction.commit_lsn, transaction.rows).as_bytes(),
    );
}

impl Plan {
    /// Compiles the routes of `source` for a relation.
    pub fn compile(routes: &Routes, source: &Source, relation: &Relation) -> Plan {
        let same =
            |name: &str| crate::routes::qualified(name) == (relation.schema.as_str(), relation.name.as_str());
        let mut plan = Plan {
            relation: format!("{}.{}", relation.schema, relation.name),
            columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
            shape: relation.clone(),
            ..Plan::default()
        };
        match source.tables.iter().find(|table| same(table.name.get_ref())) {
            Some(table) => {
                for route in &table.routes {
                    let compiled = compile(routes, table, route, relation, &mut plan.header_names);
                    plan.routes.push(compiled);
                }
            }
            None => plan.unknown = !source.ignore.iter().any(|name| same(name.get_ref())),
        }
        plan
    }

    /// What does not fit, one line each.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.routes.iter().filter_map(Compiled::problem)
    }
}

fn compile(
    routes: &Routes,
    table: &Table,
    route: &Route,
    relation: &Relation,
    header_names: &mut Vec<String>,
) -> Compiled {
    let filter = |(name, values): (&String, &Vec<Text>)| {
        let values = values.iter().map(|value| value.get_ref().as_bytes().into()).collect();
        Ok(Filter { index: column(relation, name)?, values })
    };
    let fixed = fixed_destination(routes, route);
    let leads_to = match (&route.topic, &route.queue) {
        (Some(topic), _) => format!("topic:{}", topic.get_ref()),
        (None, Some(queue)) => format!("queue:{}", queue.get_ref()),
        (None, None) => String::new(),
    };
    Compiled {
        filters: route.when.iter().map(filter).collect(),
        fitted: fit(table, route, relation, fixed, header_names),
        key: bind(&table.key, table, relation).ok(),
        leads_to,
    }
}

fn fixed_destination(routes: &Routes, route: &Route) -> Option<Destination> {
    if let Some(queue) = &route.queue {
        return routes.queue_index(queue.get_ref()).map(Destination::Queue);
    }
    let template = Template::parse(route.topic.as_ref()?.get_ref()).ok()?;
    routes.topic_index(template.constant()?).map(Destination::Topic)
}

fn bind(text: &Text, table: &Table, relation: &Relation) -> Result<Bound, Problem> {
    Template::parse(text.get_ref()).map_err(Problem)?.bind(relation, &table.names)
}

fn fit(
    table: &Table,
    route: &Route,
    relation: &Relation,
    fixed: Option<Destination>,
    header_names: &mut Vec<String>,
) -> Result<Fitted, Problem> {
    let bind = |text: &Text| bind(text, table, relation);
    let target = match (fixed, &route.topic) {
        (Some(destination), _) => Target::Fixed(destination),
        (None, Some(topic)) => Target::ByRow(bind(topic)?),
        (None, None) => return Err(Problem("the route leads nowhere".to_owned())),
    };
    let mut headers = Vec::new();
    for (name, text) in table.headers.iter().chain(&route.headers) {
        let index = header_names.iter().position(|known| known == name).unwrap_or_else(|| {
            header_names.push(name.clone());
            header_names.len() - 1
        });
        headers.push((index, bind(text)?));
    }
    Ok(Fitted {
        target,
        key: bind(&table.key)?,
        id: table.id.as_ref().map(bind).transpose()?,
        kind: bind(&route.kind)?,
        subject: table.subject.as_ref().map(bind).transpose()?,
        headers,
        body: Body::bind(route, relation, &table.names)?,
    })
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
