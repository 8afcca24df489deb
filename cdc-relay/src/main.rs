//! Reads the command line, runs the command, and exits with its code.

use std::io::IsTerminal;
use std::process::ExitCode;

use cdc_relay::commands::cli::{Cli, LogFormat};
use cdc_relay::commands::outcome::{Failure, USAGE, code};
use cdc_relay::commands::terminal::notify;
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Active for as long as the process lives.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let code = if error.use_stderr() { i32::from(USAGE) } else { 0 };
        let _ = error.print();
        std::process::exit(code)
    });
    // The relay reports lapin's errors itself, with their consequences.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!("{},lapin=off,librdkafka=error", cli.command.log_level()))
    });
    let colour = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let is_service = cli.command.is_service();
    let outcome = cli.command.execute();
    match &outcome {
        Ok(_) => {}
        Err(Failure::Usage(error) | Failure::Failed(error)) if is_service => tracing::error!("{error:#}"),
        Err(Failure::Usage(error) | Failure::Failed(error)) => notify(&format!("error: {error:#}")),
    }
    ExitCode::from(code(&outcome))
}
