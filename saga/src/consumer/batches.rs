//! The consumer loop: reads batches and applies them.
//!
//! * A batch that fails for a transient reason is applied again.
//! * A batch with poison is halved until the poison record is alone; that record is parked.
//! * A batch with missing rows, or with users who are being moved, is split: the events that wait and the records behind them leave
//!   it. An event whose user nobody owns for long is passed over instead (`absent`).
//! * A batch that one of several databases did not end in time is halved until it does. Once a single event alone did not end, what
//!   else is late of the batch is passed over with it: a database at a standstill holds up the others for a few halvings only.

mod read_again;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::absent::Absent;
use super::client::{ClientErrors, Health};
use super::metrics::ConsumerMetrics;
use super::waiting::{PendingRecord, RecordPosition, Waiting, pauses, record_position};
use super::{ApplyError, BatchCounts, Decoding, Delivery, Limits, MissingRow, Record, Subscriber};
use crate::parked::Parked;
use crate::postgres::{Failure, classify};
use crate::telemetry::log_text;

/// Records per batch. Larger batches gain little and hold locks longer.
const BATCH_MAX: usize = 1000;
/// How long an idle poll waits, and how late a shutdown is noticed.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a paused client is polled.
const PAUSED_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a partition that came back paused is not read, at most.
const RESUME_INTERVAL: Duration = Duration::from_secs(1);

/// The reason why the loop ended.
pub(super) enum LoopEnd {
    Stopped,
    Lost,
}

/// The loop over one Kafka client.
pub(super) struct Loop<'c, S> {
    pub(super) consumer: &'c BaseConsumer,
    /// One of its topics, for requests of metadata.
    pub(super) topic: Option<&'c str>,
    pub(super) subscriber: &'c S,
    pub(super) metrics: &'c ConsumerMetrics,
    pub(super) limits: Limits,
    pub(super) shutdown: &'c CancellationToken,
    pub(super) runtime: &'c Handle,
}

/// Records that were polled while the partitions were paused. They are applied next.
pub(super) type Carried<'c> = VecDeque<PendingRecord<'c>>;

impl<'c, S: Subscriber> Loop<'c, S> {
    pub(super) fn run(self) -> anyhow::Result<LoopEnd> {
        let mut client_errors = ClientErrors::default();
        let mut health = Health::new(Instant::now());
        let mut carried = Carried::new();
        let mut waiting = Waiting::new(Instant::now());
        let mut absent = Absent::new(Instant::now());
        let mut resumed_at = Instant::now();
        while !self.shutdown.is_cancelled() {
            self.pause_waiting_partitions(&mut carried, &mut waiting, &mut absent)?;
            if resumed_at.elapsed() >= RESUME_INTERVAL {
                self.resume_all_but(&waiting)?;
                resumed_at = Instant::now();
            }
            let batch = self.next_batch(&mut carried, &waiting, &mut client_errors)?;
            if !batch.is_empty() {
                self.metrics.batch_records.observe(batch.len() as f64);
                let timer = self.metrics.batch_seconds.start_timer();
                self.apply(batch, &mut carried, &mut waiting, &mut absent)?;
                timer.observe_duration();
                health.received(Instant::now());
            } else if health.is_client_lost(self.consumer, self.topic) {
                return Ok(LoopEnd::Lost);
            }
            if let Some(due) = waiting.take_due(Instant::now()) {
                self.metrics.retries.with_label_values(&["missing"]).inc();
                self.apply(due, &mut carried, &mut waiting, &mut absent)?;
                self.resume_all_but(&waiting)?;
            }
            self.read_absent_again(&mut carried, &mut waiting, &mut absent)?;
            self.metrics.waiting.set(waiting.len() as i64);
        }
        if let Err(error) = self.consumer.commit_consumer_state(CommitMode::Sync) {
            // Nothing is stored, or the broker is away: the records are read again, which is harmless.
            tracing::debug!(%error, "offsets were not committed at shutdown; the next member reads their records again");
        }
        Ok(LoopEnd::Stopped)
    }

    /// Pauses the partitions in which a record waits. It is repeated for each batch, since a rebalance brings partitions
    /// that are not paused and a resumed batch resumes all.
    fn pause_waiting_partitions(
        &self,
        carried: &mut Carried<'c>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> anyhow::Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        self.drop_revoked(carried, waiting, absent)?;
        self.consumer.pause(&waiting.partitions()).context("cannot pause partitions")
    }

    /// Resumes the partitions in which nothing waits. librdkafka keeps the pause of a partition that is revoked, and a resume reaches
    /// only those that are assigned: one that was revoked during a retry and comes back after it would never be read. Resuming one
    /// that is not paused does nothing.
    fn resume_all_but(&self, waiting: &Waiting<'c>) -> anyhow::Result<()> {
        let (assigned, paused) = (self.consumer.assignment()?, waiting.partitions());
        let mut read = TopicPartitionList::new();
        for one in assigned.elements() {
            if paused.find_partition(one.topic(), one.partition()).is_none() {
                read.add_partition(one.topic(), one.partition());
            }
        }
        self.consumer.resume(&read).context("cannot resume partitions")
    }

    /// Drops everything about partitions that are not assigned any more, at one moment: a record that was read before its partition
    /// was revoked, and kept when what is before it was dropped, would be applied and committed ahead of that once the partition is back.
    fn drop_revoked(
        &self,
        carried: &mut Carried<'c>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> anyhow::Result<()> {
        let assigned = self.consumer.assignment()?;
        carried.retain(|read| read.is_of(&assigned));
        waiting.keep_only(&assigned);
        absent.keep_only(&assigned);
        Ok(())
    }

    fn next_batch(
        &self,
        carried: &mut Carried<'c>,
        waiting: &Waiting<'c>,
        client_errors: &mut ClientErrors,
    ) -> anyhow::Result<Vec<PendingRecord<'c>>> {
        let mut batch: Vec<PendingRecord<'c>> = carried.drain(..).collect();
        let idle = if waiting.is_empty() { IDLE_POLL_INTERVAL } else { PAUSED_POLL_INTERVAL };
        let mut wait = if batch.is_empty() { idle } else { Duration::ZERO };
        while batch.len() < BATCH_MAX {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => batch.push(PendingRecord::new(message)),
                Some(Err(error)) => {
                    client_errors.report(&error)?;
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        Ok(batch)
    }

    /// Applies the batch except for the records that wait or are passed over. Retries without end; returns early only on shutdown.
    fn apply(
        &self,
        batch: Vec<PendingRecord<'c>>,
        carried: &mut Carried<'c>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> anyhow::Result<()> {
        let mut parts = VecDeque::from([waiting.hold_back(batch)]);
        let mut are_halved = true;
        while let Some(part) = parts.pop_front() {
            // Nothing of the rest is stored, so the next process reads it again.
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
            let mut part = absent.hold_over(part);
            match self.apply_part(&part, carried)? {
                Verdict::Done => self.store_offsets(&part, absent)?,
                Verdict::Poison(reason) if part.len() == 1 => {
                    part[0].park_reason = Some(reason);
                    parts.push_front(part);
                }
                Verdict::Poison(_) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push_front(rest);
                    parts.push_front(part);
                }
                Verdict::Missing(missing_rows) => {
                    let rest = self.separate_missing(part, &missing_rows, waiting);
                    for later in &mut parts {
                        *later = waiting.hold_back(std::mem::take(later));
                    }
                    parts.push_front(rest);
                }
                Verdict::Late(positions) if are_halved && positions.len() > 1 => {
                    let rest = part.split_off(half_of(&part, &positions));
                    parts.push_front(rest);
                    parts.push_front(part);
                }
                Verdict::Late(positions) => {
                    are_halved = false;
                    tracing::warn!(
                        events = positions.len(),
                        "events are passed over, since the database of their users does not end them in time; they are tried again"
                    );
                    parts.push_front(absent.pass_over(part, &positions));
                }
                Verdict::Absent(positions) => {
                    tracing::warn!(
                        events = positions.len(),
                        "events are passed over, since the database of their users is away; they are read again once it answers"
                    );
                    parts.push_front(absent.pass_over(part, &positions));
                }
                Verdict::Moving(moving) => {
                    let rest = self.separate_moving(part, &moving, waiting, absent);
                    for later in &mut parts {
                        *later = waiting.hold_back(std::mem::take(later));
                    }
                    parts.push_front(rest);
                }
                Verdict::Stopped => return Ok(()),
            }
        }
        Ok(())
    }

    /// Returns the records to apply now; marks those past the limit for parking.
    fn separate_missing(
        &self,
        mut part: Vec<PendingRecord<'c>>,
        missing_rows: &MissingRows,
        waiting: &mut Waiting<'c>,
    ) -> Vec<PendingRecord<'c>> {
        for read in &mut part {
            let Some(what) = missing_rows.get(&record_position(&read.message)) else { continue };
            let since = *read.missed_at.get_or_insert_with(Instant::now);
            if since.elapsed() > self.limits.missing {
                read.park_reason = Some(format!("missing: {what}"));
            } else {
                tracing::warn!(what, "an event waits for its row, which is missing");
            }
        }
        waiting.sift(part, |read| {
            read.park_reason.is_none() && missing_rows.contains_key(&record_position(&read.message))
        })
    }

    /// Returns the records to apply now. Those whose users nobody owns for longer than the limit are passed over, so that the records
    /// behind them wait no longer.
    fn separate_moving(
        &self,
        mut part: Vec<PendingRecord<'c>>,
        moving: &HashSet<RecordPosition>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> Vec<PendingRecord<'c>> {
        let mut late = HashSet::new();
        for read in &mut part {
            let position = record_position(&read.message);
            if moving.contains(&position)
                && read.moved_at.get_or_insert_with(Instant::now).elapsed() > self.limits.moving
            {
                late.insert(position);
            }
        }
        tracing::debug!(events = moving.len(), "events wait for users that are being moved");
        if !late.is_empty() {
            tracing::warn!(
                events = late.len(),
                "events are passed over, since no shard owns their users; they are read again once one does"
            );
        }
        let part = absent.pass_over(part, &late);
        waiting.sift(part, |read| moving.contains(&record_position(&read.message)))
    }

    pub(super) fn apply_part(
        &self,
        part: &[PendingRecord<'c>],
        carried: &mut Carried<'c>,
    ) -> anyhow::Result<Verdict> {
        let Records { events, unreadable, contradictions, already } = self.decode(part);
        let ignored = part.len() - events.len() - unreadable.len() - already;
        let already = BatchCounts { already, ..BatchCounts::default() };
        if events.is_empty() && unreadable.is_empty() {
            self.metrics.count(already, ignored, 0);
            return Ok(Verdict::Done);
        }
        self.retrying(carried, || match self.runtime.block_on(self.subscriber.apply(&events, &unreadable)) {
            Ok(applied) => {
                self.metrics.count(applied.plus(already), ignored, unreadable.len());
                self.metrics.contradictions.inc_by((applied.contradictions + contradictions) as u64);
                Attempt::End(Verdict::Done)
            }
            Err(ApplyError::Missing(missing)) => {
                Attempt::End(Verdict::Missing(missing_rows(&events, missing)))
            }
            // Without an event the part would come again as it is, at once.
            Err(error) if error.names_nothing() => {
                Attempt::Again(anyhow!("events have to wait, and it was not said which"))
            }
            Err(ApplyError::Absent(absent)) => Attempt::End(Verdict::Absent(positions(&events, &absent))),
            Err(ApplyError::Late(late)) => {
                tracing::warn!(events = late.len(), "a database did not end a part of the batch in time");
                Attempt::End(Verdict::Late(positions(&events, &late)))
            }
            Err(ApplyError::Moving(moving)) => Attempt::End(Verdict::Moving(positions(&events, &moving))),
            Err(ApplyError::Other(error)) => match classify(&error) {
                // A part that only parks records is not poison.
                Failure::Poison if !events.is_empty() => Attempt::End(Verdict::Poison(log_text(&error))),
                Failure::Poison | Failure::Transient => Attempt::Again(error),
            },
        })
    }

    fn decode<'m>(&self, part: &'m [PendingRecord<'c>]) -> Records<'m, S::Event> {
        let mut events = Vec::with_capacity(part.len());
        let (mut unreadable, mut contradictions, mut already) = (Vec::new(), 0, 0);
        for read in part {
            if read.was_applied {
                already += 1;
                continue;
            }
            let record = Record(&read.message);
            if let Some(reason) = &read.park_reason {
                unreadable.push(record.park(reason));
                continue;
            }
            match self.subscriber.decode(&record) {
                Decoding::Event(event) => events.push(Delivery { record, event }),
                Decoding::Ignore => {}
                Decoding::Poison(reason) => unreadable.push(record.park(reason)),
                Decoding::Contradicts(reason) => {
                    unreadable.push(record.park(reason));
                    contradictions += 1;
                }
            }
        }
        Records { events, unreadable, contradictions, already }
    }

    /// Calls `attempt` until it ends or shutdown begins. Polls the paused client in between.
    fn retrying(
        &self,
        carried: &mut Carried<'c>,
        mut attempt: impl FnMut() -> Attempt,
    ) -> anyhow::Result<Verdict> {
        let mut paused = false;
        for delay in pauses() {
            match attempt() {
                Attempt::End(verdict) => {
                    if paused {
                        self.consumer
                            .resume(&self.consumer.assignment()?)
                            .context("cannot resume partitions")?;
                    }
                    return Ok(verdict);
                }
                Attempt::Again(error) => {
                    self.metrics.retries.with_label_values(&["transient"]).inc();
                    tracing::warn!(
                        error = log_text(&error),
                        ?delay,
                        "the {} failed; the batch is tried again",
                        S::WRITES_TO
                    );
                }
            }
            paused = true;
            if self.wait_paused(delay, carried)? {
                return Ok(Verdict::Stopped);
            }
        }
        unreachable!("the back-off never ends")
    }

    /// Waits `delay` while polling; true when shutdown began.
    fn wait_paused(&self, delay: Duration, carried: &mut Carried<'c>) -> anyhow::Result<bool> {
        let until = Instant::now() + delay;
        loop {
            if self.shutdown.is_cancelled() {
                return Ok(true);
            }
            // Repeated, since a rebalance brings partitions that are not paused.
            self.consumer.pause(&self.consumer.assignment()?).context("cannot pause partitions")?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.consumer.poll(left.min(PAUSED_POLL_INTERVAL)) {
                Some(Ok(message)) => carried.push_back(PendingRecord::new(message)),
                Some(Err(error)) => ClientErrors::default().report(&error)?,
                None => {}
            }
        }
    }

    fn store_offsets(&self, part: &[PendingRecord<'c>], absent: &Absent<'c>) -> anyhow::Result<()> {
        let mut last: HashMap<(&str, i32), i64> = HashMap::new();
        for read in part {
            last.insert(read.topic_partition(), read.message.offset());
        }
        for ((topic, partition), last) in last {
            let Some(offset) = absent.storable(topic, partition, last) else { continue };
            match self.consumer.store_offset(topic, partition, offset) {
                Ok(()) => {}
                // The partition was revoked meanwhile. Its new owner repeats the records.
                Err(KafkaError::StoreOffset(RDKafkaErrorCode::State)) => {}
                Err(error) => return Err(error).context("cannot store an offset"),
            }
        }
        Ok(())
    }
}

/// A part of a batch, decoded.
struct Records<'m, E> {
    events: Vec<Delivery<'m, E>>,
    unreadable: Vec<Parked>,
    /// The number of unreadable records that contradict themselves.
    contradictions: usize,
    /// The number of records that were applied before their partition was read again.
    already: usize,
}

fn positions<E>(events: &[Delivery<'_, E>], indices: &[usize]) -> HashSet<RecordPosition> {
    indices.iter().map(|&index| record_position(events[index].record.0)).collect()
}

/// Where a part is divided, so that each half has as many of these records; there are at least two.
fn half_of(part: &[PendingRecord<'_>], positions: &HashSet<RecordPosition>) -> usize {
    let late =
        part.iter().enumerate().filter(|(_, read)| positions.contains(&record_position(&read.message)));
    late.map(|(index, _)| index).nth(positions.len() / 2).unwrap_or(part.len() / 2)
}

/// The missing rows by the position of their event.
pub(super) type MissingRows = HashMap<RecordPosition, String>;

fn missing_rows<E>(events: &[Delivery<'_, E>], missing: Vec<MissingRow>) -> MissingRows {
    missing
        .into_iter()
        .map(|missing| (record_position(events[missing.index].record.0), missing.what))
        .collect()
}

pub(super) enum Verdict {
    Done,
    Poison(String),
    /// Nothing was applied, since these rows are missing.
    Missing(MissingRows),
    /// Nothing was applied, since the users of these events are being moved.
    Moving(HashSet<RecordPosition>),
    /// These events are passed over, since the database of their users is away. Others may be applied.
    Absent(HashSet<RecordPosition>),
    /// It is not known whether anything of these events was applied: their database serves, and did not end them in time.
    Late(HashSet<RecordPosition>),
    /// Shutdown began while waiting. Nothing was applied, so no offset may be stored.
    Stopped,
}

enum Attempt {
    End(Verdict),
    Again(anyhow::Error),
}

#[cfg(test)]
mod tests;
