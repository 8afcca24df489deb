//! `cdc-relay run` streams until it is stopped, and follows the routes file meanwhile.

mod contracts;
mod definitions;
mod routes_file;
mod sources;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use brokers::Brokers;
use clap::Args;
use listener::operators::Name;
use listener::{Audience, Operators, Tls};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::definitions::{Changes, Definitions};
use self::routes_file::{ReadRoutes, RoutesFile};
use self::sources::{Ended, RunningSources};
use super::wiring::SinkClients;
use crate::commands::arguments::{AmqpArgs, RoutesArgs};
use crate::commands::outcome::{Ending, Failure, Outcome};
use crate::observe::http;
use crate::observe::metrics::Metrics;
use crate::observe::overview::Overview;
use crate::source::succession::{Instance, Membership};

/// How long the sources have to flush before the process ends anyway.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// Streams until it is stopped (SIGTERM or Ctrl-C), then flushes and confirms.
///
/// Before it emits anything, it compares each source with its checkpoint. A source that would lose or invent something is
/// refused, and says what to do; the others stream.
///
/// While it runs it follows the routes file, which it looks at every two seconds, and at once after SIGHUP. A source that was added
/// starts, one that was removed ends once everything that is acknowledged is saved, and one that was changed ends and starts. The
/// slot of a removed source stays until `cdc-relay remove` drops it. A file with mistakes, or with changes that a database
/// refuses, changes nothing; if a source cannot start, the rest is applied. /health, the metric cdc_relay_routes_file_refused and the
/// log show it, and the file is read again every minute. `[relay]` and `[kafka]` are read at start alone.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  KAFKA_BROKERS=broker:9092 cdc-relay run --routes relay.toml --admin-addr 0.0.0.0:9600")]
pub struct RunConfig {
    #[command(flatten)]
    pub routes: RoutesArgs,
    /// Where /health, /ready and /metrics are served.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:9600", value_name = "ADDR:PORT")]
    pub admin_addr: SocketAddr,
    /// Names by which they may be asked for, besides those of the loopback: `relay.internal` with any port,
    /// `10.0.0.7:9600` with that one.
    #[arg(long, env = "ADMIN_HOSTS", value_name = "HOST,…", value_delimiter = ',')]
    pub admin_hosts: Vec<Name>,
    /// Shares the sources with other relays of the same routes file: each reads those for which it comes first, in an order that all
    /// of them know. Without it, a relay keeps each slot that it reads until it ends.
    #[arg(long, env = "RELAY_SHARE_SOURCES")]
    pub share_sources: bool,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub kafka: Brokers,
    #[command(flatten)]
    pub amqp: AmqpArgs,
}

pub fn execute(config: &RunConfig) -> Outcome {
    let mut file = RoutesFile::new(&config.routes, &config.amqp);
    let read = file.read()?;
    serve(config, file, read)?;
    Ok(Ending::Fine)
}

#[tokio::main(worker_threads = 1)]
async fn serve(config: &RunConfig, file: RoutesFile<'_>, read: ReadRoutes) -> Result<()> {
    listener::tls::install_provider();
    let listener = tokio::net::TcpListener::bind(config.admin_addr).await.context("ADMIN_ADDR")?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        token.cancel();
    });
    let metrics = Metrics::new()?;
    let overview = Overview::new(metrics.routes_file.clone());
    let sinks = SinkClients { kafka: &config.kafka, amqp: &config.amqp };
    let host = rustix::system::uname();
    let instance = Instance::new(&host.nodename().to_string_lossy(), config.admin_addr);
    let membership = Membership { instance, shares: config.share_sources };
    let mut sources =
        RunningSources::new(sinks, membership, metrics.clone(), overview.clone(), shutdown.clone());
    sources.start_all(&read.routes)?;
    overview.applied();
    let operators = Operators { admin_hosts: config.admin_hosts.clone(), ..Operators::default() };
    let (socket, audience) = (config.tls.socket(listener), Audience::operators(operators));
    let admin = tokio::spawn(http::serve(socket, metrics, overview.clone(), audience, shutdown.clone()));
    // A source ends only when it is stopped. If one ends before, its thread panicked, and the process has to end too.
    let follow = follow(&mut sources, Follower { file, hangup, definitions: read.definitions, overview });
    let mut panicked = tokio::select! {
        () = shutdown.cancelled() => None,
        source = follow => Some(source),
    };
    match tokio::time::timeout(STOP_TIMEOUT, sources.stop_all()).await {
        Ok(source) => panicked = panicked.or(source),
        Err(_) => tracing::warn!(
            "a source did not end in time; the next start emits its unconfirmed transactions again"
        ),
    }
    admin.abort();
    panicked.map_or(Ok(()), |source| Err(anyhow!("the thread of source {source} panicked")))
}

/// Follows the routes file.
struct Follower<'a> {
    file: RoutesFile<'a>,
    hangup: Signal,
    /// Those that the sources run by.
    definitions: Definitions,
    overview: Overview,
}

/// Has the sources follow the routes file. Returns the first source whose thread panicked.
async fn follow(sources: &mut RunningSources<'_>, mut follower: Follower<'_>) -> String {
    loop {
        let Follower { file, hangup, .. } = &mut follower;
        tokio::select! {
            Ended { source, panicked } = sources.ended() => {
                if panicked {
                    return source;
                }
                if let Err(error) = sources.take_off(&source) {
                    follower.cannot_start(&[(source, error)]);
                }
            }
            () = file.changed(hangup) => {
                if let Err(error) = follower.read(sources).await {
                    follower.refused(&format!("the routes file cannot be used, and nothing was changed: {error:#}"));
                }
            }
        }
    }
}

impl Follower<'_> {
    /// Reads the file, and has the sources follow it.
    ///
    /// # Errors
    /// The file cannot be used. Nothing was changed.
    async fn read(&mut self, sources: &mut RunningSources<'_>) -> Result<()> {
        let ReadRoutes { routes, definitions } = self.file.read().map_err(Failure::into_error)?;
        let changes = self.definitions.changes(&definitions)?;
        if changes.is_empty() {
            self.overview.applied();
            return Ok(());
        }
        let Changes { added, changed, removed } = &changes;
        let (of, names) = (Arc::clone(&routes), changed.clone());
        let check = tokio::task::spawn_blocking(move || contracts::check(&of, &names));
        check.await.context("the check of the contracts panicked")??;
        tracing::info!(?added, ?changed, ?removed, "the routes file has changed");
        let failed = sources.follow(&changes, &routes);
        self.definitions = definitions;
        if failed.is_empty() {
            self.overview.applied();
        } else {
            self.cannot_start(&failed);
        }
        Ok(())
    }

    /// Has the next reading of the file start these sources. All others run by it.
    fn cannot_start(&mut self, failed: &[(String, Error)]) {
        failed.iter().for_each(|(source, _)| self.definitions.forget(source));
        let problems: Vec<String> =
            failed.iter().map(|(source, error)| format!("source {source} cannot start: {error:#}")).collect();
        self.refused(&format!("the rest of the routes file is applied; {}", problems.join("; ")));
    }

    fn refused(&mut self, problem: &str) {
        self.file.refused();
        if self.overview.refused(problem.to_owned()) {
            tracing::error!("{problem}");
        }
    }
}
