//! gateway-sim: simulates an external payment gateway.
//!
//! * Directives in the client number make it charge, decline and misbehave ([`script`]).
//! * It charges once per idempotency key, unless it is configured to ignore keys.
//! * Its ledger survives a kill ([`ledger`]), so that others can be reconciled with it.

pub mod charge;
pub mod config;
pub mod foreign;
pub mod gateway;
pub mod hooks;
pub mod http;
pub mod inquiry;
pub mod ledger;
pub mod metrics;
pub mod mix;
pub mod outage;
pub mod planned;
pub mod problem;
pub mod record;
pub mod script;
pub mod serve;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// Serves on `listener` until `shutdown`.
///
/// # Errors
/// When the ledger cannot be opened, is damaged, or is in use; or when the webhook secret is malformed.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let audience = listener::Audience::operators(config.operators);
    let metrics = metrics::Metrics::new()?;
    let target = config.webhooks.target.map(|(url, secret)| hooks::Target::new(url, &secret)).transpose()?;
    let (hooks, deliveries) = hooks::Hooks::new(target, metrics.clone(), config.seed, shutdown.clone())?;
    let gateway = gateway::Gateway {
        ledger: ledger::Ledger::open(&config.ledger_path, config.seed)?,
        metrics,
        hooks,
        planned_faults: planned::PlannedFaults::default(),
        recent: planned::Recent::default(),
        mix: RwLock::new(config.script),
        outage: RwLock::new(None),
        ignores_keys: AtomicBool::new(config.idempotency == config::Idempotency::Ignored),
        seed: config.seed,
        latency: config.latency_ms,
        hang: config.hang_ms,
        shutdown: shutdown.clone(),
    };
    let counts = gateway.ledger.counts();
    tracing::info!(address = %listener.local_addr()?, charges = counts.charges, "gateway-sim is up");
    let socket = config.tls.socket(listener);
    tokio::join!(serve::serve(socket, http::routes(Arc::new(gateway)), audience, shutdown), deliveries);
    Ok(())
}
