//! Keeps what was passed over, since the database of its user is away: per partition the first of such records.
//!
//! * Nothing from that record on is committed. What is behind it was applied or passed over too, and is read again with it.
//! * It is tried again with back-off. When its database answers, its partition is read again from it.
//! * Those of a revoked partition are dropped: its new owner reads from there.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use backon::ExponentialBackoff;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::Subscriber;
use super::batches::{Carried, Loop, RecordPosition, Verdict, record_position};
use super::waiting::{PendingRecord, Waiting};
use crate::backoff;

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

/// The first record of each partition that was passed over, by topic and partition.
pub(super) struct Absent<'c> {
    first: BTreeMap<(String, i32), PendingRecord<'c>>,
    pauses: ExponentialBackoff,
    next_try: Instant,
}

impl<'c> Absent<'c> {
    pub(super) fn new(now: Instant) -> Self {
        Self { first: BTreeMap::new(), pauses: backoff::unlimited(PAUSE_MAX), next_try: now }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Takes the records at these positions out of `part`; returns the others.
    pub(super) fn pass_over(
        &mut self,
        part: Vec<PendingRecord<'c>>,
        absent: &HashSet<RecordPosition>,
    ) -> Vec<PendingRecord<'c>> {
        let mut rest = Vec::with_capacity(part.len());
        for read in part {
            if absent.contains(&record_position(&read.message)) {
                self.keep(read);
            } else {
                rest.push(read);
            }
        }
        rest
    }

    /// Keeps the record, if it is the first of its partition.
    pub(super) fn keep(&mut self, read: PendingRecord<'c>) {
        let (topic, partition) = read.topic_partition();
        let key = (topic.to_owned(), partition);
        let is_first = |known: &PendingRecord<'_>| read.message.offset() < known.message.offset();
        if self.first.get(&key).is_none_or(is_first) {
            self.first.insert(key, read);
        }
    }

    /// The last offset that may be stored for a partition whose record `last` is applied; `None`: none.
    pub(super) fn storable(&self, topic: &str, partition: i32, last: i64) -> Option<i64> {
        match self.first.get(&(topic.to_owned(), partition)) {
            Some(first) if first.message.offset() <= last => {
                first.message.offset().checked_sub(1).filter(|offset| *offset >= 0)
            }
            Some(_) | None => Some(last),
        }
    }

    /// The records, when it is time to try again. Those whose database is still away are kept again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PendingRecord<'c>> {
        if self.is_empty() {
            self.pauses = backoff::unlimited(PAUSE_MAX);
            self.next_try = now;
            return Vec::new();
        }
        if now < self.next_try {
            return Vec::new();
        }
        self.next_try = now + self.pauses.next().unwrap_or(PAUSE_MAX);
        std::mem::take(&mut self.first).into_values().collect()
    }

    /// Drops the records of partitions that are no longer assigned.
    pub(super) fn keep_only(&mut self, assigned: &TopicPartitionList) {
        self.first.retain(|(topic, partition), _| assigned.find_partition(topic, *partition).is_some());
    }
}

impl<'c, S: Subscriber> Loop<'c, S> {
    /// Tries the first record that was passed over of each partition. Where its database answers, the partition is read again
    /// from there.
    pub(super) fn read_absent_again(
        &self,
        carried: &mut Carried<'c>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> anyhow::Result<()> {
        if absent.is_empty() {
            return Ok(());
        }
        absent.keep_only(&self.consumer.assignment()?);
        let mut are_read_again = false;
        for first in absent.take_due(Instant::now()) {
            self.metrics.retries.with_label_values(&["absent"]).inc();
            let part = [first];
            let verdict = self.apply_part(&part, carried)?;
            let [first] = part;
            if matches!(verdict, Verdict::Absent(_) | Verdict::Stopped) || !self.seek(&first) {
                absent.keep(first);
                continue;
            }
            // What was read behind it comes again.
            let (topic, partition) = first.topic_partition();
            let is_behind = |read: &PendingRecord<'c>| read.topic_partition() == (topic, partition);
            carried.retain(|read| !is_behind(read));
            waiting.drop_those(is_behind);
            are_read_again = true;
        }
        if are_read_again {
            // Some may be paused for what waited in them.
            self.consumer.resume(&self.consumer.assignment()?).context("cannot resume partitions")?;
        }
        Ok(())
    }

    /// Whether the partition is read from this record on.
    fn seek(&self, read: &PendingRecord<'c>) -> bool {
        let (topic, partition) = read.topic_partition();
        let offset = Offset::Offset(read.message.offset());
        match self.consumer.seek(topic, partition, offset, SEEK_TIMEOUT) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, topic, partition, "a partition cannot be read again from what was passed over; it is tried again");
                false
            }
        }
    }
}
