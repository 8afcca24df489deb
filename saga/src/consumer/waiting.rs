//! Keeps the records that wait for a missing row, or for a user who is being moved.
//!
//! * Per partition it keeps everything from the first waiting record on, in order.
//! * The kept records are tried again with back-off.
//! * Records of a revoked partition are dropped: the new owner reads them again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::fetched::Fetched;

/// A record that has been read and not applied.
pub(super) struct PendingRecord<'c> {
    pub(super) message: Fetched<'c>,
    /// When its row was first missing.
    pub(super) missed_at: Option<Instant>,
    /// When its user was first owned by nobody.
    pub(super) moved_at: Option<Instant>,
    /// The reason to park it, whatever it decodes to.
    pub(super) park_reason: Option<String>,
    /// It was applied before its partition was read again.
    pub(super) was_applied: bool,
}

impl<'c> PendingRecord<'c> {
    pub(super) fn new(message: impl Into<Fetched<'c>>) -> Self {
        let message = message.into();
        Self { message, missed_at: None, moved_at: None, park_reason: None, was_applied: false }
    }

    /// Itself, to be kept for long.
    pub(super) fn copied(self) -> Self {
        Self { message: self.message.copied(), ..self }
    }

    pub(super) fn topic_partition(&self) -> (&str, i32) {
        (self.message.topic(), self.message.partition())
    }

    /// Whether its partition is one of these.
    pub(super) fn is_of(&self, assigned: &TopicPartitionList) -> bool {
        let (topic, partition) = self.topic_partition();
        assigned.find_partition(topic, partition).is_some()
    }
}

/// Maximum pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The pauses between the tries of a batch.
pub(super) fn pauses() -> ExponentialBackoff {
    crate::backoff::unlimited(PAUSE_MAX)
}

/// Per partition, everything from the first record on that waits.
pub(super) struct Waiting<'c> {
    records: Vec<PendingRecord<'c>>,
    pauses: ExponentialBackoff,
    next_try: Instant,
}

impl<'c> Waiting<'c> {
    pub(super) fn new(now: Instant) -> Self {
        Self { records: Vec::new(), pauses: pauses(), next_try: now }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Keeps the records behind a waiting record of their partition; returns the others.
    pub(super) fn hold_back(&mut self, part: Vec<PendingRecord<'c>>) -> Vec<PendingRecord<'c>> {
        self.sift(part, |_| false)
    }

    /// Keeps, per partition, everything from the first record on for which `waits` is true; returns the others.
    pub(super) fn sift(
        &mut self,
        part: Vec<PendingRecord<'c>>,
        waits: impl Fn(&PendingRecord<'c>) -> bool,
    ) -> Vec<PendingRecord<'c>> {
        if self.is_empty() && !part.iter().any(&waits) {
            return part;
        }
        let mut blocked: HashSet<(String, i32)> = self.records.iter().map(owned_partition).collect();
        let mut rest = Vec::with_capacity(part.len());
        for read in part {
            let topic_partition = owned_partition(&read);
            if blocked.contains(&topic_partition) {
                self.records.push(read);
            } else if waits(&read) {
                blocked.insert(topic_partition);
                self.records.push(read);
            } else {
                rest.push(read);
            }
        }
        rest
    }

    /// All records, when it is time to try again.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Vec<PendingRecord<'c>>> {
        if self.is_empty() {
            self.pauses = pauses();
            self.next_try = now;
            return None;
        }
        if now < self.next_try {
            return None;
        }
        self.next_try = now + self.pauses.next().unwrap_or_default();
        Some(std::mem::take(&mut self.records))
    }

    /// Drops the records of partitions that are no longer assigned: their new owner reads them again.
    pub(super) fn keep_only(&mut self, assigned: &TopicPartitionList) {
        self.records.retain(|read| read.is_of(assigned));
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &PendingRecord<'c>> {
        self.records.iter()
    }

    /// Drops these records, which are read again.
    pub(super) fn drop_those(&mut self, are_dropped: impl Fn(&PendingRecord<'c>) -> bool) {
        self.records.retain(|read| !are_dropped(read));
    }

    /// The partitions that must stay paused.
    pub(super) fn partitions(&self) -> TopicPartitionList {
        let mut partitions = TopicPartitionList::new();
        for (topic, partition) in
            self.records.iter().map(PendingRecord::topic_partition).collect::<HashSet<_>>()
        {
            partitions.add_partition(topic, partition);
        }
        partitions
    }
}

pub(super) fn owned_partition(read: &PendingRecord<'_>) -> (String, i32) {
    let (topic, partition) = read.topic_partition();
    (topic.to_owned(), partition)
}

/// Topic, partition and offset.
pub(super) type RecordPosition = (String, i32, i64);

pub(super) fn record_position(message: &Fetched<'_>) -> RecordPosition {
    (message.topic().to_owned(), message.partition(), message.offset())
}
