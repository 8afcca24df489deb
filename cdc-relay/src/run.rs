//! `cdc-relay run`: the wiring on one page.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::acks::Acks;
use crate::config::RunConfig;
use crate::metrics::{Metrics, SourceMetrics};
use crate::rabbit::Rabbit;
use crate::routes::{Routes, Source};
use crate::source::{self, Wiring};
use crate::status::Status;
use crate::{http, lag};

/// How long the sources have to flush before the process ends anyway.
const GRACE: Duration = Duration::from_secs(12);

/// Checks everything that can be wrong without connecting.
pub fn routes(config: &RunConfig) -> Result<Routes> {
    let mut routes = Routes::read(&config.routes)?;
    if let Some(name) = &config.source {
        anyhow::ensure!(routes.source(name).is_some(), "--source: there is no source `{name}`");
        routes.sources.retain(|source| source.name.get_ref() == name);
    }
    for source in &routes.sources {
        database(source)?;
        anyhow::ensure!(
            config.amqp_url.is_some() || queues(source).is_empty(),
            "AMQP_URL is not set, and source {} has routes to a queue",
            source.name.get_ref()
        );
    }
    Ok(routes)
}

fn database(source: &Source) -> Result<tokio_postgres::Config> {
    source.url.get_ref().parse().with_context(|| format!("`url` of source {}", source.name.get_ref()))
}

fn queues(source: &Source) -> Vec<&String> {
    let routes = source.tables.iter().flat_map(|table| &table.routes);
    routes.filter_map(|route| route.queue.as_ref().map(|queue| queue.get_ref())).collect()
}

/// Streams all sources until `shutdown`, then flushes and confirms.
pub async fn run(
    config: RunConfig,
    routes: Routes,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<()> {
    let metrics = Metrics::new()?;
    let routes = Arc::new(routes);
    let (mut statuses, mut stops, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for source in &routes.sources {
        let series = metrics.source(source.name.get_ref())?;
        series.in_flight_limit.set(routes.relay.in_flight_bytes as i64);
        let status = Status::new(source.name.get_ref(), series.clone());
        let acks = Arc::new(Acks::new()?);
        let database = database(source)?;
        tokio::spawn(lag::watch(
            database.clone(),
            source.slot.get_ref().clone(),
            series.clone(),
            shutdown.child_token(),
        ));
        let wiring = Wiring {
            routes: Arc::clone(&routes),
            source: Arc::new(source.clone()),
            config: database,
            kafka_brokers: config.kafka_brokers.clone(),
            rabbit: rabbit(&config, &routes, source, &acks, &series),
            acks: Arc::clone(&acks),
            metrics: series,
            status: status.clone(),
            runtime: Handle::current(),
        };
        let thread = std::thread::Builder::new().name(format!("source {}", source.name.get_ref()));
        let (done, ended) = tokio::sync::oneshot::channel();
        thread.spawn(move || {
            source::run(wiring);
            // The receiver is gone only when the process ends anyway.
            let _ = done.send(());
        })?;
        statuses.push(status);
        stops.push(acks);
        threads.push(ended);
    }
    let admin = tokio::spawn(http::serve(listener, metrics, statuses, shutdown.clone().cancelled_owned()));
    shutdown.cancelled().await;
    stops.iter().for_each(|acks| acks.stop());
    for ended in threads {
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("a source did not end in time; what it has not confirmed is told again");
        }
    }
    admin.abort();
    Ok(())
}

/// A connection of its own per source, and only where a route leads to a queue.
fn rabbit(
    config: &RunConfig,
    routes: &Routes,
    source: &Source,
    acks: &Arc<Acks>,
    series: &SourceMetrics,
) -> Option<Arc<Rabbit>> {
    let uri = config.amqp_url.as_ref()?;
    if queues(source).is_empty() {
        return None;
    }
    let names: Vec<String> = routes.queues.iter().map(|queue| queue.name.get_ref().clone()).collect();
    Some(Arc::new(Rabbit::start(&Handle::current(), uri, &names, acks, series)))
}
