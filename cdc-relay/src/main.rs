//! Reads the command line, opens the admin port, runs until told to stop.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use cdc_relay::config::{Cli, Command, LogFormat};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// `EX_USAGE`: the configuration is not usable; nothing was opened.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let code = if error.use_stderr() { i32::from(USAGE) } else { 0 };
        let _ = error.print();
        std::process::exit(code)
    });
    // What lapin calls an error we report ourselves, with what follows from it.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,lapin=off,librdkafka=error"));
    let colour = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    match cli.command {
        Command::Run(config) => {
            let (result, failure) = match cdc_relay::run::routes(&config) {
                Ok(routes) => (serve(config, routes), ExitCode::FAILURE),
                Err(error) => (Err(error), ExitCode::from(USAGE)),
            };
            result.map_or_else(
                |error| {
                    tracing::error!("{error:#}");
                    failure
                },
                |()| ExitCode::SUCCESS,
            )
        }
    }
}

#[tokio::main(worker_threads = 1)]
async fn serve(config: cdc_relay::config::RunConfig, routes: cdc_relay::routes::Routes) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(config.admin_addr).await.context("ADMIN_ADDR")?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        token.cancel();
    });
    cdc_relay::run::run(config, routes, listener, shutdown).await
}
