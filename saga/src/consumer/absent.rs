//! Keeps what was passed over, since the database of its user is away: per partition the first of such records.
//!
//! * Nothing from that record on is committed. What is behind it was applied or passed over too, and is read again with it.
//! * Once a record was passed over, those behind it with the same key are too, whether or not the database answers by then. So the
//!   order of a user's events is kept. Of a key one of 1024 slots is kept, so that no memory grows.
//! * The first record is tried again with back-off. When its database answers, its partition is read again from it.
//! * Those of a revoked partition are dropped: its new owner reads from there.

use std::collections::btree_map::Entry;
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
use crate::shards::bucket::Bucket;

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

/// What was passed over, by topic and partition.
pub(super) struct Absent<'c> {
    partitions: BTreeMap<(String, i32), PassedOver<'c>>,
    pauses: ExponentialBackoff,
    next_try: Instant,
}

/// What was passed over of a partition.
struct PassedOver<'c> {
    first: PendingRecord<'c>,
    /// The slots of the keys.
    keys: HashSet<Bucket>,
}

impl<'c> Absent<'c> {
    pub(super) fn new(now: Instant) -> Self {
        Self { partitions: BTreeMap::new(), pauses: backoff::unlimited(PAUSE_MAX), next_try: now }
    }

    /// Passes over the records behind one of their key; returns the others.
    pub(super) fn hold_over(&self, part: Vec<PendingRecord<'c>>) -> Vec<PendingRecord<'c>> {
        if self.partitions.is_empty() {
            return part;
        }
        let is_behind = |read: &PendingRecord<'c>| {
            let passed_over = self.partitions.get(&owned_partition(read));
            passed_over.is_some_and(|passed_over| passed_over.keys.contains(&slot(read)))
        };
        part.into_iter().filter(|read| !is_behind(read)).collect()
    }

    /// Takes the records at these positions out of `part`; returns the others.
    pub(super) fn pass_over(
        &mut self,
        part: Vec<PendingRecord<'c>>,
        absent: &HashSet<RecordPosition>,
    ) -> Vec<PendingRecord<'c>> {
        let mut rest = Vec::with_capacity(part.len());
        for read in part {
            if !absent.contains(&record_position(&read.message)) {
                rest.push(read);
                continue;
            }
            let slot = slot(&read);
            match self.partitions.entry(owned_partition(&read)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(PassedOver { first: read, keys: HashSet::from([slot]) });
                }
                Entry::Occupied(mut occupied) => {
                    let passed_over = occupied.get_mut();
                    passed_over.keys.insert(slot);
                    if read.message.offset() < passed_over.first.message.offset() {
                        passed_over.first = read;
                    }
                }
            }
        }
        rest
    }

    /// The last offset that may be stored for a partition whose record `last` is applied; `None`: none.
    pub(super) fn storable(&self, topic: &str, partition: i32, last: i64) -> Option<i64> {
        match self.partitions.get(&(topic.to_owned(), partition)) {
            Some(passed_over) if passed_over.first.message.offset() <= last => {
                passed_over.first.message.offset().checked_sub(1).filter(|offset| *offset >= 0)
            }
            Some(_) | None => Some(last),
        }
    }

    /// The partitions to try again, when it is time.
    fn due(&mut self, now: Instant) -> Vec<(String, i32)> {
        if self.partitions.is_empty() {
            self.pauses = backoff::unlimited(PAUSE_MAX);
            self.next_try = now;
            return Vec::new();
        }
        if now < self.next_try {
            return Vec::new();
        }
        self.next_try = now + self.pauses.next().unwrap_or(PAUSE_MAX);
        self.partitions.keys().cloned().collect()
    }

    /// Drops the records of partitions that are no longer assigned.
    fn keep_only(&mut self, assigned: &TopicPartitionList) {
        self.partitions.retain(|(topic, partition), _| assigned.find_partition(topic, *partition).is_some());
    }
}

fn owned_partition(read: &PendingRecord<'_>) -> (String, i32) {
    let (topic, partition) = read.topic_partition();
    (topic.to_owned(), partition)
}

/// The key of an event is its user.
fn slot(read: &PendingRecord<'_>) -> Bucket {
    Bucket::of_bytes(read.message.key().unwrap_or_default())
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
        if absent.partitions.is_empty() {
            return Ok(());
        }
        absent.keep_only(&self.consumer.assignment()?);
        let mut are_read_again = false;
        for key in absent.due(Instant::now()) {
            let Some(PassedOver { first, .. }) = absent.partitions.get(&key) else { continue };
            self.metrics.retries.with_label_values(&["absent"]).inc();
            let verdict = self.apply_part(std::slice::from_ref(first), carried)?;
            if matches!(verdict, Verdict::Absent(_) | Verdict::Stopped) || !self.seek(first) {
                continue;
            }
            absent.partitions.remove(&key);
            // What was read behind it comes again.
            let is_behind = |read: &PendingRecord<'c>| owned_partition(read) == key;
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
