//! Rows that no synchronous standby may have, and the commit that ends the doubt.
//!
//! * A commit becomes visible only once the standbys have it, with two exceptions: its wait was cancelled, or the server ended in
//!   between and recovered. A service that found such a row would take its work for done, and acknowledge what a promotion undoes.
//! * So after a lost connection, and at the start, the pool commits a message in the WAL before it hands out a connection. That
//!   commit waits for the standbys, and they get WAL in order: then they have everything that was visible before.
//! * Another instance may have made such a row meanwhile. So whoever finds its work done, and acknowledges it, commits such a message
//!   first ([`confirm_visible`]).
//! * Without standbys it costs one commit. If they are away, it is as if the database were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{GenericClient, Hook, HookError, PoolBuilder};
use tokio::time::timeout;

/// A standby that takes longer is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The message is for nobody; the relay passes over it.
const BARRIER: &str = "select pg_logical_emit_message(true, 'coro.barrier', '')";

/// Makes the commit of a transaction, or this statement alone, wait until the standbys have everything that is visible now.
/// For whoever finds its work done already, and is about to acknowledge it: another instance may have done it by a commit that
/// no standby has.
///
/// # Errors
/// When the database failed.
pub async fn confirm_visible(client: &impl GenericClient) -> anyhow::Result<()> {
    let barrier = client.prepare_cached(BARRIER).await?;
    client.query_one(&barrier, &[]).await.context("cannot confirm what is committed")?;
    Ok(())
}

/// Counts the events after which rows may be visible that no standby has.
#[derive(Debug)]
pub struct Doubt {
    events: AtomicU64,
    /// So many of them are settled by a later commit.
    settled: AtomicU64,
}

impl Default for Doubt {
    /// Nothing is known of the time before the start.
    fn default() -> Self {
        Self { events: AtomicU64::new(1), settled: AtomicU64::new(0) }
    }
}

impl Doubt {
    /// Arises when the result is dropped: do that before anybody learns that the connection is lost.
    pub fn at_end(&self) -> AtEnd<'_> {
        AtEnd(self)
    }

    fn arises(&self) {
        self.events.fetch_add(1, Ordering::AcqRel);
    }

    /// The events so far, if not all of them are settled.
    fn open(&self) -> Option<u64> {
        let events = self.events.load(Ordering::Acquire);
        (events > self.settled.load(Ordering::Acquire)).then_some(events)
    }

    /// A commit that began after these events is with the standbys.
    fn ends(&self, events: u64) {
        self.settled.fetch_max(events, Ordering::AcqRel);
    }
}

/// The end of a connection.
pub struct AtEnd<'a>(&'a Doubt);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.arises();
    }
}

/// Makes the pool hand out no connection before the doubt is settled.
pub fn settle(pool: PoolBuilder, doubt: &Arc<Doubt>) -> PoolBuilder {
    let barrier = || {
        let doubt = Arc::clone(doubt);
        Hook::async_fn(move |client, _| {
            let doubt = Arc::clone(&doubt);
            Box::pin(async move {
                let Some(events) = doubt.open() else { return Ok(()) };
                match timeout(ANSWER_TIMEOUT, client.simple_query(BARRIER)).await {
                    Ok(Ok(_)) => {
                        doubt.ends(events);
                        Ok(())
                    }
                    Ok(Err(error)) => Err(HookError::Backend(error)),
                    Err(_) => Err(HookError::message(
                        "no synchronous standby confirms what the database has committed",
                    )),
                }
            })
        })
    };
    pool.post_create(barrier()).post_recycle(barrier())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_during_the_barrier_needs_another_one() {
        let doubt = Doubt::default();
        let first = doubt.open().expect("at the start");
        doubt.arises();
        doubt.ends(first);
        drop(doubt.at_end());
        let second = doubt.open().expect("events that the commit did not cover");
        assert!(second > first);
        doubt.ends(second);
        assert_eq!(doubt.open(), None);
        // An earlier commit that is confirmed late takes nothing back.
        doubt.ends(first);
        assert_eq!(doubt.open(), None);
        doubt.arises();
        assert!(doubt.open().is_some());
    }
}
