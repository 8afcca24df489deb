//! The shards of a list, and what they say they own.
//!
//! * A shard that is new in the list is opened, one with another URL is opened anew, and one that is gone counts no more.
//! * While the list cannot be used, the shards stay as they were.

use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use crate::postgres::{Client, Pool, confirm_visible};
use crate::shards::bucket::Bucket;
use crate::shards::list::{self, ListedShard};
use crate::shards::map::{Answer, BucketRow};
use crate::telemetry::log_text;

/// A shard that has not answered by then is away. It includes the wait for a connection, which a database under load may
/// need seconds for; a request waits longer than this for its owner.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// Connections on which a shard is asked whether it serves, one more after each interval.
const TRIES_MAX: u32 = 3;
const TRY_INTERVAL: Duration = Duration::from_secs(1);

const READ: &str = "select bucket, epoch, owned from owned_buckets";

/// Makes the pool of a shard of its URL.
pub(super) type OpenPool = Box<dyn Fn(&str) -> anyhow::Result<Pool> + Send + Sync>;

/// The list of the shards, as the configuration has it.
pub(super) struct List {
    /// As it was given at the start. If it came from a file, that may be changed.
    pub(super) text: String,
    pub(super) open: OpenPool,
}

/// A shard. Its index in the map never changes.
#[derive(Clone)]
pub(super) struct Shard {
    pub(super) listed: ListedShard,
    pub(super) pool: Pool,
    pub(super) is_listed: bool,
    /// It did not answer last, and there are others.
    pub(super) is_away: bool,
}

/// Whether a shard can be asked, as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Here,
    Away,
    /// It has left the list.
    Unlisted,
}

impl Shard {
    pub(super) fn standing(&self) -> Standing {
        match (self.is_listed, self.is_away) {
            (false, _) => Standing::Unlisted,
            (true, true) => Standing::Away,
            (true, false) => Standing::Here,
        }
    }
}

impl List {
    /// Changes `shards` to those of `text`; a shard keeps its index. On an error nothing is changed.
    pub(super) fn update(&self, text: &str, shards: &mut Vec<Shard>) -> anyhow::Result<()> {
        let mut next = shards.clone();
        next.iter_mut().for_each(|shard| shard.is_listed = false);
        for listed in list::parse(text)? {
            let at = next.iter().position(|shard| shard.listed.name == listed.name);
            if let Some(at) = at.filter(|&at| next[at].listed == listed) {
                next[at].is_listed = true;
                continue;
            }
            let pool = (self.open)(&listed.url).with_context(|| format!("shard {}", listed.name))?;
            let opened = Shard { listed, pool, is_listed: true, is_away: false };
            match at {
                Some(at) => next[at] = opened,
                None => next.push(opened),
            }
        }
        *shards = next;
        Ok(())
    }
}

/// One that is away is not asked.
pub(super) async fn answer_unless_away(shard: &Shard) -> Answer {
    match shard.standing() {
        Standing::Away => Answer::Away,
        Standing::Here | Standing::Unlisted => answer(shard).await,
    }
}

pub(super) async fn answer(shard: &Shard) -> Answer {
    if !shard.is_listed {
        return Answer::Unlisted;
    }
    let rows = async {
        let client = shard.pool.get().await.context("no connection to the database")?;
        rows(&client).await
    };
    within_limit(shard, rows).await.map_or(Answer::Away, Answer::Rows)
}

/// Whether a shard answers and commits. One whose synchronous standbys are away answers, and work on it does not end.
pub(super) async fn serves(shard: &Shard) -> bool {
    // Nobody waits for one that has left the list.
    !shard.is_listed || within_limit(shard, commit_on_any(&shard.pool)).await.is_some()
}

/// Commits on whichever connection ends it first. The pool may hand out one on which work that was given up still runs.
async fn commit_on_any(pool: &Pool) -> anyhow::Result<()> {
    let tries = (0..TRIES_MAX).map(|number| async move {
        sleep(TRY_INTERVAL * number).await;
        commit(pool).await
    });
    tries.collect::<FuturesUnordered<_>>().next().await.context("nothing was tried")?
}

async fn commit(pool: &Pool) -> anyhow::Result<()> {
    let client = pool.get().await.context("no connection to the database")?;
    rows(&client).await?;
    confirm_visible(&client).await
}

async fn within_limit<T>(shard: &Shard, asked: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
    let why = match timeout(READ_TIMEOUT, asked).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => log_text(&error),
        Err(_) => "there was no answer in time".to_owned(),
    };
    tracing::warn!(shard = shard.listed.name, error = why, "a shard does not answer, or does not commit");
    None
}

async fn rows(client: &Client) -> anyhow::Result<Vec<BucketRow>> {
    let rows = client.query(READ, &[]).await.context("cannot read which buckets the database owns")?;
    rows.iter()
        .map(|row| {
            let number = row.try_get(0)?;
            let bucket = Bucket::new(number).with_context(|| format!("there is no bucket {number}"))?;
            Ok(BucketRow { bucket, epoch: row.try_get(1)?, owned: row.try_get(2)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A list, and how many pools it has opened.
    fn list() -> (List, Arc<AtomicUsize>) {
        crate::http::install_provider();
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open = move |url: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            crate::postgres::pool(url, 1, "test")
        };
        (List { text: String::new(), open: Box::new(open) }, opened)
    }

    /// Name and whether it is listed, by index.
    fn names(shards: &[Shard]) -> Vec<(&str, bool)> {
        shards.iter().map(|shard| (shard.listed.name.as_str(), shard.is_listed)).collect()
    }

    #[tokio::test]
    async fn a_shard_keeps_its_index_and_is_opened_anew_with_another_url_only() {
        let ((list, opened), mut shards) = (list(), Vec::new());
        let opened = || opened.load(Ordering::Relaxed);
        for (text, expected, pools) in [
            ("a=postgres://h/1 b=postgres://h/2", vec![("a", true), ("b", true)], 2),
            ("b=postgres://h/2 a=postgres://h/1", vec![("a", true), ("b", true)], 2),
            ("c=postgres://h/3 b=postgres://h/4", vec![("a", false), ("b", true), ("c", true)], 4),
            ("a=postgres://h/1", vec![("a", true), ("b", false), ("c", false)], 4),
        ] {
            list.update(text, &mut shards).unwrap();
            assert_eq!((names(&shards), opened()), (expected, pools), "{text}");
        }
        for wrong in ["", "a=nowhere", "a=postgres://h/1 d=postgres://h:port/1"] {
            assert!(list.update(wrong, &mut shards).is_err(), "{wrong}");
            assert_eq!(names(&shards), [("a", true), ("b", false), ("c", false)], "nothing changes: {wrong}");
        }
    }

    #[tokio::test]
    async fn a_shard_that_left_the_list_owns_nothing_and_one_that_is_away_is_not_asked() {
        let ((list, _), mut shards) = (list(), Vec::new());
        list.update("a=postgres://nobody@127.0.0.1:9/none", &mut shards).unwrap();
        assert_eq!(answer(&shards[0]).await, Answer::Away, "nobody is there");
        assert!(!serves(&shards[0]).await, "nobody is there");
        shards[0].is_away = true;
        assert_eq!(answer_unless_away(&shards[0]).await, Answer::Away);
        shards[0].is_listed = false;
        assert_eq!(answer_unless_away(&shards[0]).await, Answer::Unlisted);
        assert!(serves(&shards[0]).await, "nobody waits for it");
    }
}
