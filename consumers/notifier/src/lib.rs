//! notifier: sends an e-mail to the user and a signed webhook to each endpoint when a payment has ended.
//!
//! * There is one row per terminal payment and channel, inserted with the batch of its events. Rows are the work list.
//! * A delivery is made at least once, under the same `Message-ID` or `webhook-id` each time.
//! * Instances share the work: each claims due rows under a lease, and takes over what another left behind.
//! * A webhook goes to a public address only (the crate `webhook`).

pub mod config;
pub mod dispatch;
pub mod events;
pub mod http;
pub mod metrics;
pub mod render;
pub mod saga;
pub mod store;

use std::sync::Arc;

use ::saga::{CancellationToken, consumer, contract, http as edge, postgres, process};
use mailer::Mailer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use webhook::WebhookClient;

use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::events::Intake;
use crate::http::Context;
use crate::metrics::Metrics;

const SERVICE: &str = "notifier";

/// Serves operators on `admin`, consumes events and delivers notifications, until `shutdown`.
///
/// # Errors
/// When the listener or the consumer fails, or when a configured address cannot be used.
pub async fn run(config: Config, admin: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::register()?;
    let pool = postgres::pool(&config.database_url, config.pool_size, SERVICE)?;
    let (webhooks, due) = (WebhookClient::new(config.webhook_allow)?, Arc::new(Notify::new()));
    let dispatcher = Arc::new(Dispatcher {
        pool: pool.clone(),
        webhooks: webhooks.clone(),
        mailer: config.smtp_url.map(|url| Mailer::new(&url, config.mail_from)).transpose()?,
        limits: config.limits,
        due: due.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    let subscription = config.consumer.subscription(SERVICE, &[contract::PAYMENT_TOPIC]);
    let intake = Intake { pool: pool.clone(), due: due.clone() };
    let consumer = consumer::run(subscription, intake, metrics.consumer.clone(), shutdown.clone());
    let deliveries = dispatcher.run();
    let routes = http::admin(Context { pool, due, webhooks }, &metrics, shutdown.clone());
    let (admin, operators) = (config.tls.socket(admin), edge::Audience::operators(config.operators));
    let admin = edge::serve(admin, routes, operators, shutdown.clone());

    tracing::info!("ready to serve");
    process::all(shutdown, [Box::pin(consumer), Box::pin(deliveries), Box::pin(admin)]).await
}
