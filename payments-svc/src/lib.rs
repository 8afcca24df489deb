//! payments-svc: accepts payments, keeps their state, and reports it to clients.
//!
//! * `POST /payments` commits a payment `initiated`. That committed row is the acceptance, and it needs nothing but
//!   this service's own database.
//! * `balance.held` and `balance.rejected` make a payment `authorized` or `rejected`. `balance.captured` and
//!   `balance.released` end it.
//! * `payment.result.unknown` is recorded. It is never taken for a failure.
//! * A restored database is closed until `payments-svc recover` has made the lost payments again ([`recovery`]).
//! * Searches are answered from the read model, and fail without it; nothing else needs it.

pub mod accept;
pub mod command;
pub mod config;
pub mod events;
pub mod http;
pub mod metrics;
pub mod reader;
pub mod recovery;
pub mod render;
pub mod request;
pub mod saga;
pub mod search;
pub mod shedding;
pub mod store;
pub mod unsettled;
pub mod waiters;

use std::time::Duration;

use ::saga::identity::Identity;
use ::saga::parked::open::OpenMessages;
use ::saga::process::{self, after_grace};
use ::saga::rate_limit::RateLimit;
use ::saga::shards::Router;
use ::saga::{CancellationToken, consumer, contract, http as edge};
use tokio::net::TcpListener;

use crate::accept::Acceptor;
use crate::config::Config;
use crate::events::Payments;
use crate::http::PublicContext;
use crate::metrics::Metrics;
use crate::reader::Reader;
use crate::search::Search;
use crate::shedding::Shedding;
use crate::unsettled::Unsettled;
use crate::waiters::Waiters;

const SERVICE: &str = "payments-svc";

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
    let ttl = Duration::from_secs(u64::from(config.payment_ttl_seconds));
    let hold_delay_max = Duration::from_secs(u64::from(config.hold_delay_max_seconds));
    let shedding = Shedding::start(hold_delay_max, router.clone(), metrics.clone());
    let acceptor = Acceptor::start(router.clone(), ttl, shedding, metrics.clone());
    let topics = [contract::BALANCE_TOPIC, contract::PAYMENT_RESULT_TOPIC];
    let subscription = config.consumer.subscription(SERVICE, &topics);
    let waiters = Waiters::start(
        subscription.brokers.clone(),
        subscription.group_id.clone(),
        config.consumer.topic(contract::PAYMENT_TOPIC),
        metrics.waiting.clone(),
        shutdown.clone(),
    )?;
    let clients = PublicContext {
        router: router.clone(),
        acceptor,
        reader: Reader::start(router.clone()),
        waiters,
        search: Search::new(&config.search)?,
        metrics: metrics.clone(),
        leaving: stop.clone(),
    };
    let (public, admin) = (config.tls.socket(public), config.tls.socket(admin));
    let pages = edge::Audience::public(config.origins);
    let public = edge::serve(public, http::public(clients, &identity, &rate), pages, shutdown.clone());
    let payments = Payments::new(router.clone(), &metrics);
    let admin =
        edge::serve(admin, http::admin(&router, &payments, &metrics, stop), operators, shutdown.clone());

    let consumer = consumer::run(subscription, payments, metrics.consumer.clone(), shutdown.clone());
    let parked = OpenMessages::register(&router, &metrics.registry)?.watch(shutdown.clone());
    let unsettled = Unsettled::new(router, metrics.settling).watch(shutdown.clone());
    let watch = async {
        tokio::join!(parked, unsettled);
        Ok(())
    };

    tracing::info!("ready to serve");
    process::all(shutdown, [Box::pin(consumer), Box::pin(public), Box::pin(admin), Box::pin(watch)]).await
}
