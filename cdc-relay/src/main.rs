//! Reads the command line, runs the command, and exits with its code.

use std::io::IsTerminal;
use std::process::ExitCode;

use cdc_relay::commands::cli::{Cli, LogFormat};
use cdc_relay::commands::outcome::{Failure, USAGE, code};
use cdc_relay::commands::terminal::notify;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    // Active for as long as the process lives.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let cli: Cli = secret_files::try_parse().unwrap_or_else(|error| {
        let code = if error.use_stderr() { i32::from(USAGE) } else { 0 };
        let _ = error.print();
        std::process::exit(code)
    });
    // The relay reports lapin's errors itself, with their consequences.
    let unless_asked = || {
        let targets = Targets::new().with_default(cli.command.log_level());
        targets.with_target("lapin", LevelFilter::OFF).with_target("librdkafka", LevelFilter::ERROR)
    };
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(unless_asked);
    let colour = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let lines = match cli.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    let is_service = cli.command.is_service();
    let outcome = cli.command.execute();
    match &outcome {
        Ok(_) => {}
        Err(Failure::Usage(error) | Failure::Failed(error)) if is_service => tracing::error!("{error:#}"),
        Err(Failure::Usage(error) | Failure::Failed(error)) => notify(&format!("error: {error:#}")),
    }
    ExitCode::from(code(&outcome))
}
