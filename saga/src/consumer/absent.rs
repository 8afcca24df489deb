//! Keeps what was passed over, since the database of its user is away or nobody owns the user for long: per partition the first
//! of such records.
//!
//! * Nothing from that record on is committed. What is behind it was applied or passed over too, and is read again with it.
//! * Once a record was passed over, those behind it of the same user are too, whether or not the database answers by then. So the
//!   order of a user's events is kept. Of a user the bucket is kept, so that no memory grows ([`passed_over`](super::passed_over)); of a
//!   few records a copy is kept.
//! * The first record is tried again with back-off, and one of each of the last few users. Once one of them can be applied, the
//!   partition is read again from the first one; whoever is still away is passed over again. What waits and is before it goes on
//!   waiting. What was applied behind it is known, and only its offset is stored.
//! * Those of a revoked partition are dropped: its new owner reads from there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::passed_over::{PassedOver, ReadAgain, slot};
use super::waiting::{PendingRecord, RecordPosition, owned_partition, record_position};
use crate::backoff;
use crate::shards::bucket::Bucket;

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What was passed over, by topic and partition.
pub(super) struct Absent<'c> {
    partitions: BTreeMap<(String, i32), PassedOver<PendingRecord<'c>>>,
    /// The partitions that are read again.
    again: BTreeMap<(String, i32), ReadAgain>,
    pauses: ExponentialBackoff,
    next_try: Instant,
}

impl<'c> Absent<'c> {
    pub(super) fn new(now: Instant) -> Self {
        let pauses = backoff::unlimited(PAUSE_MAX);
        Self { partitions: BTreeMap::new(), again: BTreeMap::new(), pauses, next_try: now }
    }

    /// Passes over the records behind one of their user, and marks those that were applied before; returns all but the former.
    pub(super) fn hold_over(&mut self, mut part: Vec<PendingRecord<'c>>) -> Vec<PendingRecord<'c>> {
        if !self.is_empty() {
            part.retain_mut(|read| self.is_to_go_on(read));
        }
        part
    }

    fn is_to_go_on(&mut self, read: &mut PendingRecord<'c>) -> bool {
        let (key, offset, slot) = (owned_partition(read), read.message.offset(), slot_of(read));
        if let Some(again) = self.again.get(&key) {
            read.was_applied |= again.was_applied(offset, slot);
            if again.is_over(offset) {
                self.again.remove(&key);
            }
        }
        let is_behind = self.partitions.get_mut(&key).is_some_and(|of| of.is_behind(offset, slot));
        read.was_applied || !is_behind
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
            let (offset, slot, read) = (read.message.offset(), slot_of(&read), read.copied());
            match self.partitions.entry(owned_partition(&read)) {
                Entry::Vacant(vacant) => drop(vacant.insert(PassedOver::new(read, offset, slot))),
                Entry::Occupied(mut occupied) => occupied.get_mut().add(read, offset, slot),
            }
        }
        rest
    }

    /// The last offset that may be stored for a partition whose record `last` is applied; `None`: none.
    pub(super) fn storable(&self, topic: &str, partition: i32, last: i64) -> Option<i64> {
        let passed_over = self.partitions.get(&(topic.to_owned(), partition));
        passed_over.map_or(Some(last), |passed_over| passed_over.storable(last))
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

    /// Whether nothing is passed over, and nothing is read again.
    pub(super) fn is_empty(&self) -> bool {
        self.partitions.is_empty() && self.again.is_empty()
    }

    /// What was passed over of a partition.
    pub(super) fn of(&self, partition: &(String, i32)) -> Option<&PassedOver<PendingRecord<'c>>> {
        self.partitions.get(partition)
    }

    /// The partition is read again from its first record. `dropped` is the first offset of what was read of it and left
    /// without being applied.
    pub(super) fn read_again(&mut self, partition: (String, i32), dropped: Option<i64>) {
        if let Some(passed_over) = self.partitions.remove(&partition) {
            self.again.insert(partition, passed_over.read_again(dropped));
        }
    }

    /// Drops the records of partitions that are no longer assigned.
    pub(super) fn keep_only(&mut self, assigned: &TopicPartitionList) {
        let is_assigned =
            |(topic, partition): &(String, i32)| assigned.find_partition(topic, *partition).is_some();
        self.partitions.retain(|key, _| is_assigned(key));
        self.again.retain(|key, _| is_assigned(key));
    }
}

fn slot_of(read: &PendingRecord<'_>) -> Bucket {
    slot(read.message.key().unwrap_or_default())
}
