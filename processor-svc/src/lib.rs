//! processor-svc: charges authorized payments at the gateway, once each.
//!
//! * A work message becomes a row `calling`, the intent, which is committed before any call ([`jobs`]).
//! * The gateway is called concurrently ([`calls`]). Outcomes are committed in batches ([`outcomes`]).
//! * While the gateway fails for a service, no calls are made for that service. While the gateway cannot be reached,
//!   messages stay in the queue ([`breaker`]).
//! * No user and no service takes all permits ([`shares`]).
//! * Charges that a crash or a silent gateway left open are found by age and inquired about ([`sweep`]).
//! * A request to cancel ends a charge that was never called, and comes too late for others ([`events`]).
//! * Operators apply parked messages again, and resolve charges that nobody else can ([`operators`]).
//! * After a restore the database is closed until [`recovery`] has made the lost charges again.
//! * One table decides every transition ([`saga`]). The rows are the only state that counts.

pub mod backoff;
pub mod breaker;
pub mod calls;
pub mod cause;
pub mod charge;
pub mod config;
pub mod due_queue;
pub mod ended_cache;
pub mod events;
pub mod failpoints;
pub mod gateway;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod operators;
pub mod outcomes;
pub mod recovery;
pub mod retry;
pub mod saga;
pub mod shares;
pub mod store;
pub mod sweep;
pub mod work;

use std::sync::Arc;
use std::time::Duration;

use ::saga::parked::open::OpenMessages;
use ::saga::process::after_grace;
use ::saga::{CancellationToken, consumer, contract, http as edge, postgres};
use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::breaker::Breaker;
use crate::calls::{Calls, Report};
pub use crate::config::Config;
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::events::Cancels;
use crate::gateway::Gateway;
use crate::http::Hooks;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::operators::Operators;
use crate::outcomes::Outcomes;
use crate::shares::Shares;
use crate::store::Store;
use crate::sweep::Sweep;

const SERVICE: &str = "processor-svc";
/// How long calls may take to end after shutdown began. The leases bring up the others.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long writing their outcomes may take after that.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Works until `stop` and the grace after it, then finishes the calls under way.
///
/// # Errors
/// A listener or the consumer failed, a worker panicked, or a configured address cannot be used.
pub async fn run(
    config: Config,
    public: TcpListener,
    admin: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let audience = edge::Audience::operators(config.operators.clone());
    let (public, admin) = (config.tls.socket(public), config.tls.socket(admin));
    let metrics = Metrics::new()?;
    let pool = postgres::guarded_pool(&config.database_url, config.pool_size, SERVICE)?;
    let shutdown = after_grace(stop.clone(), Duration::from_millis(config.drain_ms));
    let parked = OpenMessages::register(pool.clone(), &metrics.registry)?;
    let store = Store::new(pool, config.lease());
    store.register(&metrics.registry)?;
    let (reports, reported) = mpsc::unbounded_channel();
    // Work under way outlives the shutdown signal; these end it.
    let (drained, abandon) = (CancellationToken::new(), CancellationToken::new());
    let (jobs, sweep, outcomes) = wire(&config, &metrics, &store, reports, &shutdown, &abandon)?;
    let hooks = hooks(&config, &outcomes);
    let operators = Operators { cancels: cancels(&outcomes), queue: config.queue.clone() };
    let subscription = config.consumer.subscription(SERVICE, &[contract::PAYMENT_TOPIC]);
    let cancels = consumer::run(subscription, cancels(&outcomes), metrics.consumer.clone(), shutdown.clone());
    let calls = jobs.calls.tasks.clone();
    let writer = spawn(outcomes.run(reported, drained.clone()), &shutdown);
    let workers = [
        spawn(jobs.run(shutdown.clone()), &shutdown),
        spawn(sweep.run(shutdown.clone()), &shutdown),
        spawn(parked.watch(shutdown.clone()), &shutdown),
    ];
    let served = tokio::try_join!(
        edge::serve(public, http::public(SERVICE, hooks), edge::Audience::Anyone, shutdown.clone()),
        edge::serve(
            admin,
            http::admin(SERVICE, store, &operators, metrics.registry.clone(), stop),
            audience,
            shutdown.clone()
        ),
        cancels,
    );
    // The end of one of these ends everything else, in the order in which work flows.
    shutdown.cancel();
    for worker in workers {
        worker.await.context("a worker panicked; the panic is logged above")?;
    }
    calls.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, calls.wait()).await.is_err() {
        tracing::warn!(
            left = calls.len(),
            "calls are still under way at the end of the drain; their leases lapse, and another process inquires about them"
        );
    }
    drained.cancel();
    let mut writer = writer;
    if let Ok(written) = tokio::time::timeout(WRITE_TIMEOUT, &mut writer).await {
        written.context("the writer of outcomes panicked; the panic is logged above")?;
    } else {
        abandon.cancel();
        writer.await.context("the writer of outcomes panicked; the panic is logged above")?;
    }
    served.map(|_| tracing::info!("stopped"))
}

/// Spawns a task whose end, even by a panic, ends the service, so that it is restarted.
fn spawn(work: impl Future<Output = ()> + Send + 'static, shutdown: &CancellationToken) -> JoinHandle<()> {
    let guard = shutdown.clone().drop_guard();
    tokio::spawn(async move {
        work.await;
        drop(guard);
    })
}

fn gateway(config: &Config, idle_max: usize) -> anyhow::Result<Gateway> {
    let (url, idempotent) = (&config.gateway_url, config.gateway_idempotent);
    Gateway::new(url, config.connect_ms, config.call_ms, idle_max, idempotent)
}

fn hooks(config: &Config, outcomes: &Outcomes) -> Option<Hooks> {
    let secrets = config.webhook_secret.clone()?;
    let (store, due_queue) = (outcomes.store.clone(), outcomes.due_queue.clone());
    Some(Hooks { secrets, store, due_queue, metrics: outcomes.metrics.clone() })
}

/// Requests to cancel end charges too, so they share the cache and the queue of the outcome writer.
fn cancels(outcomes: &Outcomes) -> Cancels {
    Cancels {
        store: outcomes.store.clone(),
        ended_cache: outcomes.ended_cache.clone(),
        due_queue: outcomes.due_queue.clone(),
        metrics: outcomes.metrics.clone(),
    }
}

/// Builds the workers: the consumer of work, the sweeper, and the writer of outcomes.
fn wire(
    config: &Config,
    metrics: &Metrics,
    store: &Store,
    reports: mpsc::UnboundedSender<Report>,
    shutdown: &CancellationToken,
    abandon: &CancellationToken,
) -> anyhow::Result<(Jobs, Sweep, Outcomes)> {
    let ended_cache =
        EndedCache::new(&config.redis_url, config.redis_ttl_s, metrics.clone(), shutdown.clone())?;
    let idle_max = config.calls_max + config.inquiries_max;
    let calls = Calls {
        gateway: gateway(config, idle_max)?,
        reports,
        tasks: TaskTracker::new(),
        lease: config.lease(),
        call_max: config.call_ms,
        breaker: Breaker::new(config.breaker(), metrics.gateway.breaker_state.clone()),
        metrics: metrics.clone(),
    };
    let due_queue = DueQueue::new(sweep::DUE_QUEUE_MAX);
    let jobs = Jobs {
        url: config.amqp_url.clone(),
        queue: config.queue.clone(),
        prefetch: config.prefetch,
        store: store.clone(),
        ended_cache: ended_cache.clone(),
        calls: calls.clone(),
        permits: Arc::new(Semaphore::new(config.calls_max)),
        shares: Shares::new(config.shares(config.calls_max)),
        due_queue: due_queue.clone(),
        metrics: metrics.clone(),
    };
    let sweep = Sweep {
        store: store.clone(),
        calls: calls.clone(),
        due_queue: due_queue.clone(),
        ended_cache: ended_cache.clone(),
        permits: Arc::new(Semaphore::new(config.inquiries_max)),
        shares: Shares::new(config.shares(config.inquiries_max)),
        scan_interval: config.lease() / 3,
        claim: config.lease(),
        visibility: config.visibility_ms,
        metrics: metrics.clone(),
    };
    let outcomes = Outcomes {
        store: store.clone(),
        calls,
        due_queue,
        ended_cache,
        inquiries: config.inquiries(),
        resends: config.resends(),
        metrics: metrics.clone(),
        stopping: shutdown.clone(),
        abandon: abandon.clone(),
    };
    Ok((jobs, sweep, outcomes))
}
