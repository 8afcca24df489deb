//! balance-svc: holds money for a payment, then captures or releases the hold.
//!
//! * `payment.initiated` becomes a ledger entry `hold`, or `rejection` with a reason.
//! * `payment.result.*` becomes a ledger entry `capture` or `release`. An unknown result moves nothing.
//! * A balance changes only by a ledger entry that was inserted in the same statement.
//! * Each entry that moves money has a number and the balances after it: the user's statement.
//! * After a restore the database is closed until [`recovery`] has made the lost entries again.

pub mod account;
pub mod command;
pub mod config;
pub mod events;
pub mod http;
pub mod metrics;
pub mod recovery;
pub mod render;
pub mod saga;
pub mod store;

use std::time::Duration;

use ::saga::identity::Identity;
use ::saga::parked::open::OpenMessages;
use ::saga::process::{self, after_grace};
use ::saga::rate_limit::RateLimit;
use ::saga::shards::Router;
use ::saga::weight::Weight;
use ::saga::{CancellationToken, consumer, contract, http as edge};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::events::Ledger;
use crate::metrics::Metrics;

const SERVICE: &str = "balance-svc";

/// Serves requests on `public` and `admin` and consumes events, until `stop` and the grace after it.
///
/// # Errors
/// When a listener or the consumer fails, or when a configured address cannot be used.
pub async fn run(
    config: Config,
    public: TcpListener,
    admin: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let operators = edge::Audience::operators(config.operators);
    let metrics = Metrics::register()?;
    let identity = Identity::start(config.identity, &metrics.registry)?;
    let rate = RateLimit::start(config.rate_limit, &metrics.registry)?;
    let router = Router::of_service(&config.database, SERVICE)?;
    router.register(&metrics.registry)?;
    let shutdown = after_grace(stop.clone(), Duration::from_millis(config.drain_ms));

    let topics = [contract::PAYMENT_TOPIC, contract::PAYMENT_RESULT_TOPIC];
    let subscription = config.consumer.subscription(SERVICE, &topics);
    let ledger = Ledger::new(router.clone(), &metrics);
    let consumer = consumer::run(subscription, ledger.clone(), metrics.consumer.clone(), shutdown.clone());

    let parked = OpenMessages::register(&router, &metrics.registry)?.watch(shutdown.clone());
    let watch = async {
        parked.await;
        Ok(())
    };

    let (public_socket, admin) = (config.tls.socket(public), config.tls.socket(admin));
    let pages = edge::Audience::public(config.origins);
    let weight = Weight::register(&metrics.registry)?;
    let public = http::public(router.clone(), &identity, &rate, &weight);
    let public = edge::serve(public_socket, public, pages, shutdown.clone());
    let admin = edge::serve(admin, http::admin(router, &ledger, &metrics, stop), operators, shutdown.clone());

    tracing::info!("ready to serve");
    process::all(shutdown, [Box::pin(consumer), Box::pin(public), Box::pin(admin), Box::pin(watch)]).await
}
