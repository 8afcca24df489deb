//! The start and the end of a process.

use clap::Parser;
use clap::error::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// `EX_USAGE` of sysexits.h: the configuration is wrong, restarting will not help.
const EXIT_BAD_CONFIG: i32 = 64;

/// Reads the configuration from flags and environment, before anything is opened.
/// A bad or missing value ends the process with status 64 and a message that names it.
pub fn config<C: Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| {
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        let _ = error.print();
        std::process::exit(if asked { 0 } else { EXIT_BAD_CONFIG })
    })
}

/// A token that is cancelled by SIGTERM or SIGINT.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}
