//! auditor: audits a running Coro all the time, and says by metrics what contradicts.
//!
//! * Each event names a payment that has changed. Its rows in the three databases are read by primary key and judged by the
//!   rules of `coroctl audit`; so are its movements and its account. A pass costs what changed, whatever else is there.
//! * The topics are judged as they come: the chain of each source, the order of each user, each transition, each body.
//! * Rows are compared with the topics as well: a row whose event never came is found, and so is a payment without any.
//! * Nothing is reported on one look. Rows are read again, and an event is missed only once its source has gone on.
//! * It reads only. Its state is what its consumer group has committed, so a restart goes on where it was, at least once.
//! * Each service may have several databases: a row counts on the shard that owns its user's bucket, and each shard has marks of its
//!   own ([`progress`]). Users whom no shard owns are examined once one does.
//! * Several instances may run: each audits everything. None joins the group.
//!
//! What it cannot see, the full audit does: see docs/AUDIT.md.

pub mod audit;
pub mod checkpoints;
pub mod checks;
pub mod config;
pub mod databases;
pub mod events;
pub mod http;
pub mod metrics;
pub mod payment_events;
pub mod pending;
pub mod progress;
pub mod store;
pub mod suspicions;
pub mod topics;

use std::time::Duration;

use anyhow::Context;
use saga::http as edge;
use saga::telemetry::log_text;
use saga::{CancellationToken, backoff, process};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use crate::audit::{Audit, Setup};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::Store;

const SERVICE: &str = "auditor";
/// Maximum pause before the audit begins again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Audits, and serves operators on `admin`, until `shutdown`.
///
/// # Errors
/// When the listener or the thread of the audit fails, or when a configured address cannot be used.
pub async fn run(config: Config, admin: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::register()?;
    let store = Store::new(&config.databases)?;
    let routes = http::admin(store.clone(), &metrics, shutdown.clone());
    let operators = edge::Audience::operators(config.operators.clone());
    let admin = edge::serve(config.tls.clone().socket(admin), routes, operators, shutdown.clone());
    let audit = audit(Setup { config, store, metrics, shutdown: shutdown.clone() });

    tracing::info!("ready to serve");
    process::all(shutdown, [Box::pin(audit), Box::pin(admin)]).await
}

/// Audits on a thread of its own, since the Kafka client's calls block, until shutdown.
///
/// # Errors
/// When no thread can be started, or it panicked.
pub async fn audit(setup: Setup) -> anyhow::Result<()> {
    let runtime = Handle::current();
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("audit".into()).spawn(move || {
        again_and_again(&setup, &runtime);
        // The receiver is gone only when the whole process is going.
        let _ = done.send(());
    })?;
    ended.await.context("the thread of the audit panicked; the panic is logged above")
}

/// Begins the audit again after each failure, until shutdown.
fn again_and_again(setup: &Setup, runtime: &Handle) {
    let mut pauses = backoff::unlimited(PAUSE_MAX);
    while !setup.shutdown.is_cancelled() {
        let outcome = Audit::start(setup, runtime).and_then(|audit| {
            pauses = backoff::unlimited(PAUSE_MAX);
            audit.run()
        });
        let Err(error) = outcome else { return };
        let pause = pauses.next().unwrap_or(PAUSE_MAX);
        tracing::warn!(
            error = log_text(&error),
            ?pause,
            "the audit cannot read Kafka; it begins again where it was"
        );
        runtime.block_on(async {
            tokio::select! {
                () = setup.shutdown.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        });
    }
}
