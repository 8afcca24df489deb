//! Waits until nothing moves: what holds only at rest must not be asked of a system that has just been loaded.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::hear;
use super::places::{Part, Places};
use super::relay;
use super::seen::Links;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// What is on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Motion {
    /// Payments that have not ended.
    open: i64,
    /// Messages in the work queue.
    waiting: u32,
    /// Records that some group has not applied.
    behind: i64,
    /// Sources whose log the relay has not told to its end.
    untold: Vec<String>,
    /// Records on the topics that groups hear, and payments: both only ever grow.
    there: i64,
    payments: i64,
}

impl Motion {
    pub fn is_still(&self) -> bool {
        (self.open, self.waiting, self.behind) == (0, 0, 0) && self.untold.is_empty()
    }
}

impl fmt::Display for Motion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} payments have not ended, {} messages wait in the queue, {} records are not applied",
            self.open, self.waiting, self.behind
        )?;
        if !self.untold.is_empty() {
            write!(f, ", the relay is behind in {}", self.untold.join(", "))?;
        }
        Ok(())
    }
}

/// Waits until two looks in a row see nothing move, or `patience` is over.
pub async fn settle(places: &Places, links: &Links, patience: Duration) -> Result<Motion> {
    let began = Instant::now();
    let mut before = None;
    let mut marks = Marks::default();
    loop {
        let motion = look(places, links, &mut marks).await?;
        if motion.is_still() && before.as_ref() == Some(&motion) {
            return Ok(motion);
        }
        if began.elapsed() > patience {
            return Ok(motion);
        }
        before = Some(motion);
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether what was seen at rest still is.
pub async fn is_still(places: &Places, links: &Links, rest: &Motion) -> Result<bool> {
    // Every look at a moment may find the relay busy with somebody else's log: only what concerns us counts.
    let now = look(places, links, &mut Marks::default()).await?;
    Ok((now.payments, now.there, now.open, now.behind) == (rest.payments, rest.there, rest.open, rest.behind))
}

/// The end of each database's log when nothing else was seen to move: the relay has to get there.
#[derive(Default)]
struct Marks(Vec<(&'static str, u64)>);

async fn look(places: &Places, links: &Links, marks: &mut Marks) -> Result<Motion> {
    let mut motion = Motion::default();
    if let Some(client) = &links.payments {
        let count =
            "select count(*), count(*) filter (where status in ('initiated', 'authorized')) from payments";
        let row = client.query_one(count, &[]).await.context("payments")?;
        (motion.payments, motion.open) = (row.get(0), row.get(1));
    }
    if let Some(url) = places.of(Part::Queue) {
        motion.waiting = hear::waiting(url, &places.queue).await?;
    }
    let Some(brokers) = places.of(Part::Kafka) else { return Ok(motion) };
    if marks.0.is_empty() && motion.is_still() {
        for (name, client) in links.all() {
            marks.0.push((name, relay::log_end(client).await.context(name)?));
        }
    }
    let (brokers, places) = (brokers.to_owned(), places.clone());
    let listen = move || Ok((hear::memories(&brokers, &places)?, hear::lags(&brokers, &places)?));
    let heard: Result<_> = tokio::task::spawn_blocking(listen).await?;
    let (memories, lags) = heard.context("Kafka")?;
    motion.behind = lags.iter().map(|lag| lag.behind).sum();
    motion.there = lags.iter().map(|lag| lag.there).sum();
    for (name, mark) in &marks.0 {
        let behind = memories.iter().any(|memory| memory.source == *name && memory.acknowledged < *mark);
        if behind {
            motion.untold.push((*name).to_owned());
        }
    }
    Ok(motion)
}
