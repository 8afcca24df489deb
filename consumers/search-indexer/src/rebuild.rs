//! Makes the index anew from the first event on, while searches use the old one.
//!
//! * The new index has a group of its own. It is filled until it has what the topics had a moment ago; then the alias leads
//!   to it, from one moment on. The old index is deleted when no search can be under way in it any more; if the rebuild is
//!   ended before, the next one deletes it.
//! * From then on the running instances fill the new one, in the same group: they go on where the rebuild has stopped, so
//!   no event is left out.
//! * A rebuild that was interrupted goes on with its index. Two at the same time share the work.
//! * While Kafka or the index is away it waits. It never switches to an index of topics that it could not read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use saga::consumer::{self, Ends, GroupOffsets, Subscription};
use saga::contract::PAYMENT_TOPIC;
use saga::search_index::Index;
use saga::{CancellationToken, backoff};

use crate::config::Config;
use crate::events::Indexer;
use crate::metrics::Metrics;
use crate::store::Store;

/// The new index has caught up when what came meanwhile took no longer than this to index.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Longest pause between two requests to Kafka.
const PAUSE_MAX: Duration = Duration::from_secs(2);
const STOPPED: &str = "stopped before the new index had caught up; another rebuild goes on with it";

/// Makes a new index and lets searches use it.
///
/// # Errors
/// When it was stopped before, when Kafka has no payments, or when the index refused. The error says which index searches
/// use then.
pub async fn rebuild(config: &Config, stop: &CancellationToken) -> Result<()> {
    let (metrics, store) = (Metrics::register()?, Store::new(&config.search)?);
    let prepared = async {
        let old = store.ensure().await?;
        let new = store.next(&old).await?;
        anyhow::Ok((old, new))
    };
    let (old, new) = stop.run_until_cancelled(prepared).await.context(STOPPED)??;
    tracing::info!(old = old.name, new = new.name, "the new index is filled from the first event on");
    // The running instances have their names in the group of the old index; this one has none.
    let subscription = Subscription { instance_id: None, ..config.subscription(&new) };
    let indexer = Indexer { store: store.clone(), index: new.name.clone() };
    let rebuild = Rebuild {
        payments: config.consumer.topic(PAYMENT_TOPIC),
        offsets: Arc::new(GroupOffsets::new(&subscription)),
        store,
        old,
        new,
    };
    let done = stop.child_token();
    let consuming = async {
        let ended = consumer::run(subscription, indexer, metrics.consumer.clone(), done.clone()).await;
        done.cancel();
        ended
    };
    let switching = async {
        let switched = rebuild.run(&done).await;
        done.cancel();
        switched
    };
    let (consumed, switched) = tokio::join!(consuming, switching);
    consumed.and(switched)
}

struct Rebuild {
    /// The topic of payments.
    payments: String,
    /// Those of the group of the new index.
    offsets: Arc<GroupOffsets>,
    store: Store,
    old: Index,
    new: Index,
}

/// Who lets searches use the new index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Ours,
    /// Another rebuild has done it.
    Done,
}

impl Rebuild {
    async fn run(&self, done: &CancellationToken) -> Result<()> {
        let (old, new) = (&self.old, &self.new);
        match done.run_until_cancelled(self.catch_up()).await.context(STOPPED)?? {
            Switch::Ours => {
                self.store.switch(old, new).await?;
                tracing::info!(
                    old = old.name,
                    new = new.name,
                    "searches use the new index; the old one is deleted"
                );
            }
            Switch::Done => {
                tracing::info!(new = new.name, "another rebuild has let searches use the new index");
            }
        }
        Ok(())
    }

    /// Waits until the new index has what the topics had a moment ago.
    async fn catch_up(&self) -> Result<Switch> {
        loop {
            let began = Instant::now();
            let ends = Arc::new(self.ask(GroupOffsets::ends).await?);
            ensure!(
                ends.has_topic(&self.payments),
                "Kafka has no topic {}: is TOPIC_PREFIX right? Searches use the old index as before",
                self.payments
            );
            let switch = self.reach(&ends).await?;
            if switch == Switch::Done || began.elapsed() <= CATCH_UP_MAX {
                return Ok(switch);
            }
        }
    }

    /// Waits until the group of the new index has committed everything up to `ends`.
    async fn reach(&self, ends: &Arc<Ends>) -> Result<Switch> {
        let mut reported_at = Instant::now();
        loop {
            let to_reach = ends.clone();
            let behind = self.ask(move |offsets| offsets.behind(&to_reach)).await?;
            if self.is_switched().await? {
                return Ok(Switch::Done);
            }
            if behind == 0 {
                return Ok(Switch::Ours);
            }
            if reported_at.elapsed() > REPORT_INTERVAL {
                reported_at = Instant::now();
                tracing::info!(records = behind, "still to be indexed");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether searches use the new index.
    ///
    /// # Errors
    /// When they use neither the old nor the new one.
    async fn is_switched(&self) -> Result<bool> {
        match self.store.live().await {
            Ok(Some(live)) if live == self.old => Ok(false),
            Ok(Some(live)) if live == self.new => Ok(true),
            Ok(live) => {
                let live = live.map_or_else(|| "no index".to_owned(), |live| live.name);
                bail!("the alias leads to {live} by now, not to {}: start the rebuild again", self.old.name)
            }
            // The index is away: the rebuild waits.
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the alias cannot be read");
                Ok(false)
            }
        }
    }

    /// Asks Kafka until it answers, on a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&GroupOffsets) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        for pause in backoff::unlimited(PAUSE_MAX) {
            let (offsets, question) = (self.offsets.clone(), question.clone());
            match tokio::task::spawn_blocking(move || question(&offsets)).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, ?pause, "Kafka does not give the offsets; it is asked again");
                }
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the back-off never ends")
    }
}
