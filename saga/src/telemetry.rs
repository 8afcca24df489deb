//! Logs to standard error, as text or JSON.
//!
//! * `RUST_LOG` filters. The default is `info`, and `error` for librdkafka.
//! * Nothing is logged at `info` per payment: at thousands a second logging would cost more than the payment.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Installs the log subscriber of this process. A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,librdkafka=error"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = installed {
        tracing::debug!(%error, "a log subscriber was already installed; it stays");
    }
}
