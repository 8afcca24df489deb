//! The open connections of a pool, of which only those to the host that takes writes stay, where its URL names several.
//!
//! * A frozen server answers nothing and closes nothing: its kernel keeps the connections, and statements on them would wait for as
//!   long as it is frozen.
//! * So once another host takes writes, the connections to the first one end: to its caller a statement fails as on any lost connection,
//!   and its outcome is looked up. `watch` looks for it.
//! * Two hosts that are cut off from each other may both take writes. The one that was promoted last is on the later timeline; while
//!   connections to it are open, nobody goes back to one on an earlier timeline. Without any, a cluster may have been made anew.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Counts promotions: that of whoever was promoted later is higher.
pub type Timeline = u32;

/// The open connections of a pool.
#[derive(Debug, Default)]
pub struct Leader(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    /// The host that took the last connection.
    host: Option<usize>,
    timeline: Timeline,
    /// The tasks that drive the connections, with their hosts.
    drivers: Vec<(usize, AbortHandle)>,
    is_watched: bool,
}

impl Connections {
    fn found(&mut self, host: usize, timeline: Timeline) -> Result<(), Former> {
        self.drivers.retain(|(_, driver)| !driver.is_finished());
        if let Some(leader) = self.host
            && timeline < self.timeline
            && !self.drivers.is_empty()
        {
            return Err(Former { leader });
        }
        self.timeline = timeline;
        let before = self.host.replace(host);
        if before.is_some_and(|before| before != host) {
            let stale = self.drivers.extract_if(.., |(other, _)| *other != host);
            let ended = stale.map(|(_, driver)| driver.abort()).count();
            tracing::warn!(
                ended,
                "another host of the database takes writes now; connections to the one before are ended"
            );
        }
        Ok(())
    }
}

/// A host that was the primary before `leader`, to which connections are open.
#[derive(Debug, PartialEq, Eq)]
pub struct Former {
    pub leader: usize,
}

impl Leader {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        // The guarded value is valid after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This host takes writes: connections to another one end.
    ///
    /// # Errors
    /// It is a former primary.
    pub fn found(&self, host: usize, timeline: Timeline) -> Result<(), Former> {
        self.connections().found(host, timeline)
    }

    /// Whether this host took the last connection, on this timeline.
    pub fn is(&self, host: usize, timeline: Timeline) -> bool {
        let connections = self.connections();
        connections.host == Some(host) && connections.timeline == timeline
    }

    /// A connection of the pool to a host that takes writes. Returns whether the host is to be watched from now on.
    ///
    /// # Errors
    /// It is a former primary.
    pub fn opened(&self, host: usize, timeline: Timeline, driver: AbortHandle) -> Result<bool, Former> {
        let mut connections = self.connections();
        connections.found(host, timeline)?;
        connections.drivers.push((host, driver));
        Ok(!std::mem::replace(&mut connections.is_watched, true))
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
        assert_eq!(leader.opened(0, 1, first), Ok(true));
        let (second, second_task) = task();
        assert_eq!(leader.opened(0, 1, second), Ok(false));
        assert_eq!(leader.found(0, 1), Ok(()));
        assert!(!first_task.is_finished() && !second_task.is_finished());
        let (third, third_task) = task();
        assert_eq!(leader.opened(2, 1, third), Ok(false));
        assert!(
            first_task.await.unwrap_err().is_cancelled() && second_task.await.unwrap_err().is_cancelled()
        );
        assert!(!third_task.is_finished());
        assert_eq!(leader.found(0, 1), Ok(()));
        assert!(third_task.await.unwrap_err().is_cancelled(), "the watch finds a host too");
    }

    #[tokio::test]
    async fn a_former_primary_is_refused_while_connections_to_its_successor_are_open() {
        let leader = Leader::default();
        let (first, first_task) = task();
        assert_eq!(leader.opened(0, 1, first), Ok(true));
        let (second, second_task) = task();
        assert_eq!(leader.opened(1, 2, second.clone()), Ok(false));
        assert!(first_task.await.unwrap_err().is_cancelled());
        let (former, _former_task) = task();
        assert_eq!(leader.opened(0, 1, former.clone()), Err(Former { leader: 1 }));
        assert_eq!(leader.found(0, 1), Err(Former { leader: 1 }));
        assert!(leader.is(1, 2) && !second_task.is_finished());
        second.abort();
        assert!(second_task.await.unwrap_err().is_cancelled());
        assert_eq!(leader.opened(0, 1, former), Ok(false), "there is no other");
    }

    #[tokio::test]
    async fn without_connections_the_watch_ends_and_begins_again_with_the_next() {
        let leader = Leader::default();
        let (first, task) = task();
        assert_eq!(leader.opened(1, 1, first.clone()), Ok(true));
        assert!(!leader.ends());
        first.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(leader.ends());
        let (second, _task) = self::task();
        assert_eq!(leader.opened(1, 1, second), Ok(true), "nobody watches now");
    }
}
