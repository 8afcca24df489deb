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

use backon::ExponentialBackoff;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::waiting::{PendingRecord, RecordPosition, record_position};
use crate::backoff;
use crate::shards::bucket::Bucket;

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

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
    pub(super) fn due(&mut self, now: Instant) -> Vec<(String, i32)> {
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

    pub(super) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// The first record that was passed over of a partition.
    pub(super) fn first(&self, partition: &(String, i32)) -> Option<&PendingRecord<'c>> {
        self.partitions.get(partition).map(|passed_over| &passed_over.first)
    }

    /// The partition is read again from its first record.
    pub(super) fn forget(&mut self, partition: &(String, i32)) {
        self.partitions.remove(partition);
    }

    /// Drops the records of partitions that are no longer assigned.
    pub(super) fn keep_only(&mut self, assigned: &TopicPartitionList) {
        self.partitions.retain(|(topic, partition), _| assigned.find_partition(topic, *partition).is_some());
    }
}

pub(super) fn owned_partition(read: &PendingRecord<'_>) -> (String, i32) {
    let (topic, partition) = read.topic_partition();
    (topic.to_owned(), partition)
}

/// The key of an event is its user.
fn slot(read: &PendingRecord<'_>) -> Bucket {
    Bucket::of_bytes(read.message.key().unwrap_or_default())
}
