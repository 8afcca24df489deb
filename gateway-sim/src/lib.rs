//! A stand-in for an external payment gateway.
//!
//! It charges, declines and misbehaves as the client number asks ([`script`]), charges once per idempotency
//! key, and keeps a ledger that survives being killed ([`ledger`]): the other side of every reconciliation.

pub mod config;
pub mod http;
pub mod ledger;
pub mod metrics;
pub mod record;
pub mod script;
pub mod serve;

use std::sync::{Arc, RwLock};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// Serves on `listener` until `shutdown`.
///
/// # Errors
/// The ledger cannot be opened, is damaged, or is in use.
pub async fn run(config: Config, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ledger = ledger::Ledger::open(&config.ledger_path)?;
    let gateway = http::Gateway {
        ledger,
        metrics: metrics::Metrics::new()?,
        script: RwLock::new(config.script),
        seed: config.seed,
        latency: config.latency_ms,
        hang: config.hang_ms,
        shutdown: shutdown.clone(),
    };
    let counts = gateway.ledger.counts();
    tracing::info!(address = %listener.local_addr()?, charges = counts.charges, "gateway-sim is up");
    serve::serve(listener, http::routes(Arc::new(gateway)), shutdown).await;
    Ok(())
}
