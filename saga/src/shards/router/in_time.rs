//! A time limit for work on a shard, where there are several.
//!
//! * A shard that is frozen, or whose packets are dropped, answers nothing, and no connection to it ends. Work that does not end in
//!   time is given up, and its shard is away, unless it says that it serves: then it was that work alone.
//! * Whether work that was given up was committed is not known, as after a lost connection.
//! * Work of the one shard of a service has no limit but those of its session: there is nobody else to be served meanwhile.

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::Router;
use crate::postgres::Pool;
use crate::shards::Unowned;

/// Longer than a statement of a session may take, which is 15 seconds.
pub(super) const WORK_TIMEOUT: Duration = Duration::from_secs(20);
/// A reader that any shard can answer waits for one as long.
const ANY_TIMEOUT: Duration = Duration::from_secs(2);

/// A shard did not end its work in time.
#[derive(Debug)]
pub(super) struct NotInTime;

impl fmt::Display for NotInTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database did not answer in time")
    }
}

impl std::error::Error for NotInTime {}

/// Whether work did not end in the time that it has: all of it, one of its statements (57014), or its wait for a lock (55P03).
/// Less at once may.
pub(super) fn is_slow(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let state = cause.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        cause.is::<NotInTime>() || state.is_some_and(is_time_limit)
    })
}

fn is_time_limit(state: &SqlState) -> bool {
    *state == SqlState::QUERY_CANCELED || *state == SqlState::LOCK_NOT_AVAILABLE
}

impl Router {
    /// Waits for work on one shard, for 20 seconds at most where there are several. It is the caller who finds out by the error whether
    /// the shard is away ([`Router::was_refused`]). Counts and sweeps do not: they only fail.
    ///
    /// # Errors
    /// When the work failed, or did not end in time: whether it was done is not known then.
    pub async fn in_time<T, E: From<anyhow::Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if !self.are_several() {
            return work.await;
        }
        match timeout(self.0.work_timeout, work).await {
            Ok(done) => done,
            Err(_) => Err(anyhow::Error::new(NotInTime).into()),
        }
    }

    /// The answer of any shard, for what is the same on all of them. Those that are away are asked last.
    ///
    /// # Errors
    /// When none answers. Of several each one has two seconds.
    pub async fn any<T, F>(&self, ask: impl Fn(Pool) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let shards = self.shards();
        let several = shards.len() > 1;
        let mut failed = None;
        for (_, pool) in shards {
            let asked = ask(pool);
            let answer = match several {
                true => timeout(ANY_TIMEOUT, asked).await.unwrap_or_else(|_| Err(NotInTime.into())),
                false => asked.await,
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| Unowned::Away.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use uuid::Uuid;

    use super::*;
    use crate::consumer::{ApplyError, BatchCounts};
    use crate::shards::Ownership;
    use crate::shards::bucket::Bucket;
    use crate::shards::map::{Answer, BucketRow, Map};

    /// Two shards, of which `b` owns the odd buckets; nobody is there.
    fn router() -> Router {
        crate::http::install_provider();
        let list = "a=postgres://nobody@127.0.0.1:9/none b=postgres://nobody@127.0.0.1:10/none";
        let open = |url: &str| crate::postgres::pool(url, 1, "test");
        let router = Router::listed_within(list, open, Duration::from_millis(50)).unwrap();
        let rows = |odd: usize| {
            let row = |bucket: Bucket| BucketRow { bucket, epoch: 3, owned: bucket.index() % 2 == odd };
            Answer::Rows(Bucket::all().map(row).collect())
        };
        router.state().map = Map::unread().next(&[rows(0), rows(1)]).into();
        router
    }

    fn user(of: usize) -> Uuid {
        std::iter::repeat_with(Uuid::new_v4).find(|user| Bucket::of(*user).index() % 2 == of).unwrap()
    }

    #[test]
    fn work_is_slow_when_a_time_limit_ended_it() {
        assert!(is_slow(&anyhow::Error::new(NotInTime).context("cannot read payments")));
        assert!(!is_slow(&anyhow::anyhow!("the database is away")));
        for (code, expected) in
            [("57014", true), ("55P03", true), ("40P01", false), ("23514", false), ("SB001", false)]
        {
            assert_eq!(is_time_limit(&SqlState::from_code(code)), expected, "{code}");
        }
    }

    /// It answers nothing, and no connection to it ends.
    #[tokio::test]
    async fn a_shard_that_is_frozen_holds_up_nobody_else_and_is_away_from_then_on() {
        let (router, users) = (router(), [user(1), user(0)]);
        let work = |owned: Ownership, items: Vec<usize>| async move {
            if owned.shard == 1 { pending().await } else { Ok(items) }
        };
        let done = router.each(&users, work).await;
        assert!(matches!(&done[0], Some(Err(_))) && matches!(&done[1], Some(Ok(1))), "{done:?}");
        assert_eq!(router.away(), [1]);
    }

    #[tokio::test]
    async fn the_events_of_a_frozen_shard_are_passed_over() {
        let (router, users) = (router(), [user(1), user(0), user(1)]);
        let work = |owned: Ownership, items: Vec<usize>, _| async move {
            if owned.shard == 1 {
                pending().await
            } else {
                Ok::<_, ApplyError>(BatchCounts { applied: items.len(), ..BatchCounts::default() })
            }
        };
        for _ in 0..2 {
            let passed_over = router.apply(&users, &[], work).await;
            assert!(
                matches!(&passed_over, Err(ApplyError::Absent(items)) if items[..] == [0, 2]),
                "{passed_over:?}"
            );
        }
        assert_eq!(router.apply(&users[1..2], &[], work).await.unwrap().applied, 1);
    }

    #[tokio::test]
    async fn a_request_to_a_frozen_shard_fails() {
        let (router, user_id) = (router(), user(1));
        let failed = router.repeat(user_id, |_| pending::<anyhow::Result<()>>()).await.unwrap_err();
        assert!(failed.is::<NotInTime>(), "{failed:#}");
        assert_eq!(router.away(), [1]);
        assert!(router.repeat(user(0), |_| async { anyhow::Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn whatever_any_shard_can_answer_is_asked_of_those_that_are_there_first() {
        let router = router();
        router.state().shards[0].is_away = true;
        let names: Vec<String> = router.shards().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b", "a"]);
        let tries = std::cell::Cell::new(0);
        let second = |_| {
            tries.set(tries.get() + 1);
            let is_second = tries.get() == 2;
            async move { if is_second { Ok("answer") } else { anyhow::bail!("frozen") } }
        };
        assert_eq!(router.any(second).await.unwrap(), "answer");
        assert!(router.any(|_| async { anyhow::Result::<()>::Err(anyhow::anyhow!("no")) }).await.is_err());
    }
}
