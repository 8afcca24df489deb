//! Makes the index anew from the first event on, while searches use the old one.
//!
//! * The new index has a group of its own. It is filled until it has what the topics had a moment ago; then the alias leads
//!   to it, at one moment, and the old index is deleted.
//! * From then on the running instances fill the new one, in the same group: they go on where the rebuild has stopped, so
//!   no event is left out.
//! * A rebuild that was interrupted goes on with its index. Two at the same time share the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use saga::CancellationToken;
use saga::consumer::{self, Ends, GroupOffsets};

use crate::config::Config;
use crate::events::Indexer;
use crate::metrics::Metrics;
use crate::store::{Index, Store};

/// The new index has caught up when what came meanwhile took no longer than this to index.
const CAUGHT_UP: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Makes a new index and lets searches use it.
///
/// # Errors
/// When it was stopped before, or Kafka or the index did not answer. Searches then use the old index; another rebuild goes on.
pub async fn rebuild(config: &Config, stop: &CancellationToken) -> Result<()> {
    let (metrics, store) = (Metrics::register()?, Store::new(&config.search)?);
    let old = store.ensure().await?;
    let new = store.next(&old).await?;
    tracing::info!(old = old.name, new = new.name, "the new index is filled from the first event on");
    // The running instances have their names in the group of the old index; this one has none.
    let config = Config { group_instance_id: None, ..config.clone() };
    let subscription = config.subscription(&new.uuid);
    let offsets = Arc::new(GroupOffsets::new(&subscription)?);
    let indexer = Indexer { store: store.clone(), index: new.name.clone() };
    let done = stop.child_token();
    let consuming = async {
        let ended = consumer::run(subscription, indexer, metrics.consumer.clone(), done.clone()).await;
        done.cancel();
        ended
    };
    let switching = async {
        let switched = catch_up_and_switch(&store, &old, &new, &offsets, &done).await;
        done.cancel();
        switched
    };
    let (consumed, switched) = tokio::join!(consuming, switching);
    consumed.and(switched)
}

async fn catch_up_and_switch(
    store: &Store,
    old: &Index,
    new: &Index,
    offsets: &Arc<GroupOffsets>,
    done: &CancellationToken,
) -> Result<()> {
    loop {
        let began = Instant::now();
        let ends = Arc::new(ask(offsets, GroupOffsets::ends).await?);
        reach(offsets, &ends, done).await?;
        if began.elapsed() <= CAUGHT_UP {
            break;
        }
    }
    store.switch(old, new).await.context("searches use the old index as before")?;
    tracing::info!(old = old.name, new = new.name, "searches use the new index; the old one is deleted");
    Ok(())
}

/// Waits until the group of the new index has committed everything up to `ends`.
async fn reach(offsets: &Arc<GroupOffsets>, ends: &Arc<Ends>, done: &CancellationToken) -> Result<()> {
    let mut reported_at = Instant::now();
    loop {
        let to_reach = ends.clone();
        let behind = ask(offsets, move |offsets| offsets.behind(&to_reach)).await?;
        if behind == 0 {
            return Ok(());
        }
        if reported_at.elapsed() > Duration::from_secs(5) {
            reported_at = Instant::now();
            tracing::info!(records = behind, "still to be indexed");
        }
        tokio::select! {
            () = done.cancelled() => bail!("stopped before the new index had caught up; another rebuild goes on with it"),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Asks Kafka, on a thread that may block.
async fn ask<T: Send + 'static>(
    offsets: &Arc<GroupOffsets>,
    question: impl FnOnce(&GroupOffsets) -> Result<T> + Send + 'static,
) -> Result<T> {
    let offsets = offsets.clone();
    tokio::task::spawn_blocking(move || question(&offsets)).await?
}
