//! Writes the checkpoint of a session to the state topic.
//!
//! * One write is in flight at a time. A checkpoint counts as saved when Kafka has acknowledged it.
//! * Writes are rare: at most one per interval, and fewer while the source is idle. That standbys had everything is saved within a
//!   second.
//! * A checkpoint that stays is written again now and then. A relay that was suspended may write an older one once it wakes,
//!   and compaction would keep that alone if it stayed the last.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::checkpoint::progress::Progress;
use crate::checkpoint::state::{Checkpoint, Phase};
use crate::failpoints::{Failpoint, hit};
use crate::postgres::lsn::Lsn;
use crate::sinks::kafka::{Kafka, Sent, StateRecord};

/// The shortest time between two writes: after transactions, and while only the WAL position moves.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
const WRITE_IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two writes.
const WRITE_AGAIN_INTERVAL: Duration = Duration::from_secs(60);

pub struct CheckpointWriter {
    topic: String,
    key: String,
    saved: Checkpoint,
    /// The checkpoint that Kafka has not acknowledged yet.
    writing: Option<Checkpoint>,
    written_at: Instant,
    /// No transaction was committed since the last write.
    is_idle: bool,
}

/// The positions that a checkpoint is made of.
#[derive(Clone, Copy)]
pub struct CheckpointPositions<'a> {
    pub progress: &'a Progress,
    /// The last commit that was emitted.
    pub sent_lsn: Lsn,
    /// The publication had the known coverage up to here.
    pub vouched: Lsn,
    /// Synchronous standbys had flushed everything before it was emitted.
    pub synchronous: bool,
}

impl CheckpointWriter {
    pub fn new(topic: String, key: String, saved: Checkpoint) -> CheckpointWriter {
        CheckpointWriter { topic, key, saved, writing: None, written_at: Instant::now(), is_idle: true }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn saved(&self) -> &Checkpoint {
        &self.saved
    }

    /// Every sink has acknowledged up to here, and the checkpoint is saved.
    pub fn acknowledged(&self) -> Lsn {
        self.saved.acknowledged
    }

    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// A transaction was committed: the next write is due sooner.
    pub fn committed(&mut self) {
        self.is_idle = false;
    }

    /// Takes Kafka's acknowledgement of the last write, and writes the next checkpoint if it is due, or `at_once`. Returns
    /// whether it wrote one.
    pub fn save(&mut self, kafka: &Kafka, positions: CheckpointPositions<'_>, at_once: bool) -> Result<bool> {
        if kafka.state_written()
            && let Some(written) = self.writing.take()
        {
            self.saved = written;
            hit(Failpoint::AfterCheckpoint);
        }
        let Some(interval) = self.interval(positions, at_once) else { return Ok(false) };
        if self.is_writing() || self.written_at.elapsed() < interval {
            return Ok(false);
        }
        hit(Failpoint::BeforeCheckpoint);
        let next = self.next(positions);
        let value = serde_json::to_vec(&next)?;
        let record = StateRecord { topic: &self.topic, key: &self.key, value: &value };
        if kafka.save(record)? != Sent::Taken {
            return Ok(false);
        }
        self.writing = Some(next);
        self.written_at = Instant::now();
        self.is_idle = true;
        Ok(true)
    }

    /// The time after the last write at which the next one is due; `None` before the stream has come to the checkpoint.
    fn interval(&self, positions: CheckpointPositions<'_>, at_once: bool) -> Option<Duration> {
        Some(match positions.progress.confirmed().cmp(&self.saved.acknowledged) {
            Ordering::Less => return None,
            // A promotion before this is saved could not be followed.
            Ordering::Equal if positions.synchronous != self.saved.synchronous => WRITE_IDLE_INTERVAL,
            Ordering::Equal => WRITE_AGAIN_INTERVAL,
            Ordering::Greater if at_once => Duration::ZERO,
            Ordering::Greater if self.is_idle => WRITE_IDLE_INTERVAL,
            Ordering::Greater => WRITE_INTERVAL,
        })
    }

    fn next(
        &self,
        CheckpointPositions { progress, sent_lsn, vouched, synchronous }: CheckpointPositions<'_>,
    ) -> Checkpoint {
        let confirmed = progress.confirmed();
        Checkpoint {
            acknowledged: confirmed,
            chain: progress.chain(),
            last: progress.last().unwrap_or(self.saved.last),
            // Not up to `confirmed`: the WAL behind the last commit may be the primary's alone.
            sent_lsn: sent_lsn.max(self.saved.sent_lsn),
            vouched: vouched.min(confirmed).max(self.saved.vouched),
            synchronous,
            phase: Phase::Streaming,
            ..self.saved.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::chain_name::ChainName;
    use crate::checkpoint::state::CommitId;

    fn saved(acknowledged: u64, synchronous: bool) -> Checkpoint {
        Checkpoint {
            system_id: "1".to_owned(),
            timeline: 1,
            slot: "slot".to_owned(),
            phase: Phase::Streaming,
            acknowledged: Lsn(acknowledged),
            sent_lsn: Lsn(acknowledged),
            chain_name: ChainName::default(),
            chain: Lsn::ZERO,
            last: CommitId::default(),
            vouched: Lsn(acknowledged),
            synchronous,
            routes: String::new(),
        }
    }

    /// While nothing is committed the position may stay for long. That standbys had everything must not wait for it.
    #[test]
    fn a_write_is_due_sooner_where_the_checkpoint_says_something_new() {
        let progress = Progress::new(0, Lsn(50), Lsn::ZERO);
        let interval = |acknowledged, synchronous, at_once| {
            let saved = saved(acknowledged, synchronous);
            let writer = CheckpointWriter::new("topic".to_owned(), "key".to_owned(), saved);
            let positions = CheckpointPositions {
                progress: &progress,
                sent_lsn: Lsn(50),
                vouched: Lsn(50),
                synchronous: true,
            };
            writer.interval(positions, at_once)
        };
        assert_eq!(interval(50, true, false), Some(WRITE_AGAIN_INTERVAL));
        assert_eq!(interval(50, false, false), Some(WRITE_IDLE_INTERVAL), "standbys had everything");
        assert_eq!(interval(40, true, false), Some(WRITE_IDLE_INTERVAL));
        assert_eq!(interval(40, true, true), Some(Duration::ZERO));
        assert_eq!(interval(60, false, true), None, "the stream has not come to the checkpoint");
    }
}
