//! fraud: raises an alert when a user pays unusually often or unusually much.
//!
//! * Windows are over event time, and are read from the table of payments that were seen. So a restart forgets nothing,
//!   and the same payments raise the same alerts in whatever order they are read, and however often.
//! * An alert is a row, and the relay emits it to FraudAlertTopic. Its id is rule and payment: a replay raises none
//!   anew.

pub mod config;
pub mod events;
pub mod http;
pub mod metrics;
pub mod saga;
pub mod store;

use ::saga::{CancellationToken, consumer, contract, http as edge, postgres, process};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::events::Detector;
use crate::metrics::Metrics;

const SERVICE: &str = "fraud";

/// Consumes payments, and serves operators on `admin`, until `shutdown`.
///
/// # Errors
/// When the listener or the consumer fails, or when a configured address cannot be used.
pub async fn run(config: Config, admin: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::register()?;
    let pool = postgres::pool(&config.database_url, config.pool_size, SERVICE)?;
    let subscription = config.consumer.subscription(SERVICE, &[contract::PAYMENT_TOPIC]);
    let detector = Detector { pool: pool.clone(), rules: config.rules, metrics: metrics.clone() };
    let consumer = consumer::run(subscription, detector, metrics.consumer.clone(), shutdown.clone());
    let routes = http::admin(pool, &metrics, shutdown.clone());
    let (admin, operators) = (config.tls.socket(admin), edge::Audience::operators(config.operators));
    let admin = edge::serve(admin, routes, operators, shutdown.clone());

    tracing::info!("ready to serve");
    process::all(shutdown, [Box::pin(consumer), Box::pin(admin)]).await
}
