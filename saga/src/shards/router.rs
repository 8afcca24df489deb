//! Finds the shard of each user, and repeats what a shard refuses.
//!
//! * The map is read when it is first needed, when a shard refuses, and while a bucket has no owner; each time by one task, for
//!   all that wait. So a service starts while its database is away.
//! * Work that is refused has written nothing. It is repeated once the map was read again.
//! * Work about a bucket that nobody owns waits: a request for [`WAIT_TIMEOUT`] at most, an event without end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::bucket::{BUCKETS, Bucket};
use super::map::{Answer, BucketRow, Map, Owner};
use super::ownership::{Ownership, Unowned, is_refused};
use crate::backoff;
use crate::postgres::Pool;
use crate::telemetry::log_text;

/// How long a request waits for a bucket that is being moved. A move lets go after 300 milliseconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The shards are not asked more often while a bucket has no owner.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// A shard that has not answered by then is away. It includes the wait for a connection.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

const READ: &str = "select bucket, epoch, owned from owned_buckets";

/// Knows the shards of a service. Clones share what they know.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    shards: Vec<Pool>,
    state: Mutex<State>,
    /// Held by who reads the shards.
    reading: tokio::sync::Mutex<()>,
}

struct State {
    map: Arc<Map>,
    /// How many times the shards were read.
    reading: u64,
    read_at: Option<Instant>,
}

/// The items of a batch that one shard owns.
#[derive(Debug)]
pub struct Part {
    pub ownership: Ownership,
    /// Their indices in the batch, in order.
    pub items: Vec<usize>,
}

/// A batch by shards.
#[derive(Debug, Default)]
pub struct Parts {
    pub owned: Vec<Part>,
    /// The items whose bucket is being moved.
    pub moving: Vec<usize>,
    /// The items that no shard can be asked about, and why.
    pub unavailable: Vec<(usize, Unowned)>,
}

impl Router {
    /// A service with one shard.
    pub fn one(pool: Pool) -> Self {
        let state = State { map: Arc::new(Map::unread()), reading: 0, read_at: None };
        let inner =
            Inner { shards: vec![pool], state: Mutex::new(state), reading: tokio::sync::Mutex::new(()) };
        Self(Arc::new(inner))
    }

    /// The shard of these users, who are on one.
    ///
    /// # Errors
    /// When no shard owns them, or several do.
    pub async fn ownership(&self, users: &[Uuid]) -> Result<Ownership, Unowned> {
        let mut parts = self.split(users).await;
        match (parts.owned.pop(), parts.moving.is_empty(), parts.unavailable.pop()) {
            (_, _, Some((_, why))) => Err(why),
            (_, false, None) => Err(Unowned::Moving),
            (Some(part), true, None) if parts.owned.is_empty() => Ok(part.ownership),
            (Some(_), true, None) => Err(Unowned::Apart),
            // Nobody was asked about.
            (None, true, None) => Err(Unowned::Away),
        }
    }

    /// The items of a batch by the shards that own their users. `users`: of each item.
    pub async fn split(&self, users: &[Uuid]) -> Parts {
        let (map, reading) = self.current();
        let parts = self.split_by(&map, reading, users);
        if parts.moving.is_empty() && parts.unavailable.is_empty() {
            return parts;
        }
        self.read(|state| {
            state.reading == reading && state.read_at.is_none_or(|at| at.elapsed() >= READ_INTERVAL)
        })
        .await;
        let (map, reading) = self.current();
        self.split_by(&map, reading, users)
    }

    fn split_by(&self, map: &Map, reading: u64, users: &[Uuid]) -> Parts {
        let mut parts = Parts::default();
        let mut named = [false; BUCKETS];
        for (item, user_id) in users.iter().enumerate() {
            let bucket = Bucket::of(*user_id);
            let holder = match map.owner(bucket) {
                Owner::Shard(holder) => holder,
                Owner::Nobody => {
                    parts.moving.push(item);
                    continue;
                }
                Owner::Away => {
                    parts.unavailable.push((item, Unowned::Away));
                    continue;
                }
                Owner::Contested => {
                    parts.unavailable.push((item, Unowned::Contested));
                    continue;
                }
            };
            // A handful of shards.
            let at = parts.owned.iter().position(|part| part.ownership.shard == holder.shard);
            let at = at.unwrap_or_else(|| {
                let ownership = Ownership {
                    pool: self.0.shards[holder.shard].clone(),
                    shard: holder.shard,
                    reading,
                    buckets: Vec::new(),
                    epochs: Vec::new(),
                };
                parts.owned.push(Part { ownership, items: Vec::with_capacity(users.len()) });
                parts.owned.len() - 1
            });
            let part = &mut parts.owned[at];
            part.items.push(item);
            if !std::mem::replace(&mut named[bucket.index()], true) {
                part.ownership.buckets.push(bucket.number());
                part.ownership.epochs.push(holder.epoch);
            }
        }
        parts
    }

    /// Does `work` about a user. It is repeated when its shard refuses it, and waits while no shard owns the user.
    ///
    /// # Errors
    /// When `work` failed, no shard can be asked, or a move has not ended in time.
    pub async fn repeat<T, F>(&self, user_id: Uuid, mut work: impl FnMut(Ownership) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let until = Instant::now() + WAIT_TIMEOUT;
        let mut pauses = backoff::unlimited(PAUSE_MAX);
        let mut was_refused = false;
        loop {
            let error = match self.ownership(&[user_id]).await {
                Ok(ownership) => {
                    let known = ownership.clone();
                    match work(ownership).await {
                        Err(error) if is_refused(&error) => {
                            self.refused(&known).await;
                            // The map that was read may have the owner.
                            if !std::mem::replace(&mut was_refused, true) {
                                continue;
                            }
                            error
                        }
                        done => return done,
                    }
                }
                Err(Unowned::Moving) => Unowned::Moving.into(),
                Err(why) => return Err(why.into()),
            };
            if Instant::now() >= until {
                return Err(error).context("the user's bucket was not moved in time");
            }
            sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// A shard has refused work in the name of `known`: reads the shards again, unless that was done meanwhile.
    pub async fn refused(&self, known: &Ownership) {
        tracing::info!(buckets = ?known.buckets, "a shard refused work; the owners of all buckets are read again");
        self.read(|state| state.reading == known.reading).await;
    }

    fn current(&self) -> (Arc<Map>, u64) {
        let state = self.state();
        (state.map.clone(), state.reading)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the shards, if that is still due once nobody else does.
    async fn read(&self, is_due: impl Fn(&State) -> bool) {
        let _reading = self.0.reading.lock().await;
        if !is_due(&self.state()) {
            return;
        }
        let answers = join_all(self.0.shards.iter().map(answer)).await;
        let mut state = self.state();
        let next = state.map.next(&answers);
        let contested: Vec<i16> = next.contested().map(Bucket::number).collect();
        if !contested.is_empty() {
            tracing::error!(
                buckets = ?contested,
                "two shards own these buckets at one epoch; their users are served by neither until an operator has found out"
            );
        }
        *state = State { map: Arc::new(next), reading: state.reading + 1, read_at: Some(Instant::now()) };
    }
}

async fn answer(shard: &Pool) -> Answer {
    match timeout(READ_TIMEOUT, rows(shard)).await {
        Ok(Ok(rows)) => Answer::Rows(rows),
        Ok(Err(error)) => {
            tracing::warn!(error = log_text(&error), "the buckets of a shard cannot be read");
            Answer::Away
        }
        Err(_) => {
            tracing::warn!("the buckets of a shard cannot be read: it does not answer in time");
            Answer::Away
        }
    }
}

async fn rows(shard: &Pool) -> anyhow::Result<Vec<BucketRow>> {
    let client = shard.get().await.context("no connection to the database")?;
    let rows = client.query(READ, &[]).await.context("cannot read which buckets the database owns")?;
    rows.iter()
        .map(|row| {
            let number = row.try_get(0)?;
            let bucket = Bucket::new(number).with_context(|| format!("there is no bucket {number}"))?;
            Ok(BucketRow { bucket, epoch: row.try_get(1)?, owned: row.try_get(2)? })
        })
        .collect()
}
