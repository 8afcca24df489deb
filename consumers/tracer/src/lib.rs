//! tracer: a trace of each payment, made from its events.
//!
//! * Every event carries the payment's `traceparent` and says when its transaction began and was committed. That is all that a
//!   trace needs, so no service and no relay makes spans: tracing costs the payments nothing, on or off.
//! * A trace is sent when its payment has ended and all of its events are here, or after a while as it is then.
//! * While the collector is away traces wait, up to a limit; then the topics are not read on, and are caught up with later.
//! * Traces are no ledger: those under way in an instance that is killed are lost.

pub mod config;
pub mod events;
pub mod metrics;
pub mod pending;
pub mod saga;
pub mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::saga::http::{self as edge, Ready};
use ::saga::{CancellationToken, backoff, consumer, process};
use anyhow::Result;
use futures_util::FutureExt;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::events::Gatherer;
use crate::metrics::Metrics;
use crate::pending::{Pending, Trace};
use crate::store::{Outcome, Store};

const SERVICE: &str = "tracer";
/// Between two looks at what is finished, while there is something.
const EXPORT_INTERVAL: Duration = Duration::from_millis(500);
/// Traces of one request.
const TRACES_MAX: usize = 500;
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Gathers events and sends traces, and serves operators on `admin`, until `stop`.
///
/// # Errors
/// When the listener or the consumer fails, or when a configured address cannot be used.
pub async fn run(config: Config, admin: TcpListener, stop: CancellationToken) -> Result<()> {
    let metrics = Metrics::register()?;
    let store = Store::new(&config.endpoint)?;
    let pending = Arc::new(Pending::new(metrics.pending.clone()));
    let gatherer = Gatherer { pending: pending.clone(), sampler: config.sampler, age_max: config.age_max() };
    let consuming = consumer::run(config.subscription(), gatherer, metrics.consumer.clone(), stop.clone());
    let ready: Ready = Arc::new(|| async { Ok(()) }.boxed());
    let routes = edge::admin(SERVICE, metrics.registry.clone(), ready, stop.clone());
    let operators = edge::Audience::operators(config.operators.clone());
    let admin = edge::serve(config.tls.socket(admin), routes, operators, stop.clone());
    let shutdown = stop.clone();
    let exporting = async move {
        export(&pending, &store, &metrics, &shutdown).await;
        Ok(())
    };
    tracing::info!("ready to trace");
    process::all(stop, [Box::pin(consuming), Box::pin(exporting), Box::pin(admin)]).await
}

/// Sends what is finished until `stop`, and then once what is there.
async fn export(pending: &Pending, store: &Store, metrics: &Metrics, stop: &CancellationToken) {
    while stop.run_until_cancelled(pending.wait_for_any(EXPORT_INTERVAL)).await.is_some() {
        loop {
            let finished = pending.take_finished(Instant::now(), TRACES_MAX);
            if finished.is_empty() {
                break;
            }
            if stop.run_until_cancelled(send(store, metrics, stop, &finished)).await.is_none() {
                return;
            }
        }
    }
    let left = pending.take_all();
    if let Err(error) = store.send(&left).await {
        tracing::warn!(traces = left.len(), error = format!("{error:#}"), "traces are lost at the end");
    }
}

/// Tries until the collector has them, or refuses them, or `stop`.
async fn send(store: &Store, metrics: &Metrics, stop: &CancellationToken, traces: &[Trace]) {
    let sent = backoff::until_done(PAUSE_MAX, stop, "the collector has no traces yet", || store.send(traces));
    let Some(outcome) = sent.await else { return };
    let count = u64::try_from(traces.len()).unwrap_or_default();
    metrics.traces.with_label_values(&[outcome.as_str()]).inc_by(count);
    if outcome == Outcome::Refused {
        tracing::warn!(traces = count, "the collector refuses traces; they are dropped");
    }
}
