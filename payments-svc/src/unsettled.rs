//! Measures how old the payments are that are not terminal, so that one that is stuck is seen, after a restart too.
//!
//! * Payments are read by their age, once, when they are [`OVERDUE`]: nearly all have ended by then. Those that have not are
//!   kept in RAM and looked up by key until they end.
//! * What was there when the process started is found by a walk through the table, a few blocks at a time, and again a day
//!   after that: a restore, or a clock that was set back, brings rows with an age that was read before.
//! * A look costs five small statements: the clock, whether other users are owned, the rows accepted since the last look, at most
//!   [`KNOWN_MAX`] keys, and a fiftieth of the interval for the walk. It costs the same whatever the age of the oldest payment.
//!   It grows with the table, since the summaries of the range index are read whole: 5 to 9 ms for two million payments (1.2
//!   GB), on 2 cores.
//! * No index names a column that a step updates: the age never changes, and the walk needs none.
//! * The kept payments are bounded. While most of the room is used, nothing more is read, and the place to go on is kept.
//! * Each shard is looked at by itself, and walked through again once it owns other users than before. One that does not answer in
//!   time ends the look.
//! * An instance that cannot read reports nothing. Every instance measures the same rows, so their figures are equal.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use saga::CancellationToken;
use saga::postgres::Pool;
use saga::shards::Router;
use saga::telemetry::log_text;

use crate::metrics::SettlingMetrics;
use crate::store::{self, UnsettledPayment};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// The age at which a payment is read. It is longer than an acceptance can take (15 seconds a statement), so that every row
/// of that age is visible.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);
/// Payments that are kept at most.
const KNOWN_MAX: usize = 1000;
/// The time of acceptance that one statement reads at most, so that its duration is bounded after an outage too.
const WINDOW_MAX: SignedDuration = SignedDuration::from_mins(10);
/// Reading by age, and walking, take one fiftieth of the interval each.
const TIME_DIVISOR: u32 = 50;
/// Blocks of the table per statement of the walk: 4 MB.
const WALK_BLOCKS_MAX: u64 = 512;
/// From the end of a walk to the next one.
const WALK_INTERVAL: Duration = Duration::from_hours(24);

/// What is known of the payments that are not terminal.
struct Tracker {
    room: usize,
    known: BTreeSet<UnsettledPayment>,
    /// Every payment that was accepted from the start on and before this has ended or is known.
    read_to: Option<Timestamp>,
}

impl Tracker {
    fn new(room: usize) -> Self {
        Self { room, known: BTreeSet::new(), read_to: None }
    }

    /// The times of acceptance to read next; `None` when all is read, or when there is no room.
    fn next_window(&mut self, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let overdue = before(now, OVERDUE);
        let from = *self.read_to.get_or_insert(overdue);
        if overdue <= from {
            // Less when the clock was set back: what is accepted now is older than what was read.
            self.read_to = Some(overdue);
            return None;
        }
        if self.known.len() * 2 > self.room {
            return None;
        }
        let window_end = from.checked_add(WINDOW_MAX).unwrap_or(overdue);
        Some((from, overdue.min(window_end)))
    }

    /// Takes in the payments of a window that ends at `until`, oldest first: all of them, or the first `room`.
    fn read(&mut self, found: &[UnsettledPayment], until: Timestamp) {
        let all_known = found.iter().all(|payment| self.add(*payment));
        let rest = found.last().filter(|_| !all_known || found.len() >= self.room);
        self.read_to = Some(rest.map_or(until, |last| last.initiated_at));
    }

    /// Takes in the payments of a walk. Younger ones are read by their age.
    fn add_walked(&mut self, found: &[UnsettledPayment]) {
        let read_to = self.read_to;
        for payment in found.iter().filter(|payment| read_to.is_some_and(|to| payment.initiated_at < to)) {
            self.add(*payment);
        }
    }

    /// False when there is no room.
    fn add(&mut self, payment: UnsettledPayment) -> bool {
        if self.known.len() >= self.room {
            return self.known.contains(&payment);
        }
        self.known.insert(payment);
        true
    }

    fn is_full(&self) -> bool {
        self.known.len() >= self.room
    }

    /// Forgets all but these.
    fn keep(&mut self, still: &HashSet<UnsettledPayment>) {
        self.known.retain(|payment| still.contains(payment));
    }

    /// In seconds.
    fn ages(&self, now: Timestamp) -> Vec<i64> {
        self.known.iter().map(|payment| now.duration_since(payment.initiated_at).as_secs()).collect()
    }
}

fn before(now: Timestamp, duration: SignedDuration) -> Timestamp {
    now.checked_sub(duration).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The place of a walk through the table.
enum Walk {
    At(u64),
    DoneAt(Instant),
}

/// Looks for payments without an end, from time to time.
pub struct Unsettled {
    router: Router,
    metrics: SettlingMetrics,
    /// By the name of the shard.
    shards: HashMap<String, OfShard>,
}

/// What is known of one shard.
struct OfShard {
    tracker: Tracker,
    walk: Walk,
    /// Which users it owned at the last look ([`store::ownership_changes`]).
    owned: Option<i64>,
}

impl Unsettled {
    pub fn new(router: Router, metrics: SettlingMetrics) -> Self {
        Self { router, metrics, shards: HashMap::new() }
    }

    /// Looks once per interval, until `shutdown`.
    pub async fn watch(mut self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.look().await {
                self.metrics.forget_unsettled();
                tracing::warn!(
                    error = log_text(&error),
                    "payments without an end cannot be looked for; it is tried again"
                );
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// One look at every shard, whose result is in the metrics.
    ///
    /// # Errors
    /// When a database does not answer.
    pub async fn look(&mut self) -> Result<()> {
        let mut ages = Vec::new();
        for (name, pool) in self.router.shards() {
            let of_shard = self.shards.entry(name).or_insert_with(OfShard::new);
            ages.extend(self.router.in_time(of_shard.look(&pool)).await?);
        }
        self.metrics.show_unsettled(&ages);
        Ok(())
    }
}

impl OfShard {
    fn new() -> Self {
        Self { tracker: Tracker::new(KNOWN_MAX), walk: Walk::At(0), owned: None }
    }

    /// The ages in seconds of those without an end.
    async fn look(&mut self, pool: &Pool) -> Result<Vec<i64>> {
        let now = store::clock(pool).await?;
        let owned = store::ownership_changes(pool).await?;
        if self.owned.replace(owned).is_some_and(|before| before != owned) {
            self.walk = Walk::At(0);
        }
        if !self.tracker.known.is_empty() {
            let known: Vec<UnsettledPayment> = self.tracker.known.iter().copied().collect();
            let still = store::still_unsettled(pool, &known).await?;
            self.tracker.keep(&still.into_iter().collect());
        }
        self.read_by_age(pool, now).await?;
        self.walk(pool).await?;
        Ok(self.tracker.ages(now))
    }

    async fn read_by_age(&mut self, pool: &Pool, now: Timestamp) -> Result<()> {
        let begun = Instant::now();
        while let Some((from, until)) = self.tracker.next_window(now) {
            let found = store::unsettled_by_age(pool, from, until, self.tracker.room).await?;
            self.tracker.read(&found, until);
            if begun.elapsed() >= LOOK_INTERVAL / TIME_DIVISOR {
                break;
            }
        }
        Ok(())
    }

    async fn walk(&mut self, pool: &Pool) -> Result<()> {
        if let Walk::DoneAt(at) = self.walk
            && at.elapsed() >= WALK_INTERVAL
        {
            self.walk = Walk::At(0);
        }
        let begun = Instant::now();
        while let Walk::At(block) = self.walk
            && !self.tracker.is_full()
            && begun.elapsed() < LOOK_INTERVAL / TIME_DIVISOR
        {
            let step = store::unsettled_by_block(pool, block, WALK_BLOCKS_MAX).await?;
            self.tracker.add_walked(&step.found);
            self.walk = step.next.map_or_else(|| Walk::DoneAt(Instant::now()), Walk::At);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "unsettled_tests.rs"]
mod tests;
