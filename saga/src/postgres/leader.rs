//! The open connections of a pool, of which only those to the host that takes writes stay, where its URL names several.
//!
//! * A frozen server answers nothing and closes nothing: its kernel keeps the connections, and statements on them would wait for as
//!   long as it is frozen.
//! * So once another host takes writes, the connections to the first one end: to its caller a statement fails as on any lost connection,
//!   and its outcome is looked up. `login` watches the host.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// The open connections of a pool.
#[derive(Debug, Default)]
pub struct Leader(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    /// The host that took the last connection.
    host: Option<usize>,
    /// The tasks that drive the connections, with their hosts.
    drivers: Vec<(usize, AbortHandle)>,
    is_watched: bool,
}

impl Leader {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        // The guarded value is valid after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host took a connection: it is the one that takes writes, and connections to another one end.
    pub fn found(&self, host: usize) {
        let mut connections = self.connections();
        let before = connections.host.replace(host);
        connections.drivers.retain(|(_, driver)| !driver.is_finished());
        if before.is_some_and(|before| before != host) {
            let stale = connections.drivers.extract_if(.., |(other, _)| *other != host);
            let ended = stale.map(|(_, driver)| driver.abort()).count();
            tracing::warn!(
                ended,
                "another host of the database takes writes now; connections to the one before are ended"
            );
        }
    }

    /// The host that took the last connection.
    pub fn host(&self) -> Option<usize> {
        self.connections().host
    }

    /// A connection of the pool to a host that takes writes. Returns whether the host is to be watched from now on.
    pub fn opened(&self, host: usize, driver: AbortHandle) -> bool {
        self.found(host);
        let mut connections = self.connections();
        connections.drivers.push((host, driver));
        !std::mem::replace(&mut connections.is_watched, true)
    }

    /// Whether no connection is open; then the watch ends.
    pub fn ends(&self) -> bool {
        let mut connections = self.connections();
        connections.drivers.retain(|(_, driver)| !driver.is_finished());
        connections.is_watched = !connections.drivers.is_empty();
        !connections.is_watched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> (AbortHandle, tokio::task::JoinHandle<()>) {
        let task = tokio::spawn(std::future::pending());
        (task.abort_handle(), task)
    }

    #[tokio::test]
    async fn connections_end_when_another_host_takes_writes_and_only_then() {
        let leader = Leader::default();
        let (first, first_task) = task();
        assert!(leader.opened(0, first), "the first connection begins the watch");
        let (second, second_task) = task();
        assert!(!leader.opened(0, second));
        leader.found(0);
        assert!(!first_task.is_finished() && !second_task.is_finished());
        let (third, third_task) = task();
        assert!(!leader.opened(2, third));
        assert!(
            first_task.await.unwrap_err().is_cancelled() && second_task.await.unwrap_err().is_cancelled()
        );
        assert!(!third_task.is_finished());
        leader.found(0);
        assert!(third_task.await.unwrap_err().is_cancelled(), "the probe finds a host too");
    }

    #[tokio::test]
    async fn without_connections_the_watch_ends_and_begins_again_with_the_next() {
        let leader = Leader::default();
        let (first, task) = task();
        assert!(leader.opened(1, first.clone()));
        assert!(!leader.ends());
        first.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(leader.ends());
        let (second, _task) = self::task();
        assert!(leader.opened(1, second), "nobody watches now");
    }
}
