//! Wires a source to its sinks.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use brokers::Brokers;
use tokio::runtime::Handle;

use crate::checkpoint::refusal::Refusal;
use crate::commands::arguments::{AmqpArgs, RoutesArgs};
use crate::commands::outcome::Failure;
use crate::commands::state_topic;
use crate::observe::metrics::{Metrics, SourceMetrics};
use crate::observe::status::Status;
use crate::postgres::connection_url::Database;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::sinks::acks::Acks;
use crate::sinks::rabbit::Rabbit;
use crate::source::context::SourceContext;
use crate::source::published;
use crate::source::succession::Membership;

/// The addresses of the sinks.
#[derive(Clone, Copy)]
pub struct SinkClients<'a> {
    pub kafka: &'a Brokers,
    pub amqp: &'a AmqpArgs,
}

/// Reads the routes file, and checks everything that needs no connection.
pub fn routes(routes: &RoutesArgs, amqp: &AmqpArgs) -> Result<Routes, Failure> {
    let routes = routes.read()?;
    check(&routes, amqp)?;
    Ok(routes)
}

/// Checks what a routes file needs besides itself, as far as that needs no connection.
pub fn check(routes: &Routes, amqp: &AmqpArgs) -> Result<(), Failure> {
    for source in &routes.sources {
        database(source).map_err(Failure::Usage)?;
        if amqp.amqp_url.is_none() && !queues(source).is_empty() {
            let source = source.name.get_ref();
            let problem = format!("AMQP_URL is not set, and source {source} has routes to a queue");
            return Err(Failure::usage(problem));
        }
    }
    Ok(())
}

pub fn database(source: &Source) -> Result<Database> {
    source.url.get_ref().parse().with_context(|| format!("`url` of source {}", source.name.get_ref()))
}

/// The database of a command that reads or changes a source: of several hosts, no connection goes to one that was the primary before
/// the checkpoint's server.
pub fn database_of_checkpoint(brokers: &Brokers, routes: &Routes, source: &Source) -> Result<Database> {
    let database = database(source)?;
    if database.host_count() > 1 {
        let checkpoint = state_topic::checkpoint(brokers, routes, source)?;
        database.keep_to(checkpoint.as_ref().map(Into::into));
    }
    Ok(database)
}

/// The routes and the one source of a command, with the tables that its patterns match now.
pub fn resolved(brokers: &Brokers, routes: &Routes, source: &Source) -> Result<(Routes, Source)> {
    if !source.has_patterns() {
        return Ok((routes.clone(), source.clone()));
    }
    let database = database_of_checkpoint(brokers, routes, source)?;
    resolved_by(&mut Session::connect_to_read(&database)?, routes, source)
}

/// As [`resolved`], by a session with the source's database.
pub fn resolved_by(session: &mut Session, routes: &Routes, source: &Source) -> Result<(Routes, Source)> {
    if !source.has_patterns() {
        return Ok((routes.clone(), source.clone()));
    }
    let selected = published::ask(session, source)?;
    let routes = selected.resolve(routes, source, &BTreeSet::new()).map_err(Refusal::Contract)?;
    let source = routes.source(source.name.get_ref()).unwrap_or(source).clone();
    Ok((routes, source))
}

/// The queues that the source's routes lead to.
pub fn queues(source: &Source) -> Vec<&String> {
    let routes = source.entries().flat_map(|table| &table.routes);
    routes.filter_map(|route| route.queue.as_ref().map(|queue| queue.get_ref())).collect()
}

/// The context of a source. Call it within a runtime.
pub fn context(
    sinks: &SinkClients<'_>,
    metrics: &Metrics,
    routes: &Arc<Routes>,
    source: &Source,
) -> Result<SourceContext> {
    let series = metrics.source(source.name.get_ref())?;
    series.sinks.in_flight_limit.set(routes.relay.in_flight_bytes as i64);
    let acks = Arc::new(Acks::new()?);
    Ok(SourceContext {
        routes: Arc::new(routes.topics_of(source)),
        source: Arc::new(source.clone()),
        database: database(source)?,
        brokers: sinks.kafka.clone(),
        rabbit: rabbit(sinks.amqp, routes, source, &acks, &series),
        acks,
        status: Status::new(source.name.get_ref(), series.clone()),
        metrics: series,
        runtime: Handle::current(),
        membership: Membership::default(),
    })
}

/// A connection of its own per source, and only where a route leads to a queue.
fn rabbit(
    amqp: &AmqpArgs,
    routes: &Routes,
    source: &Source,
    acks: &Arc<Acks>,
    series: &SourceMetrics,
) -> Option<Arc<Rabbit>> {
    let uri = amqp.amqp_url.as_ref()?;
    if queues(source).is_empty() {
        return None;
    }
    let names: Vec<String> = routes.queues.iter().map(|queue| queue.name.get_ref().clone()).collect();
    Some(Arc::new(Rabbit::start(&Handle::current(), uri, &names, acks, series)))
}
