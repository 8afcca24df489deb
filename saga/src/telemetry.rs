//! Logs to standard error, as text or JSON.
//!
//! * `RUST_LOG` filters. The default is `info`, and `error` for librdkafka.
//! * Nothing is logged at `info` per payment: at thousands a second logging would cost more than the payment.

use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

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
