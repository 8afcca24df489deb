//! Waits until no payment is under way: some checks hold only then.
//!
//! * Quiescent: two polls in a row find nothing unfinished and nothing new, and the relay has then emitted the WAL up
//!   to its end at the second poll.
//! * A wait that ends without quiescence is not an error: the report says what was still under way.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::connections::Connections;
use super::read::relay::{Checkpoint, WalEnd};
use super::read::{brokers, search};
use super::targets::{Target, Targets};
use crate::databases;
use crate::snapshots::Snapshots;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Work under way.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    counts: Counts,
    /// Databases whose WAL the relay has not emitted to its end.
    relay_behind: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Payments that have not ended.
    unfinished: i64,
    /// Messages in the work queue.
    queued: u32,
    /// Records that some group has not applied.
    lag: i64,
    /// Payments, and records on the topics that groups subscribe to: both only ever grow.
    payments: i64,
    records: i64,
}

impl InFlight {
    pub fn is_empty(&self) -> bool {
        let Counts { unfinished, queued, lag, .. } = self.counts;
        (unfinished, queued, lag) == (0, 0, 0) && self.relay_behind.is_empty()
    }
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { unfinished, queued, lag, .. } = self.counts;
        write!(
            f,
            "{unfinished} payments have not ended, {queued} messages wait in the queue, {lag} records are not applied"
        )?;
        if !self.relay_behind.is_empty() {
            write!(f, ", the relay is behind in {}", self.relay_behind.join(", "))?;
        }
        Ok(())
    }
}

/// Waits for quiescence, at most `timeout`; returns the work that is still under way.
///
/// # Errors
/// When a target does not answer.
pub async fn wait(targets: &Targets, connections: &Connections, timeout: Duration) -> Result<InFlight> {
    let began = Instant::now();
    let mut before = None;
    let mut ends = None;
    loop {
        let Poll { counts, checkpoints } = poll(targets, connections).await?;
        let mut in_flight = InFlight { counts, relay_behind: Vec::new() };
        if in_flight.is_empty() && before == Some(counts) {
            let ends = match &mut ends {
                Some(ends) => &*ends,
                ends @ None => &*ends.insert(wal_ends(connections).await?),
            };
            let behind = ends.iter().filter(|end| checkpoints.iter().any(|saved| end.is_ahead_of(saved)));
            let name = |end: &WalEnd| databases::name(end.service, end.shard.as_deref());
            in_flight.relay_behind = behind.map(name).collect();
            if in_flight.is_empty() {
                return Ok(in_flight);
            }
        } else {
            ends = None;
        }
        if began.elapsed() > timeout {
            return Ok(in_flight);
        }
        before = Some(counts);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether nothing has changed since `earlier`.
pub async fn persists(targets: &Targets, connections: &Connections, earlier: &InFlight) -> Result<bool> {
    Ok(poll(targets, connections).await?.counts == earlier.counts)
}

async fn wal_ends(connections: &Connections) -> Result<Vec<WalEnd>> {
    let mut ends = Vec::new();
    for of in connections.services() {
        for one in &of.databases {
            let end = WalEnd::read(of.service, one.shard.as_deref(), &one.client).await;
            ends.push(end.with_context(|| databases::name(of.service, one.shard.as_deref()))?);
        }
    }
    Ok(ends)
}

const COUNT: &str =
    "select count(*), count(*) filter (where status in ('initiated', 'authorized')) from {payments} p";

struct Poll {
    counts: Counts,
    checkpoints: Vec<Checkpoint>,
}

async fn poll(targets: &Targets, connections: &Connections) -> Result<Poll> {
    let mut counts = Counts::default();
    if let Some(databases) = &connections.payments {
        // The users of a bucket that is being moved are counted by the next poll.
        let snapshots = Snapshots::take(databases, Duration::ZERO).await?;
        for of in &snapshots.each {
            let count = of.rows.statement(COUNT);
            let row = of.client.query_one(&count, &[]).await.context("cannot count payments")?;
            counts.payments += row.get::<_, i64>(0);
            counts.unfinished += row.get::<_, i64>(1);
        }
        snapshots.end().await?;
    }
    if let Some(url) = targets.address(Target::Queue) {
        counts.queued = brokers::queue_depth(url, &targets.queue).await?;
    }
    let Some(brokers) = targets.kafka() else {
        return Ok(Poll { counts, checkpoints: Vec::new() });
    };
    let groups = brokers::groups(targets, search::group(connections.search.as_ref()).await?);
    let targets = targets.clone();
    let read = move || {
        let lags = brokers::group_lags(&brokers, &targets, &groups)?;
        Ok((brokers::checkpoints(&brokers, &targets)?, lags))
    };
    let answer: Result<_> = tokio::task::spawn_blocking(read).await?;
    let (checkpoints, lags) = answer.context("cannot read Kafka")?;
    counts.lag = lags.iter().map(|lag| lag.lag).sum();
    counts.records = lags.iter().map(|lag| lag.records).sum();
    Ok(Poll { counts, checkpoints })
}
