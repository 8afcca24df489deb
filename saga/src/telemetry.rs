//! Logs to standard error, as text or JSON; and the registry of a process's metrics.
//!
//! * `RUST_LOG` filters. The default is `info`, and `error` for librdkafka.
//! * Nothing is logged at `info` per payment: at thousands a second logging would cost more than the payment.
//! * No log shows personal data: ids may be logged, what a person typed may not. Postgres quotes rows and values in its errors,
//!   so errors are logged by [`log_text`] alone.

use clap::ValueEnum;
use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use tokio_postgres::error::DbError;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The class of SQLSTATEs whose messages quote values (PostgreSQL manual, appendix A).
const DATA_EXCEPTION: &str = "22";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Installs the log subscriber of this process. A second call changes nothing.
pub fn init(format: LogFormat) {
    let unless_asked = || Targets::new().with_default(Level::INFO).with_target("librdkafka", Level::ERROR);
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let filter = asked.unwrap_or_else(unless_asked);
    let installed = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    if let Err(error) = installed {
        tracing::debug!(%error, "a log subscriber was already installed; it stays");
    }
}

/// A registry that has the memory, the CPU time, the open files and the start of this process, as every exporter names them.
/// They are read when somebody scrapes.
///
/// # Errors
/// When they cannot be registered.
pub fn registry() -> anyhow::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    Ok(registry)
}

/// Registers a metric, and returns it.
///
/// # Errors
/// When its name is malformed or taken.
pub fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> anyhow::Result<C> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// The text of an error for a log: all of its causes, each without the values that Postgres quotes.
pub fn log_text(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(|cause| cause.downcast_ref::<DbError>().map_or_else(|| cause.to_string(), without_values))
        .collect();
    causes.join(": ")
}

/// An error of the server without its detail, hint and context, which quote rows. Of bad data the message quotes it, too.
fn without_values(error: &DbError) -> String {
    let code = error.code().code();
    let message = if code.starts_with(DATA_EXCEPTION) { "data is refused" } else { error.message() };
    let constraint = error.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
    format!("{}: {message} (SQLSTATE {code}{constraint})", error.severity())
}
