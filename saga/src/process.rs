//! Starts and stops a process.
//!
//! * SIGTERM and SIGINT begin a graceful stop: /ready fails first, the listeners close after the grace.
//! * The end of any part ends the process, so that it is restarted instead of running without that part.
//!
//! An instance leaves before it stops: it first answers `/ready` with 503 and serves as before for `DRAIN_MS`, longer than the
//! edge takes to notice; then it takes no more connections, answers open requests with `connection: close`, and
//! ends. So a rolling restart costs no request.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use listener::command_line::read as config;

use crate::telemetry::log_text;

/// A longer time is a mistake: 30 days.
const TIME_MAX: Duration = Duration::from_hours(30 * 24);

/// The value of an option in whole seconds, from 1 to 30 days.
///
/// # Errors
/// When it is no such number.
pub fn seconds(text: &str) -> Result<Duration, String> {
    time(text, Duration::from_secs, TIME_MAX.as_secs().into())
}

/// The value of an option in whole milliseconds, from 1 to 30 days.
///
/// # Errors
/// When it is no such number.
pub fn millis(text: &str) -> Result<Duration, String> {
    time(text, Duration::from_millis, TIME_MAX.as_millis())
}

fn time(text: &str, of: impl Fn(u64) -> Duration, max: u128) -> Result<Duration, String> {
    let number = text.parse::<u64>().ok().filter(|number| (1..=max).contains(&u128::from(*number)));
    number.map(of).ok_or_else(|| format!("give a whole number from 1 to {max}"))
}

/// Binds a listener. `setting` is the name under which its address was given.
///
/// # Errors
/// When the address cannot be bound.
pub async fn listen(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {setting} {address}; choose an address of this host that is free")
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

/// A token that is cancelled `grace` after `stop`. Until then the process serves as before and reports that it is not
/// ready, so that the edge has time to route requests elsewhere.
pub fn after_grace(stop: CancellationToken, grace: Duration) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let end = shutdown.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
        end.cancel();
    });
    shutdown
}

/// A part of a process that runs until shutdown.
pub type Part<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;

/// Runs all parts of a process to their end. The first part that ends stops the others.
///
/// # Errors
/// The first error of a part. Further errors are logged.
pub async fn all<const N: usize>(shutdown: CancellationToken, parts: [Part<'_>; N]) -> anyhow::Result<()> {
    let mut running: FuturesUnordered<Part<'_>> = parts.into_iter().collect();
    let mut first = Ok(());
    while let Some(ended) = running.next().await {
        shutdown.cancel();
        match ended {
            Ok(()) => {}
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => {
                tracing::error!(error = log_text(&error), "another part of the process failed as well");
            }
        }
    }
    tracing::info!("stopped");
    first
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_time_has_an_end() {
        assert_eq!(seconds("2592000"), Ok(TIME_MAX));
        assert_eq!(millis("2592000000"), Ok(TIME_MAX));
        assert_eq!((seconds("1"), millis("1")), (Ok(Duration::from_secs(1)), Ok(Duration::from_millis(1))));
        for bad in ["", "0", "-1", "1.5", "1s", "18446744073709551615"] {
            assert!(seconds(bad).is_err() && millis(bad).is_err(), "{bad}");
        }
        assert!(seconds("2592001").is_err() && millis("2592000001").is_err());
    }

    #[tokio::test]
    async fn the_grace_begins_when_the_end_is_asked_for() {
        let stop = CancellationToken::new();
        let graces = [Duration::ZERO, Duration::from_millis(50), Duration::from_secs(3600)];
        let [at_once, soon, later] = graces.map(|grace| after_grace(stop.clone(), grace));
        let unasked = tokio::time::timeout(Duration::from_millis(20), at_once.cancelled()).await;
        assert!(unasked.is_err(), "nobody asked");
        let began = Instant::now();
        stop.cancel();
        at_once.cancelled().await;
        soon.cancelled().await;
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert!(!later.is_cancelled());
    }
}
