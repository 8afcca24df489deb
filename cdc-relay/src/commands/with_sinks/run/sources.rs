//! Starts and stops the sources of a running relay.
//!
//! * A source that is stopped reads no more, waits for what is in flight, and saves and confirms what is acknowledged. Its slot
//!   stays, and retains WAL until the source is there again or `remove` drops it.
//! * A source that has changed is stopped, and started once it has ended: never do two threads of a process read one slot.
//! * A source that nobody changed goes on undisturbed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Error, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::definitions::Changes;
use crate::commands::with_sinks::wiring::{self, SinkClients};
use crate::observe::lag;
use crate::observe::metrics::Metrics;
use crate::observe::overview::Overview;
use crate::routes::{Routes, Source};
use crate::sinks::acks::Acks;
use crate::source::context::SourceContext;
use crate::source::succession::Membership;
use crate::source::{guard, worker};

pub struct RunningSources<'a> {
    sinks: SinkClients<'a>,
    membership: Membership,
    metrics: Metrics,
    overview: Overview,
    shutdown: CancellationToken,
    running: BTreeMap<String, RunningSource>,
    /// Sources that start once the thread before them has ended.
    waiting: BTreeMap<String, (Arc<Routes>, Source)>,
    threads: JoinSet<Ended>,
}

struct RunningSource {
    acks: Arc<Acks>,
    /// Ends what watches the source.
    watched: CancellationToken,
}

/// The thread of a source has ended.
#[derive(Debug)]
pub struct Ended {
    pub source: String,
    pub panicked: bool,
}

impl<'a> RunningSources<'a> {
    pub fn new(
        sinks: SinkClients<'a>,
        membership: Membership,
        metrics: Metrics,
        overview: Overview,
        shutdown: CancellationToken,
    ) -> RunningSources<'a> {
        let (running, waiting, threads) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
        RunningSources { sinks, membership, metrics, overview, shutdown, running, waiting, threads }
    }

    /// Starts all sources of the routes. Call it within a runtime.
    pub fn start_all(&mut self, routes: &Arc<Routes>) -> Result<()> {
        routes.sources.iter().try_for_each(|source| self.start(routes, source))
    }

    /// Follows the changes of a routes file. Returns the sources that cannot start, with the reason: the system has no room for another
    /// one. The others run.
    pub fn follow(&mut self, changes: &Changes, routes: &Arc<Routes>) -> Vec<(String, Error)> {
        let mut failed = Vec::new();
        for name in &changes.removed {
            self.waiting.remove(name);
            self.stop(name);
        }
        for name in changes.changed.iter().chain(&changes.added) {
            let Some(source) = routes.source(name) else { continue };
            if self.running.contains_key(name) {
                self.waiting.insert(name.clone(), (Arc::clone(routes), source.clone()));
                self.stop(name);
            } else if let Err(error) = self.start(routes, source) {
                failed.push((name.clone(), error));
            }
        }
        failed
    }

    /// Waits for the end of a thread; for ever if there is none.
    pub async fn ended(&mut self) -> Ended {
        match self.threads.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => Ended { source: error.to_string(), panicked: true },
            None => std::future::pending().await,
        }
    }

    /// Takes a source off whose thread has ended, and starts what waits for that.
    pub fn take_off(&mut self, source: &str) -> Result<()> {
        if let Some(ended) = self.running.remove(source) {
            ended.watched.cancel();
        }
        self.overview.remove(source);
        self.metrics.remove(source);
        match self.waiting.remove(source) {
            Some((routes, source)) => self.start(&routes, &source),
            None => {
                tracing::info!(
                    source,
                    "the source has ended; its slot stays until `cdc-relay remove` drops it"
                );
                Ok(())
            }
        }
    }

    /// Stops all sources, and waits for their ends. Returns the first one whose thread panicked.
    pub async fn stop_all(&mut self) -> Option<String> {
        self.waiting.clear();
        self.running.values().for_each(|source| source.acks.stop());
        let mut panicked = None;
        while let Some(ended) = self.threads.join_next().await {
            let ended = ended.ok().filter(|ended| ended.panicked);
            panicked = panicked.or(ended.map(|ended| ended.source));
        }
        panicked
    }

    fn stop(&self, source: &str) {
        if let Some(running) = self.running.get(source) {
            running.acks.stop();
        }
    }

    fn start(&mut self, routes: &Arc<Routes>, source: &Source) -> Result<()> {
        let name = source.name.get_ref().clone();
        let context = wiring::context(&self.sinks, &self.metrics, routes, source)?;
        let context = SourceContext { membership: self.membership.clone(), ..context };
        let watched = self.shutdown.child_token();
        let (database, slot) = (context.database.clone(), source.slot.get_ref().clone());
        tokio::spawn(lag::watch(database, slot, context.metrics.clone(), watched.clone()));
        tokio::spawn(guard::watch(context.clone(), watched.clone()));
        self.overview.add(context.status.clone());
        let acks = Arc::clone(&context.acks);
        let (done, ended) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name(format!("source {name}")).spawn(move || {
            worker::run(context);
            // The receiver is gone only when the process ends anyway.
            let _ = done.send(());
        })?;
        self.running.insert(name.clone(), RunningSource { acks, watched });
        // The sender is gone: the thread panicked.
        self.threads.spawn(async move { Ended { source: name, panicked: ended.await.is_err() } });
        Ok(())
    }
}
