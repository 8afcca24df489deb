//! search-indexer: projects PaymentTopic and ServiceTopic into the search index, from which payments-svc answers searches.
//!
//! * It only reads Kafka and only writes the index. Both may be away: it waits, and catches up.
//! * Instances share the partitions. What one has not committed, another repeats; repeating it changes nothing.
//! * The index that the alias leads to is the one to fill. When the alias leads to another one, as after [`rebuild`], every
//!   instance goes on with that one, in its group.

pub mod config;
pub mod events;
pub mod metrics;
pub mod rebuild;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt;
use saga::consumer;
use saga::http::{self as edge, Ready};
use saga::search_index::Index;
use saga::{CancellationToken, backoff, process};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::events::Indexer;
use crate::metrics::Metrics;
use crate::store::Store;

const SERVICE: &str = "search-indexer";
/// How often the alias is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(3);
/// Longest pause between two tries to find or make the index.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Fills the index behind the alias and serves `admin`, until `stop`.
///
/// # Errors
/// When the listener or the consumer fails, or when a configured address cannot be used.
pub async fn run(config: Config, admin: TcpListener, stop: CancellationToken) -> Result<()> {
    let operators = edge::Audience::operators(config.operators.clone());
    let metrics = Metrics::register()?;
    let store = Store::new(&config.search)?;
    let (asked, registry) = (store.clone(), metrics.registry.clone());
    let ready: Ready = Arc::new(move || {
        let store = asked.clone();
        async move { reachable(&store).await }.boxed()
    });
    let routes = edge::admin(SERVICE, registry, ready, stop.clone());
    let admin = edge::serve(config.tls.socket(admin), routes, operators, stop.clone());
    let shutdown = stop.clone();
    let indexing = async move { follow_alias(&config, &store, &metrics, &shutdown).await };
    tracing::info!("ready to index");
    process::all(stop, [Box::pin(indexing), Box::pin(admin)]).await
}

async fn reachable(store: &Store) -> Result<(), String> {
    match store.live().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("There is no index yet.".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Fills one index after the other: each as long as the alias leads to it.
async fn follow_alias(
    config: &Config,
    store: &Store,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Result<()> {
    while let Some(live) = find_index(store, shutdown).await {
        tracing::info!(index = live.name, uuid = live.uuid, history = live.history, "filling this index");
        let subscription = config.subscription(&live);
        let indexer = Indexer { store: store.clone(), index: live.name.clone() };
        let stop = shutdown.child_token();
        let consuming = async {
            let ended = consumer::run(subscription, indexer, metrics.consumer.clone(), stop.clone()).await;
            stop.cancel();
            ended
        };
        let watching = async {
            stop.run_until_cancelled(watch(store, &live)).await;
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(consuming, watching);
        ended?;
    }
    Ok(())
}

/// The index behind the alias, made if there is none. Tries until it is there; `None` after the end.
async fn find_index(store: &Store, shutdown: &CancellationToken) -> Option<Index> {
    let found = backoff::until_done(PAUSE_MAX, shutdown, "there is no index to fill", || store.ensure());
    shutdown.run_until_cancelled(found).await.flatten()
}

/// Waits until the alias leads to another index, or to none.
async fn watch(store: &Store, live: &Index) {
    loop {
        match store.live().await {
            Ok(found) if found.as_ref() == Some(live) => {}
            Ok(found) => {
                let now = found.map(|index| index.name);
                tracing::info!(
                    was = live.name,
                    now,
                    "the alias leads to another index, or the index was restored"
                );
                return;
            }
            // The index is away: what is read waits.
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the alias cannot be read"),
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
