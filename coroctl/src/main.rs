//! The operator's command.

use std::process::ExitCode;

use anyhow::Result;
use coroctl::cli::{self, Cli};
use saga::telemetry::{self, LogFormat};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    saga::http::install_provider();
    let cli: Cli = secret_files::try_parse().unwrap_or_else(|error| error.exit());
    telemetry::init(LogFormat::Text);
    cli::run(cli).await
}
