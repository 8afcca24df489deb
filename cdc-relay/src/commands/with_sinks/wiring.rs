//! Wires the sources to their sinks, and streams all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use brokers::Brokers;
use futures_util::stream::{FuturesUnordered, StreamExt};
use listener::operators::Name;
use listener::{Audience, Operators, Socket};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::refusal::Refusal;
use crate::commands::arguments::{AmqpArgs, RoutesArgs};
use crate::commands::outcome::Failure;
use crate::observe::http;
use crate::observe::lag;
use crate::observe::metrics::{Metrics, SourceMetrics};
use crate::observe::status::Status;
use crate::postgres::connection_url::Database;
use crate::postgres::session::Session;
use crate::routes::{Routes, Source};
use crate::sinks::acks::Acks;
use crate::sinks::rabbit::Rabbit;
use crate::source::context::SourceContext;
use crate::source::guard;
use crate::source::published;
use crate::source::worker;

/// The addresses of the sinks.
#[derive(Clone, Copy)]
pub struct SinkClients<'a> {
    pub kafka: &'a Brokers,
    pub amqp: &'a AmqpArgs,
}

/// The admin listener.
pub struct Admin {
    pub socket: Socket,
    /// Names by which operators may call it, besides those of the loopback.
    pub hosts: Vec<Name>,
}

/// How long the sources have to flush before the process ends anyway.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// Reads the routes file, and checks everything that needs no connection.
pub fn routes(routes: &RoutesArgs, amqp: &AmqpArgs) -> Result<Routes, Failure> {
    let routes = routes.read()?;
    for source in &routes.sources {
        database(source).map_err(Failure::Usage)?;
        if amqp.amqp_url.is_none() && !queues(source).is_empty() {
            let source = source.name.get_ref();
            let problem = format!("AMQP_URL is not set, and source {source} has routes to a queue");
            return Err(Failure::usage(problem));
        }
    }
    Ok(routes)
}

pub fn database(source: &Source) -> Result<Database> {
    source.url.get_ref().parse().with_context(|| format!("`url` of source {}", source.name.get_ref()))
}

/// The routes and the one source of a command, with the tables that its patterns match now.
pub fn resolved(routes: &Routes, source: &Source) -> Result<(Routes, Source)> {
    if !source.has_patterns() {
        return Ok((routes.clone(), source.clone()));
    }
    let mut session = Session::connect_to_read(&database(source)?)?;
    let selected = published::ask(&mut session, source)?;
    let routes = selected.resolve(routes, source, &BTreeSet::new()).map_err(Refusal::Contract)?;
    let source = routes.source(source.name.get_ref()).unwrap_or(source).clone();
    Ok((routes, source))
}

/// The queues that the source's routes lead to.
pub fn queues(source: &Source) -> Vec<&String> {
    let routes = source.entries().flat_map(|table| &table.routes);
    routes.filter_map(|route| route.queue.as_ref().map(|queue| queue.get_ref())).collect()
}

/// Streams all sources until `shutdown`, then flushes and confirms.
pub async fn run(
    sinks: &SinkClients<'_>,
    routes: Routes,
    admin: Admin,
    shutdown: CancellationToken,
) -> Result<()> {
    let metrics = Metrics::new()?;
    let routes = Arc::new(routes);
    let (mut statuses, mut stops, mut threads) = (Vec::new(), Vec::new(), FuturesUnordered::new());
    for source in &routes.sources {
        let context = context(sinks, &metrics, &routes, source)?;
        tokio::spawn(lag::watch(
            context.database.clone(),
            source.slot.get_ref().clone(),
            context.metrics.clone(),
            shutdown.child_token(),
        ));
        tokio::spawn(guard::watch(context.clone(), shutdown.child_token()));
        statuses.push(context.status.clone());
        stops.push(Arc::clone(&context.acks));
        let thread = std::thread::Builder::new().name(format!("source {}", source.name.get_ref()));
        let (done, ended) = tokio::sync::oneshot::channel();
        thread.spawn(move || {
            worker::run(context);
            // The receiver is gone only when the process ends anyway.
            let _ = done.send(());
        })?;
        // The sender is gone: the thread panicked.
        threads.push(async move { ended.await.map_err(|_| source.name.get_ref()) });
    }
    let Admin { socket, hosts: admin_hosts } = admin;
    let audience = Audience::operators(Operators { admin_hosts, ..Operators::default() });
    let admin = tokio::spawn(http::serve(socket, metrics, statuses, audience, shutdown.clone()));
    // A source ends only when it is stopped. If one ends before, its thread panicked, and the process has to end too.
    let mut broken = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(Err(source)) = threads.next() => Some(source),
    };
    stops.iter().for_each(|acks| acks.stop());
    let rest = async {
        while let Some(ended) = threads.next().await {
            broken = broken.or(ended.err());
        }
    };
    if tokio::time::timeout(STOP_TIMEOUT, rest).await.is_err() {
        tracing::warn!(
            "a source did not end in time; the next start emits its unconfirmed transactions again"
        );
    }
    admin.abort();
    broken.map_or(Ok(()), |source| Err(anyhow!("the thread of source {source} panicked")))
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
