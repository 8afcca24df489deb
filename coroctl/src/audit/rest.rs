//! Waits until nothing moves: what holds only at rest must not be asked of a system that has just been loaded.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::hear;
use super::places::{Part, Places};
use super::relay::{self, Memory};
use super::seen::Links;

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What is on its way.
#[derive(Clone, Debug, Default)]
pub struct Motion {
    counts: Counts,
    /// Sources whose log the relay has not told to its end.
    untold: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Payments that have not ended.
    open: i64,
    /// Messages in the work queue.
    waiting: u32,
    /// Records that some group has not applied.
    behind: i64,
    /// Payments, and records on the topics that groups hear: both only ever grow.
    payments: i64,
    there: i64,
}

impl Motion {
    pub fn is_still(&self) -> bool {
        let Counts { open, waiting, behind, .. } = self.counts;
        (open, waiting, behind) == (0, 0, 0) && self.untold.is_empty()
    }
}

impl fmt::Display for Motion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { open, waiting, behind, .. } = self.counts;
        write!(
            f,
            "{open} payments have not ended, {waiting} messages wait in the queue, {behind} records are not applied"
        )?;
        if !self.untold.is_empty() {
            write!(f, ", the relay is behind in {}", self.untold.join(", "))?;
        }
        Ok(())
    }
}

/// Waits until nothing moves, or `patience` is over. Nothing moves when two looks in a row find nothing on its way
/// and nothing new, and the relay has then got to where the logs ended at the second of them.
pub async fn settle(places: &Places, links: &Links, patience: Duration) -> Result<Motion> {
    let began = Instant::now();
    let mut before = None;
    let mut ends = None;
    loop {
        let Look { counts, memories } = look(places, links).await?;
        let mut motion = Motion { counts, untold: Vec::new() };
        if motion.is_still() && before == Some(counts) {
            let ends = match &mut ends {
                Some(ends) => &*ends,
                ends @ None => &*ends.insert(log_ends(links).await?),
            };
            let behind = |(name, end): &(&'static str, u64)| {
                let late = |memory: &Memory| memory.source == *name && memory.acknowledged < *end;
                memories.iter().any(late).then_some(*name)
            };
            motion.untold = ends.iter().filter_map(behind).collect();
            if motion.is_still() {
                return Ok(motion);
            }
        } else {
            ends = None;
        }
        if began.elapsed() > patience {
            return Ok(motion);
        }
        before = Some(counts);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether what was at rest has stayed so.
pub async fn has_stayed(places: &Places, links: &Links, rest: &Motion) -> Result<bool> {
    Ok(look(places, links).await?.counts == rest.counts)
}

async fn log_ends(links: &Links) -> Result<Vec<(&'static str, u64)>> {
    let mut ends = Vec::new();
    for (name, client) in links.all() {
        ends.push((name, relay::log_end(client).await.context(name)?));
    }
    Ok(ends)
}

struct Look {
    counts: Counts,
    memories: Vec<Memory>,
}

async fn look(places: &Places, links: &Links) -> Result<Look> {
    let mut counts = Counts::default();
    if let Some(client) = &links.payments {
        let count =
            "select count(*), count(*) filter (where status in ('initiated', 'authorized')) from payments";
        let row = client.query_one(count, &[]).await.context("payments")?;
        (counts.payments, counts.open) = (row.get(0), row.get(1));
    }
    if let Some(url) = places.of(Part::Queue) {
        counts.waiting = hear::waiting(url, &places.queue).await?;
    }
    let Some(brokers) = places.of(Part::Kafka) else { return Ok(Look { counts, memories: Vec::new() }) };
    let (brokers, places) = (brokers.to_owned(), places.clone());
    let listen = move || Ok((hear::memories(&brokers, &places)?, hear::lags(&brokers, &places)?));
    let heard: Result<_> = tokio::task::spawn_blocking(listen).await?;
    let (memories, lags) = heard.context("Kafka")?;
    counts.behind = lags.iter().map(|lag| lag.behind).sum();
    counts.there = lags.iter().map(|lag| lag.there).sum();
    Ok(Look { counts, memories })
}
