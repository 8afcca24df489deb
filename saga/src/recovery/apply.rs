//! Applies a topic to a restored database by the code with which the service consumes it.
//!
//! * A record that cannot be applied is parked, as ever: what was parked since the backup is parked again under the same id.
//! * An event whose row is missing is a finding and is not parked: whoever recovers may have named too late a time.
//! * A failure that may pass is tried again a few times; then the recovery ends with it, and may be run again.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use anyhow::bail;

use super::{Progress, Recovery};
use crate::backoff;
use crate::consumer::{ApplyError, BatchCounts, Decoding, EventHandler, MissingRow, Record};
use crate::parked::Parked;
use crate::postgres::{Failure, classify};
use crate::telemetry::log_text;

const TRIES_MAX: usize = 8;
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A record that the service consumes.
struct Item<E> {
    /// `None`: it cannot be read, or its data is refused by the database.
    event: Option<E>,
    /// The record as it would be parked, with the reason if there is no event.
    message: Parked,
}

/// The records of a topic by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    applied: usize,
    already: usize,
    parked: usize,
    missing: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { applied, already, parked, missing } = self;
        write!(f, "{applied} applied, {already} already, {parked} parked, {missing} without their row")
    }
}

/// What became of a part of a batch.
enum Verdict {
    Done(BatchCounts),
    Missing(Vec<MissingRow>),
    Poison(String),
    /// The users of these events, by index, are owned by other databases.
    OfOthers(Vec<usize>),
}

impl Recovery {
    /// Applies the records of `topic` in order. Nothing is done in a dry run: it lacks the rows that would be made before.
    ///
    /// # Errors
    /// When the topic cannot be read or the database failed. The batches before are committed.
    pub async fn apply<H>(&mut self, handler: &H, topic: &str) -> anyhow::Result<()>
    where
        H: EventHandler + Clone + Send + 'static,
        H::Event: Send + 'static,
    {
        if self.is_dry_run() {
            crate::say!("{topic}: not applied in a dry run");
            return Ok(());
        }
        let decoder = handler.clone();
        let mut batches = self.topic(topic).read(move |record| item(&decoder, record))?;
        let (mut counts, mut progress) = (Counts::default(), Progress::default());
        while let Some(batch) = batches.next().await? {
            self.apply_batch(handler, batch.into_iter().flatten().collect(), &mut counts).await?;
            progress.print(&format_args!("{topic}: {counts}"));
        }
        crate::say!("{topic}: {counts}");
        Ok(())
    }

    async fn apply_batch<H: EventHandler>(
        &mut self,
        handler: &H,
        batch: Vec<Item<H::Event>>,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        let mut parts = VecDeque::from([batch]);
        while let Some(mut part) = parts.pop_front() {
            if part.is_empty() {
                continue;
            }
            match apply_part(handler, &part).await? {
                Verdict::Done(done) => {
                    counts.applied += done.applied;
                    counts.already += done.already;
                    counts.parked += done.parked + part.iter().filter(|item| item.event.is_none()).count();
                }
                Verdict::Missing(rows) => {
                    counts.missing += rows.len();
                    parts.push_front(self.without_missing(part, rows));
                }
                Verdict::OfOthers(events) => {
                    self.of_others += events.len() as u64;
                    parts.push_front(without(part, &events));
                }
                Verdict::Poison(reason) if part.len() == 1 => {
                    part[0].event = None;
                    part[0].message.reason = reason;
                    parts.push_front(part);
                }
                Verdict::Poison(_) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push_front(rest);
                    parts.push_front(part);
                }
            }
        }
        Ok(())
    }

    /// Reports the events whose rows are missing, and returns the others.
    fn without_missing<E>(&mut self, part: Vec<Item<E>>, rows: Vec<MissingRow>) -> Vec<Item<E>> {
        let mut rows: HashMap<usize, String> = rows.into_iter().map(|row| (row.index, row.what)).collect();
        let mut index = 0;
        let mut rest = Vec::with_capacity(part.len());
        for item in part {
            // Indices count events alone.
            let missing = item.event.is_some().then(|| rows.remove(&index)).flatten();
            index += usize::from(item.event.is_some());
            match missing {
                Some(what) => self.report(format_args!("{}: missing: {what}", item.message.parked_id)),
                None => rest.push(item),
            }
        }
        rest
    }
}

/// The items without these events, whose indices count events alone.
fn without<E>(part: Vec<Item<E>>, events: &[usize]) -> Vec<Item<E>> {
    let mut nth = 0;
    let is_left = |item: &Item<E>| {
        let is_named = item.event.is_some() && events.contains(&nth);
        nth += usize::from(item.event.is_some());
        !is_named
    };
    part.into_iter().filter(is_left).collect()
}

/// The record as its service reads it; `None` if the service does not consume it.
fn item<H: EventHandler>(handler: &H, record: &Record<'_>) -> Option<Item<H::Event>> {
    let decoding = match record.envelope() {
        Ok(envelope) => handler.decode(&envelope, record.body()),
        Err(reason) => Decoding::Poison(reason),
    };
    match decoding {
        Decoding::Ignore => None,
        Decoding::Event(event) => Some(Item { event: Some(event), message: record.park("") }),
        Decoding::Poison(reason) | Decoding::Contradicts(reason) => {
            Some(Item { event: None, message: record.park(reason) })
        }
    }
}

async fn apply_part<H: EventHandler>(handler: &H, part: &[Item<H::Event>]) -> anyhow::Result<Verdict> {
    let (events, messages): (Vec<&H::Event>, Vec<&Parked>) =
        part.iter().filter_map(|item| Some((item.event.as_ref()?, &item.message))).unzip();
    let unreadable: Vec<Parked> =
        part.iter().filter(|item| item.event.is_none()).map(|item| item.message.clone()).collect();
    let park = |index: usize, reason: &str| Parked { reason: reason.to_owned(), ..messages[index].clone() };
    let mut pauses = backoff::unlimited(PAUSE_MAX).take(TRIES_MAX);
    loop {
        match handler.apply(&events, &unreadable, park).await {
            Ok(done) => return Ok(Verdict::Done(done)),
            Err(ApplyError::Missing(rows)) => return Ok(Verdict::Missing(rows)),
            Err(ApplyError::Moving(events) | ApplyError::Absent(events)) => {
                return Ok(Verdict::OfOthers(events));
            }
            Err(ApplyError::Late(_)) => bail!("the database did not apply a batch in time"),
            Err(ApplyError::Other(error)) => match (classify(&error), pauses.next()) {
                // A part that only parks records is not poison.
                (Failure::Poison, _) if !events.is_empty() => return Ok(Verdict::Poison(log_text(&error))),
                (_, Some(pause)) => {
                    tracing::warn!(error = log_text(&error), ?pause, "a batch failed; it is tried again");
                    tokio::time::sleep(pause).await;
                }
                (_, None) => return Err(error),
            },
        }
    }
}
