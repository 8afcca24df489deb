//! Reads partitions again of which records were passed over, once one of them can be applied.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;

use super::{Carried, Loop, Verdict};
use crate::consumer::Subscriber;
use crate::consumer::absent::Absent;
use crate::consumer::passed_over::PassedOver;
use crate::consumer::waiting::{PendingRecord, Waiting, owned_partition};

const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

impl<'c, S: Subscriber> Loop<'c, S> {
    /// Tries what was passed over of each partition. Once one record can be applied, the partition is read again from the first one.
    pub(super) fn read_absent_again(
        &self,
        carried: &mut Carried<'c>,
        waiting: &mut Waiting<'c>,
        absent: &mut Absent<'c>,
    ) -> anyhow::Result<()> {
        if absent.is_empty() {
            return Ok(());
        }
        self.drop_revoked(carried, waiting, absent)?;
        let mut are_read_again = false;
        for key in absent.due(Instant::now()) {
            let Some(passed_over) = absent.of(&key) else { continue };
            self.metrics.retries.with_label_values(&["absent"]).inc();
            if !self.is_one_back(passed_over, carried)? || !self.seek(passed_over.first()) {
                continue;
            }
            let comes_again = |read: &PendingRecord<'c>| {
                owned_partition(read) == key && passed_over.comes_again(read.message.offset())
            };
            let dropped = carried.iter().chain(waiting.records()).filter(|read| comes_again(read));
            let dropped = dropped.map(|read| read.message.offset()).min();
            carried.retain(|read| !comes_again(read));
            waiting.drop_those(comes_again);
            absent.read_again(key, dropped);
            are_read_again = true;
        }
        if are_read_again {
            // Some may be paused for what waited in them.
            self.consumer.resume(&self.consumer.assignment()?).context("cannot resume partitions")?;
        }
        Ok(())
    }

    /// Whether one of the records can be applied, or at least somebody answers about it.
    fn is_one_back(
        &self,
        passed_over: &PassedOver<PendingRecord<'c>>,
        carried: &mut Carried<'c>,
    ) -> anyhow::Result<bool> {
        for read in passed_over.to_try() {
            match self.apply_part(std::slice::from_ref(read), carried)? {
                Verdict::Absent(_) | Verdict::Moving(_) | Verdict::Late(_) => {}
                Verdict::Stopped => return Ok(false),
                Verdict::Done | Verdict::Poison(_) | Verdict::Missing(_) => return Ok(true),
            }
        }
        Ok(false)
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
