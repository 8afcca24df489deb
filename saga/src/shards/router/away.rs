//! Shards that are away, where there are several: they are not asked, so that nobody waits for one that does not answer.
//!
//! * A shard is away when no connection to it can be had, or when it did not answer who owns what.
//! * A connection that ends says nothing of the shard: a move and an operator may end one. Nor does work that did not end in time
//!   ([`in_time`](Router::in_time)): it may be too much at once, or wait for a lock. A transaction that is read-only may be of a server
//!   that was replaced. Each time the shard is asked whether it serves, and is away if it does not.
//! * One task asks those that are away, all at once, and ends when all serve again. Then it is read again who owns which bucket.
//! * A shard serves when it answers who owns what, and commits: one whose synchronous standbys are away answers, and stays away.
//! * One shard alone is always asked: whoever asks finds out by itself.

use std::sync::{Arc, Weak};
use std::time::Duration;

use deadpool_postgres::{PoolError, TimeoutType};
use futures_util::future::join_all;
use tokio_postgres::error::SqlState;

use super::in_time::NotInTime;
use super::shard::{Shard, Standing, serves};
use super::{Inner, Router, State};
use crate::shards::map::Answer;

/// Pause between two questions to a shard that is away.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

impl Router {
    /// The shards that are away, by index.
    pub(super) fn away(&self) -> Vec<usize> {
        let state = self.state();
        state.shards.iter().enumerate().filter(|(_, shard)| shard.is_away).map(|(index, _)| index).collect()
    }

    pub(crate) fn is_away(&self, shard: usize) -> bool {
        self.state().shards[shard].is_away
    }

    /// Whether each shard can be asked, by index.
    pub(super) fn standings(&self) -> Vec<Standing> {
        self.state().shards.iter().map(Shard::standing).collect()
    }

    pub(super) fn are_several(&self) -> bool {
        self.state().are_several()
    }

    /// Work on a shard has failed: it is away if that is the reason, and there are others.
    pub(crate) async fn may_be_away(&self, shard: usize, error: &anyhow::Error) {
        if !self.are_several() {
            return;
        }
        let is_away = match finding(error) {
            Finding::Here => false,
            Finding::Away => true,
            Finding::Unclear => {
                let asked = self.state().shards[shard].clone();
                !serves(&asked).await
            }
        };
        if is_away {
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
        if !state.are_several() || shards.is_empty() {
            return;
        }
        for &shard in shards {
            if !std::mem::replace(&mut state.shards[shard].is_away, true) {
                let name = state.shards[shard].listed.name.clone();
                tracing::warn!(shard = name, "a shard is away; its users are not served until it answers");
            }
        }
        self.show_away(&state);
        if !std::mem::replace(&mut state.is_probed, true) {
            tokio::spawn(probe(Arc::downgrade(&self.0)));
        }
    }

    fn set_here(&self, shard: usize) {
        let mut state = self.state();
        state.shards[shard].is_away = false;
        self.show_away(&state);
    }

    fn show_away(&self, state: &State) {
        if let Some(metrics) = self.0.metrics.get() {
            let away = state.shards.iter().filter(|shard| shard.standing() == Standing::Away);
            metrics.away.set(away.count() as i64);
        }
    }

    /// Whether no shard is away, so that nobody asks them any more.
    fn are_all_back(&self) -> bool {
        let mut state = self.state();
        let are_back = state.shards.iter().all(|shard| !shard.is_away);
        state.is_probed = !are_back;
        // One that has another address by now counts no more, and was not asked.
        self.show_away(&state);
        are_back
    }
}

impl State {
    fn are_several(&self) -> bool {
        self.shards.iter().filter(|shard| shard.is_listed).count() > 1
    }
}

/// Asks the shards that are away, until all have answered or nobody needs them.
async fn probe(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(PROBE_INTERVAL).await;
        let Some(router) = inner.upgrade().map(Router) else { return };
        // It may have another URL by now.
        let shards = router.update_list().into_iter().enumerate().filter(|(_, shard)| shard.is_away);
        // Each is back by itself: one that is frozen takes seconds to be found so.
        let asked = shards.map(|(index, shard)| {
            let router = &router;
            async move {
                let is_back = serves(&shard).await;
                if is_back {
                    tracing::info!(shard = shard.listed.name, "a shard that was away serves again");
                    router.set_here(index);
                }
                is_back
            }
        });
        let is_one_back = join_all(asked).await.contains(&true);
        if is_one_back {
            router.read(|_| true).await;
        }
        if router.are_all_back() {
            return;
        }
    }
}

/// What a failure of work says of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// It is there. A pool whose connections are all in use is busy, not away.
    Here,
    /// A connection to it ended, work on it did not, or it takes no writes: it has to be asked.
    Unclear,
    /// It cannot be reached.
    Away,
}

fn finding(error: &anyhow::Error) -> Finding {
    let of_cause = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<PoolError>() {
        Some(PoolError::Timeout(TimeoutType::Wait)) => Some(Finding::Here),
        Some(_) => Some(Finding::Away),
        None if cause.is::<NotInTime>() || cause.is::<std::io::Error>() => Some(Finding::Unclear),
        None => cause.downcast_ref().map(of_statement),
    };
    error.chain().find_map(of_cause).unwrap_or(Finding::Here)
}

fn of_statement(error: &tokio_postgres::Error) -> Finding {
    match error.code() {
        Some(state) => of_state(state),
        None if error.is_closed() || is_io(error) => Finding::Unclear,
        None => Finding::Here,
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

/// Class 08 is connection exception, 53 insufficient resources, 57P operator intervention: 57P01 ends one connection, or each
/// of a server that is shut down, 57P02 each of one that has crashed, 57P03 refuses a new one. 25006 is a write on a standby.
fn of_state(state: &SqlState) -> Finding {
    match state.code() {
        "25006" | "57P01" | "57P02" => Finding::Unclear,
        "57P03" => Finding::Away,
        code if code.starts_with("08") => Finding::Unclear,
        code if code.starts_with("53") => Finding::Away,
        _ => Finding::Here,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use deadpool_postgres::HookError;

    use super::*;

    #[test]
    fn a_shard_is_away_when_it_cannot_be_reached_and_not_when_it_is_busy_or_refuses() {
        let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let busy: Result<(), _> = Err(PoolError::Timeout(TimeoutType::Wait));
        for (error, expected) in [
            (PoolError::Timeout(TimeoutType::Create).into(), Finding::Away),
            (PoolError::PostCreateHook(HookError::message("closed")).into(), Finding::Away),
            (anyhow::Error::new(NotInTime).context("cannot read payments"), Finding::Unclear),
            (anyhow::Error::from(reset()).context("cannot read payments"), Finding::Unclear),
            (busy.context("no connection to the database").unwrap_err(), Finding::Here),
            (anyhow!("only 1 of 2 payments"), Finding::Here),
        ] {
            assert_eq!(finding(&error), expected, "{error:#}");
        }
    }

    /// A move ends transactions of its source, one by one, and a standby answers though nothing can be written there.
    #[test]
    fn a_connection_that_was_ended_and_a_write_that_is_not_taken_say_nothing_of_their_shard() {
        for (code, expected) in [
            ("25006", Finding::Unclear),
            ("57P01", Finding::Unclear),
            ("57P02", Finding::Unclear),
            ("57P03", Finding::Away),
            ("57P05", Finding::Here),
            ("57014", Finding::Here),
            ("08006", Finding::Unclear),
            ("53300", Finding::Away),
            ("SB001", Finding::Here),
            ("40P01", Finding::Here),
        ] {
            assert_eq!(of_state(&SqlState::from_code(code)), expected, "{code}");
        }
    }

    /// Two shards at which nobody is, and one that is there would answer.
    fn router() -> Router {
        crate::http::install_provider();
        let list = "a=postgres://nobody@127.0.0.1:9/none b=postgres://nobody@127.0.0.1:10/none";
        Router::listed(list, |url| crate::postgres::pool(url, 1, "test")).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_ended_is_followed_by_another_before_its_shard_is_away() {
        let (router, registry) = (router(), prometheus::Registry::new());
        router.register(&registry).unwrap();
        let shown = || registry.gather().iter().find(|of| of.name() == "saga_shards_away").unwrap().clone();
        router.may_be_away(0, &anyhow!("a defect")).await;
        assert_eq!(router.away(), [] as [usize; 0]);
        let ended = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        // Nobody is there.
        router.may_be_away(1, &ended().into()).await;
        assert_eq!(router.away(), [1]);
        assert_eq!(
            shown().get_metric()[0].get_gauge().get_value(),
            1.0,
            "at once, and not when it is read next"
        );
        router.may_be_away(0, &anyhow::Error::new(NotInTime)).await;
        assert_eq!(router.away(), [0, 1]);
        assert_eq!(router.standings(), [Standing::Away, Standing::Away]);
        // They have other addresses by now.
        router.state().shards.iter_mut().for_each(|shard| shard.is_away = false);
        assert!(router.are_all_back());
        assert_eq!(shown().get_metric()[0].get_gauge().get_value(), 0.0);
    }

    /// Each time a shard is away again before the task that asks has ended.
    #[tokio::test]
    async fn one_task_asks_the_shards_that_are_away() {
        let router = router();
        router.set_away(&[0]);
        assert!(router.state().is_probed);
        router.state().shards[0].is_away = false;
        // The task has not seen it yet, and goes on.
        router.set_away(&[1]);
        assert!(!router.are_all_back() && router.state().is_probed);
        router.state().shards[1].is_away = false;
        assert!(router.are_all_back() && !router.state().is_probed, "the next one starts a task");
    }

    #[tokio::test]
    async fn one_shard_alone_is_never_away() {
        crate::http::install_provider();
        let router =
            Router::one(crate::postgres::pool("postgres://nobody@127.0.0.1:9/none", 1, "test").unwrap());
        router.may_be_away(0, &anyhow::Error::new(NotInTime)).await;
        router.set_away(&[0]);
        assert_eq!(router.away(), [] as [usize; 0]);
    }
}
