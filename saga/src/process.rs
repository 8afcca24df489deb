//! The start and the end of a process.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use listener::command_line::read as config;

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

/// A token that is cancelled `grace` after `asked`. Until then a process serves as before, but says that it is not
/// ready, so that the edge has the time to send requests elsewhere.
pub fn after_grace(asked: CancellationToken, grace: Duration) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let end = shutdown.clone();
    tokio::spawn(async move {
        asked.cancelled().await;
        tokio::time::sleep(grace).await;
        end.cancel();
    });
    shutdown
}

/// A part of a process that runs until shutdown.
pub type Part<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;

/// Runs all parts of a process to their end. Whichever ends first ends all: a service without its consumer
/// must be restarted, not linger. The first error is the answer; further ones are logged.
pub async fn all<const N: usize>(shutdown: CancellationToken, parts: [Part<'_>; N]) -> anyhow::Result<()> {
    let mut running: FuturesUnordered<Part<'_>> = parts.into_iter().collect();
    let mut first = Ok(());
    while let Some(ended) = running.next().await {
        shutdown.cancel();
        match ended {
            Ok(()) => {}
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => tracing::error!(error = format!("{error:#}"), "also failed"),
        }
    }
    tracing::info!("stopped");
    first
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn the_grace_begins_when_the_end_is_asked_for() {
        let asked = CancellationToken::new();
        let graces = [Duration::ZERO, Duration::from_millis(50), Duration::from_secs(3600)];
        let [at_once, soon, later] = graces.map(|grace| after_grace(asked.clone(), grace));
        let unasked = tokio::time::timeout(Duration::from_millis(20), at_once.cancelled()).await;
        assert!(unasked.is_err(), "nobody asked");
        let began = Instant::now();
        asked.cancel();
        at_once.cancelled().await;
        soon.cancelled().await;
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert!(!later.is_cancelled());
    }
}
