//! Reads partitions again whose first record was passed over, once its database answers.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::message::Message;

use super::{Carried, Loop, Verdict};
use crate::consumer::Subscriber;
use crate::consumer::absent::{Absent, owned_partition};
use crate::consumer::waiting::{PendingRecord, Waiting};

const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

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
        for key in absent.due(Instant::now()) {
            let Some(first) = absent.first(&key) else { continue };
            self.metrics.retries.with_label_values(&["absent"]).inc();
            let verdict = self.apply_part(std::slice::from_ref(first), carried)?;
            if matches!(verdict, Verdict::Absent(_) | Verdict::Stopped) || !self.seek(first) {
                continue;
            }
            absent.forget(&key);
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
