//! Shards that are away, where there are several: they are not asked, so that nobody waits for one that does not answer.
//!
//! * A shard is away when a connection to it cannot be had or breaks, or when it did not answer who owns what.
//! * A task asks those that are away, and ends when all have answered. Then it is read again who owns which bucket.
//! * One shard alone is always asked: whoever asks finds out by itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use tokio_postgres::error::SqlState;

use super::shard::{Shard, answer};
use super::{Inner, Router};
use crate::shards::map::Answer;

/// Pause between two questions to a shard that is away.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

impl Router {
    /// The shards that are away, by index.
    pub(super) fn away(&self) -> Vec<usize> {
        let state = self.state();
        state.shards.iter().enumerate().filter(|(_, shard)| shard.is_away).map(|(index, _)| index).collect()
    }

    /// Work on a shard has failed: it is away if that is the reason, and there are others.
    pub(super) fn may_be_away(&self, shard: usize, error: &anyhow::Error) {
        if is_away(error) {
            self.set_away(&[shard]);
        }
    }

    /// Every shard was asked.
    pub(super) fn answered(&self, answers: &[Answer]) {
        let away: Vec<usize> = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| **answer == Answer::Away)
            .map(|(index, _)| index)
            .collect();
        self.set_away(&away);
    }

    fn set_away(&self, shards: &[usize]) {
        let mut state = self.state();
        if state.shards.iter().filter(|shard| shard.is_listed).count() < 2 || shards.is_empty() {
            return;
        }
        let is_probed = state.shards.iter().any(|shard| shard.is_away);
        for &shard in shards {
            if !std::mem::replace(&mut state.shards[shard].is_away, true) {
                let name = state.shards[shard].listed.name.clone();
                tracing::warn!(shard = name, "a shard is away; its users are not served until it answers");
            }
        }
        if !is_probed {
            tokio::spawn(probe(Arc::downgrade(&self.0)));
        }
    }
}

/// Asks the shards that are away, until all have answered or nobody needs them.
async fn probe(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(PROBE_INTERVAL).await;
        let Some(router) = inner.upgrade().map(Router) else { return };
        // It may have another URL by now.
        let shards = router.update_list().into_iter().enumerate().filter(|(_, shard)| shard.is_away);
        let shards: Vec<(usize, Shard)> = shards.collect();
        let mut is_one_back = false;
        for (index, shard) in shards {
            if answer(&shard).await == Answer::Away {
                continue;
            }
            tracing::info!(shard = shard.listed.name, "a shard that was away answers");
            router.state().shards[index].is_away = false;
            is_one_back = true;
        }
        if is_one_back {
            router.read(|_| true).await;
        }
        if router.away().is_empty() {
            return;
        }
    }
}

/// Whether a failure means that the shard cannot be reached, and says nothing about the statement. A pool whose connections are
/// all in use is busy, not away.
fn is_away(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref::<PoolError>() {
        Some(PoolError::Timeout(TimeoutType::Wait)) => false,
        Some(_) => true,
        None => cause.is::<std::io::Error>() || cause.downcast_ref().is_some_and(is_gone),
    })
}

fn is_gone(error: &tokio_postgres::Error) -> bool {
    // Class 08 is connection exception, 57P a shutdown, 53 insufficient resources.
    let is_down = |code: &SqlState| ["08", "57P", "53"].iter().any(|class| code.code().starts_with(class));
    error.is_closed() || error.code().is_some_and(is_down)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use deadpool_postgres::HookError;

    use super::*;

    #[test]
    fn a_shard_is_away_when_it_cannot_be_reached_and_not_when_it_is_busy_or_refuses() {
        let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for away in [
            anyhow::Error::from(reset()).context("cannot read payments"),
            PoolError::Timeout(TimeoutType::Create).into(),
            PoolError::PostCreateHook(HookError::message("closed")).into(),
        ] {
            assert!(is_away(&away), "{away:#}");
        }
        let busy: Result<(), _> = Err(PoolError::Timeout(TimeoutType::Wait));
        for here in
            [busy.context("no connection to the database").unwrap_err(), anyhow!("only 1 of 2 payments")]
        {
            assert!(!is_away(&here), "{here:#}");
        }
    }
}
