//! Finds the shard of each user, and repeats what a shard refuses.
//!
//! * The map is read when it is first needed, when a shard refuses, and while a bucket has no owner; each time by one task, for
//!   all that wait. So a service starts while its database is away.
//! * The list of shards is read again with the map.
//! * Work that is refused has written nothing. It is repeated once the map was read again.
//! * Where there are several shards, one that is away is not asked until it answers again (`away`). Its users are answered so at once.
//!   Work that a shard does not end in time is given up, and the shard is away if it does not serve then (`in_time`).
//! * Work about a bucket that nobody owns waits: a request for [`WAIT_TIMEOUT`] at most; an event without end,
//!   though what is behind it does not ([`consumer`](crate::consumer)).

mod away;
mod batch;
mod in_time;
mod metrics;
mod shard;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use prometheus::Registry;
use tokio::time::sleep;
use uuid::Uuid;

use self::in_time::WORK_TIMEOUT;
use self::metrics::RouterMetrics;
use self::shard::{List, Shard, Standing, answer_unless_away};
use super::bucket::{BUCKETS, Bucket};
use super::list::ListedShard;
use super::map::{Map, Owner};
use super::ownership::{Ownership, Unowned, is_refused};
use super::settings::Settings;
use crate::backoff;
use crate::postgres::{self, Pool};
use crate::telemetry::log_text;

/// How long a request waits for a bucket that is being moved. A move lets go after 300 milliseconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The shards are not asked more often while a bucket has no owner.
const READ_INTERVAL: Duration = Duration::from_millis(20);

/// Knows the shards of a service. Clones share what they know.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    /// Where the shards are listed, if there may be several.
    list: Option<List>,
    state: Mutex<State>,
    /// Held by who reads the shards.
    reading: tokio::sync::Mutex<()>,
    metrics: OnceLock<RouterMetrics>,
    /// How long work on one of several shards may take.
    work_timeout: Duration,
}

struct State {
    shards: Vec<Shard>,
    map: Arc<Map>,
    /// How many times the shards were read.
    reading: u64,
    read_at: Option<Instant>,
    /// Whether a task asks the shards that are away.
    is_probed: bool,
}

impl State {
    /// How long the shards are not asked yet.
    fn until_due(&self) -> Duration {
        self.read_at.map_or(Duration::ZERO, |at| READ_INTERVAL.saturating_sub(at.elapsed()))
    }
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
    /// The items whose shard is away, while there are others.
    pub away: Vec<usize>,
    /// The items that no shard can be asked about, and why.
    pub unavailable: Vec<(usize, Unowned)>,
}

impl Router {
    /// A service with one shard.
    pub fn one(pool: Pool) -> Self {
        let listed = ListedShard { name: "one".to_owned(), url: String::new() };
        Self::new(vec![Shard { listed, pool, is_listed: true, is_away: false }], None, WORK_TIMEOUT)
    }

    /// The router of a service of the saga, which gets no connection to a closed database.
    ///
    /// # Errors
    /// When the list or a URL is malformed.
    pub fn of_service(settings: &Settings, service: &'static str) -> anyhow::Result<Self> {
        let size_max = settings.pool_size;
        let open = move |url: &str| postgres::guarded_pool(url, size_max, service);
        match &settings.shards {
            Some(list) => Self::listed(list, open),
            None => open(&settings.database_url).map(Self::one),
        }
    }

    /// A service with the shards of a list. `open` makes the pool of a shard of its URL.
    ///
    /// # Errors
    /// When the list or a URL is malformed.
    pub fn listed(
        text: &str,
        open: impl Fn(&str) -> anyhow::Result<Pool> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::listed_within(text, open, WORK_TIMEOUT)
    }

    fn listed_within(
        text: &str,
        open: impl Fn(&str) -> anyhow::Result<Pool> + Send + Sync + 'static,
        work_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let list = List { text: text.to_owned(), open: Box::new(open) };
        let mut shards = Vec::new();
        list.update(text, &mut shards)?;
        Ok(Self::new(shards, Some(list), work_timeout))
    }

    fn new(shards: Vec<Shard>, list: Option<List>, work_timeout: Duration) -> Self {
        let map = Arc::new(Map::unread());
        let state = State { shards, map, reading: 0, read_at: None, is_probed: false };
        let (state, reading) = (Mutex::new(state), tokio::sync::Mutex::new(()));
        Self(Arc::new(Inner { list, state, reading, metrics: OnceLock::new(), work_timeout }))
    }

    /// Shows its metrics from now on.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(&self, registry: &Registry) -> anyhow::Result<()> {
        // A second registry would be an error of its own.
        let _ = self.0.metrics.set(RouterMetrics::register(registry)?);
        Ok(())
    }

    /// The shards of the list, by name, for work that is done on each of them; those that are away come last.
    pub fn shards(&self) -> Vec<(String, Pool)> {
        let state = self.state();
        let of = |wanted| state.shards.iter().filter(move |shard| shard.standing() == wanted);
        let listed = of(Standing::Here).chain(of(Standing::Away));
        listed.map(|shard| (shard.listed.name.clone(), shard.pool.clone())).collect()
    }

    /// As [`Router::shards`], by index.
    pub(crate) fn places(&self) -> Vec<(usize, Pool)> {
        let state = self.state();
        let of =
            |wanted| state.shards.iter().enumerate().filter(move |(_, shard)| shard.standing() == wanted);
        let listed = of(Standing::Here).chain(of(Standing::Away));
        listed.map(|(index, shard)| (index, shard.pool.clone())).collect()
    }

    /// The database of a user, if that is another one than this shard. `None`, too, when no shard can be asked about the user.
    pub(crate) async fn apart(&self, shard: usize, user_id: Uuid) -> Option<Pool> {
        let owned = self.ownership(&[user_id]).await.ok()?;
        (owned.shard != shard).then_some(owned.pool)
    }

    /// The index of the shard that owned the user last, as far as this process knows; of the first one if it knows nothing.
    pub fn last_shard(&self, user_id: Uuid) -> usize {
        self.current().0.last_shard(Bucket::of(user_id)).unwrap_or_default()
    }

    /// The shard of these users, who are on one.
    ///
    /// # Errors
    /// When no shard owns them, or several do.
    pub async fn ownership(&self, users: &[Uuid]) -> Result<Ownership, Unowned> {
        let mut parts = self.split(users).await;
        if !parts.away.is_empty() {
            return Err(Unowned::Away);
        }
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
        if parts.unavailable.iter().any(|(_, why)| *why == Unowned::Away) {
            self.until_read_is_due().await;
        }
        self.read(|state| state.reading == reading && state.until_due().is_zero()).await;
        let (map, reading) = self.current();
        self.split_by(&map, reading, users)
    }

    fn split_by(&self, map: &Map, reading: u64, users: &[Uuid]) -> Parts {
        let mut parts = Parts::default();
        let mut named = [false; BUCKETS];
        let away = self.away();
        for (item, user_id) in users.iter().enumerate() {
            let bucket = Bucket::of(*user_id);
            let holder = match map.owner(bucket) {
                Owner::Shard(holder) if away.contains(&holder.shard) => {
                    parts.away.push(item);
                    continue;
                }
                Owner::Shard(holder) => holder,
                // It is read who owns the bucket once every shard answers.
                Owner::Away if !away.is_empty() => {
                    parts.away.push(item);
                    continue;
                }
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
                    match self.in_time(work(ownership)).await {
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
                if let Some(metrics) = self.0.metrics.get() {
                    metrics.unowned.inc();
                }
                return Err(error).context("the user's bucket was not moved in time");
            }
            sleep(pauses.next().unwrap_or(PAUSE_MAX)).await;
        }
    }

    /// Whether a shard has refused the work that failed with `error`. Then the shards are read again, unless that was done
    /// meanwhile. Where the shard is away instead, it is not asked again before it answers.
    pub async fn was_refused(&self, known: &Ownership, error: &anyhow::Error) -> bool {
        let is_refused = is_refused(error);
        self.may_be_away(known.shard, error).await;
        if is_refused {
            tracing::info!(
                "a shard refused work about {} buckets; who owns them is read again",
                known.buckets.len()
            );
            if let Some(metrics) = self.0.metrics.get() {
                metrics.refusals.inc();
            }
            self.read(|state| state.reading == known.reading).await;
        }
        is_refused
    }

    fn nothing_of(&self, shard: usize, reading: u64) -> Ownership {
        let pool = self.state().shards[shard].pool.clone();
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
        let shards = self.update_list();
        let answers = join_all(shards.iter().map(answer_unless_away)).await;
        self.answered(&answers);
        let mut state = self.state();
        let next = state.map.next(&answers);
        let contested: Vec<i16> = next.contested().map(Bucket::number).collect();
        if !contested.is_empty() {
            tracing::error!(
                buckets = ?contested,
                "two shards own these buckets at one epoch; their users are served by neither until an operator has found out"
            );
        }
        if let Some(metrics) = self.0.metrics.get() {
            metrics.contested.set(contested.len() as i64);
        }
        (state.map, state.reading, state.read_at) = (Arc::new(next), state.reading + 1, Some(Instant::now()));
    }

    /// Waits until the shards may be read again: nobody is answered that the only database is away by a reading from before they
    /// asked, since it may have come back, and `/ready` said so.
    async fn until_read_is_due(&self) {
        let pause = self.state().until_due();
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    /// The shards of the list as it is now. While it cannot be used, those before.
    fn update_list(&self) -> Vec<Shard> {
        let mut state = self.state();
        if let Some(list) = &self.0.list
            && let Err(error) = list.update(&secret_files::current(&list.text), &mut state.shards)
        {
            tracing::warn!(error = log_text(&error), "the list of shards cannot be used any more");
        }
        state.shards.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::map::{Answer, BucketRow};

    fn nowhere() -> Pool {
        crate::http::install_provider();
        postgres::pool("postgres://nobody@127.0.0.1:9/none", 1, "test").unwrap()
    }

    #[tokio::test]
    async fn while_the_one_database_is_away_nobody_waits_for_a_move_of_it() {
        let router = Router::one(nowhere());
        let users = [Uuid::from_u128(1), Uuid::from_u128(2)];
        assert_eq!(router.ownership(&users).await.unwrap_err(), Unowned::Away);
        let parts = router.split(&users).await;
        assert!(parts.away.is_empty(), "there is no other one, so it is asked each time");
        assert_eq!(parts.unavailable, [(0, Unowned::Away), (1, Unowned::Away)]);
        let began = Instant::now();
        let failed = router.repeat(users[0], |_| async { anyhow::Ok(()) }).await.unwrap_err();
        assert_eq!(failed.downcast_ref(), Some(&Unowned::Away));
        assert!(began.elapsed() < WAIT_TIMEOUT);
    }

    #[tokio::test]
    async fn whoever_asks_for_the_only_database_is_answered_by_a_reading_of_their_own_time() {
        let router = Router::one(nowhere());
        for reading in 1..4 {
            assert_eq!(router.ownership(&[Uuid::from_u128(1)]).await.unwrap_err(), Unowned::Away);
            assert_eq!(router.current().1, reading);
        }
    }

    /// What is about no user needs to know of no bucket.
    #[tokio::test]
    async fn work_about_nobody_names_nothing() {
        let owned = Router::one(nowhere()).ownership(&[]).await.unwrap();
        assert_eq!((owned.buckets, owned.epochs), (vec![], vec![]));
    }

    #[tokio::test]
    async fn a_statement_names_each_bucket_once_with_its_epoch() {
        let router = Router::one(nowhere());
        let rows = Bucket::all().map(|bucket| BucketRow { bucket, epoch: 5, owned: bucket.index() != 573 });
        let map = Map::unread().next(&[Answer::Rows(rows.collect())]);
        let [moving, one]: [Uuid; 2] =
            ["0198c0de-0000-7000-8000-000000000001", "0198c0de-0000-7000-8000-00000000000a"]
                .map(|id| id.parse().unwrap());
        let parts = router.split_by(&map, 1, &[one, moving, one]);
        assert_eq!(parts.moving, [1]);
        let [part] = &parts.owned[..] else { panic!("{parts:?}") };
        assert_eq!(part.items, [0, 2]);
        assert_eq!((&part.ownership.buckets[..], &part.ownership.epochs[..]), (&[634][..], &[5][..]));
    }
}
