//! Finds the shard of each user, and repeats what a shard refuses.
//!
//! * The map is read when it is first needed, when a shard refuses, and while a bucket has no owner; each time by one task, for
//!   all that wait. So a service starts while its database is away.
//! * Work that is refused has written nothing. It is repeated once the map was read again.
//! * Work about a bucket that nobody owns waits: a request for [`WAIT_TIMEOUT`] at most, an event without end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::bucket::{BUCKETS, Bucket};
use super::map::{Answer, BucketRow, Map, Owner};
use super::ownership::{Ownership, Unowned, is_refused};
use crate::backoff;
use crate::consumer::{ApplyError, BatchCounts, MissingRow};
use crate::parked::Parked;
use crate::postgres::Pool;
use crate::telemetry::log_text;

/// How long a request waits for a bucket that is being moved. A move lets go after 300 milliseconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The shards are not asked more often while a bucket has no owner.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// A shard that has not answered by then is away. It includes the wait for a connection.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds in which a batch is done before the rest of it comes again with others.
const ROUNDS_MAX: usize = 3;

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
            // Of nobody.
            (None, true, None) => Ok(self.nothing_of(0, self.current().1)),
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
                let ownership = self.nothing_of(holder.shard, reading);
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
    pub async fn repeat<T, F>(&self, user_id: Uuid, work: impl FnMut(Ownership) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        self.repeat_for(&[user_id], work).await
    }

    /// As [`Router::repeat`], about users who are on one shard.
    ///
    /// # Errors
    /// As there.
    pub async fn repeat_for<T, F>(
        &self,
        users: &[Uuid],
        mut work: impl FnMut(Ownership) -> F,
    ) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let until = Instant::now() + WAIT_TIMEOUT;
        let mut pauses = backoff::unlimited(PAUSE_MAX);
        let mut was_refused = false;
        loop {
            let error = match self.ownership(users).await {
                Ok(ownership) => {
                    let known = ownership.clone();
                    match work(ownership).await {
                        Err(error) if self.was_refused(&known, &error).await => {
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

    /// Does `work` about a batch, on each shard the items that it owns; `users` are those of the items. Returns a result per
    /// item, in order. `None`: the item's bucket is being moved, and it has to come again.
    pub async fn each<R, F>(
        &self,
        users: &[Uuid],
        work: impl Fn(Ownership, Vec<usize>) -> F,
    ) -> Vec<Option<anyhow::Result<R>>>
    where
        F: Future<Output = anyhow::Result<Vec<R>>>,
    {
        let mut results: Vec<Option<anyhow::Result<R>>> = users.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..users.len()).collect();
        for _ in 0..ROUNDS_MAX {
            let of_left: Vec<Uuid> = left.iter().map(|&item| users[item]).collect();
            let parts = self.split(&of_left).await;
            for (item, why) in parts.unavailable {
                results[left[item]] = Some(Err(why.into()));
            }
            let done = parts.owned.into_iter().map(|part| {
                let items: Vec<usize> = part.items.iter().map(|&item| left[item]).collect();
                let (known, work) = (part.ownership.clone(), work(part.ownership, items.clone()));
                async move { (known, items, work.await) }
            });
            let mut again = Vec::new();
            for (known, items, done) in join_all(done).await {
                match done {
                    Ok(done) => {
                        items.into_iter().zip(done).for_each(|(item, done)| results[item] = Some(Ok(done)));
                    }
                    Err(error) if self.was_refused(&known, &error).await => again.extend(items),
                    Err(error) => {
                        let text = log_text(&error);
                        items.into_iter().for_each(|item| results[item] = Some(Err(anyhow!(text.clone()))));
                    }
                }
            }
            if again.is_empty() {
                break;
            }
            left = again;
        }
        results
    }

    /// Applies a batch of events, on each shard those that it owns, and parks `unreadable`: each part in a transaction of its
    /// own. `users` are those of the events. `work` gets the indices of its events, and its messages to park.
    ///
    /// # Errors
    /// When buckets are being moved: nothing was applied then. When rows are missing or a shard failed: the other parts may be
    /// applied, and applying them again changes nothing.
    pub async fn apply<F>(
        &self,
        users: &[Uuid],
        unreadable: &[Parked],
        work: impl Fn(Ownership, Vec<usize>, Vec<Parked>) -> F,
    ) -> Result<BatchCounts, ApplyError>
    where
        F: Future<Output = Result<BatchCounts, ApplyError>>,
    {
        let mut parts = self.split(users).await;
        if let Some((_, why)) = parts.unavailable.pop() {
            return Err(why.into());
        }
        if !parts.moving.is_empty() {
            return Err(ApplyError::Moving(parts.moving));
        }
        let (mut counts, mut missing) = (BatchCounts::default(), Vec::new());
        for (part, unreadable) in self.with_unreadable(parts.owned, unreadable) {
            let (known, items) = (part.ownership.clone(), part.items.clone());
            match work(part.ownership, part.items, unreadable).await {
                Ok(done) => counts = counts.plus(done),
                Err(ApplyError::Missing(rows)) => missing.extend(
                    rows.into_iter().map(|row| MissingRow { index: items[row.index], what: row.what }),
                ),
                Err(ApplyError::Other(error)) => {
                    self.was_refused(&known, &error).await;
                    return Err(ApplyError::Other(error));
                }
                Err(moving @ ApplyError::Moving(_)) => return Err(moving),
            }
        }
        if missing.is_empty() { Ok(counts) } else { Err(ApplyError::Missing(missing)) }
    }

    /// Adds the messages to park. They have no user, so any shard may have them: the first part's.
    fn with_unreadable(&self, owned: Vec<Part>, unreadable: &[Parked]) -> Vec<(Part, Vec<Parked>)> {
        let mut parts: Vec<(Part, Vec<Parked>)> = owned.into_iter().map(|part| (part, Vec::new())).collect();
        if unreadable.is_empty() {
            return parts;
        }
        if parts.is_empty() {
            let (_, reading) = self.current();
            parts.push((Part { ownership: self.nothing_of(0, reading), items: Vec::new() }, Vec::new()));
        }
        parts[0].1 = unreadable.to_vec();
        parts
    }

    /// Whether a shard has refused the work that failed with `error`. Then the shards are read again, unless that was done
    /// meanwhile.
    pub async fn was_refused(&self, known: &Ownership, error: &anyhow::Error) -> bool {
        let is_refused = is_refused(error);
        if is_refused {
            tracing::info!(
                "a shard refused work about {} buckets; who owns them is read again",
                known.buckets.len()
            );
            self.read(|state| state.reading == known.reading).await;
        }
        is_refused
    }

    /// As [`Router::was_refused`], of a batch.
    pub async fn was_refused_in(&self, known: &Ownership, error: &ApplyError) -> bool {
        match error {
            ApplyError::Other(error) => self.was_refused(known, error).await,
            ApplyError::Missing(_) | ApplyError::Moving(_) => false,
        }
    }

    fn nothing_of(&self, shard: usize, reading: u64) -> Ownership {
        let pool = self.0.shards[shard].clone();
        Ownership { pool, shard, reading, buckets: Vec::new(), epochs: Vec::new() }
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
