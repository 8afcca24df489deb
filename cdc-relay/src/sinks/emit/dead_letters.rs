//! Writes dead letters, and keeps the keys that they halt.

use anyhow::Result;

use super::offer::offer;
use super::{OpenTransaction, PlannedRow, SinkMessage};
use crate::checkpoint::progress::Sink;
use crate::dead_letter::halts::{Halted, Halts};
use crate::dead_letter::record::{self, Cause, Halt};
use crate::observe::metrics::SourceMetrics;
use crate::sinks::kafka::{DeadLetterRecord, Kafka};

pub struct DeadLetters {
    source: String,
    topic: String,
    halted: Halted,
    /// The dead letters of this session have this offset in the topic, or a later one.
    offset_min: i64,
    buffer: Vec<u8>,
    metrics: SourceMetrics,
}

impl DeadLetters {
    pub fn new(source: String, topic: String, metrics: SourceMetrics) -> DeadLetters {
        DeadLetters { source, topic, halted: Halted::default(), offset_min: 0, buffer: Vec::new(), metrics }
    }

    pub fn halted(&self) -> &Halted {
        &self.halted
    }

    pub fn set_halted(&mut self, halted: Halted, offset_min: i64) {
        (self.halted, self.offset_min) = (halted, offset_min);
        self.show_halted();
    }

    pub fn set_offset_min(&mut self, offset: i64) {
        self.offset_min = offset;
    }

    /// Applies the record of a release to the halted keys.
    pub fn apply_release(&mut self, value: &[u8]) -> Result<()> {
        self.halted.apply(self.offset_min, value)?;
        self.show_halted();
        Ok(())
    }

    /// Writes a dead letter, and halts what it names.
    pub fn write(
        &mut self,
        kafka: &mut Kafka,
        halt: Halt<'_>,
        cause: Cause<'_>,
        routed: PlannedRow<'_>,
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let Halt { destination, halts } = halt;
        let mut value = std::mem::take(&mut self.buffer);
        let row = record::FailedRow { plan: routed.plan, row: routed.row, transaction: open.transaction };
        record::write(&self.source, halt, cause, row, &mut value);
        let written = self.produce(kafka, halts, &value, open);
        self.buffer = value;
        written?;
        self.metrics.stream.dead_letters.inc();
        // Many rows may be without a key; one log line for them is enough.
        let is_news = match halts {
            Halts { key: None, keyless: Some(_) } => !self.halted.has_keyless(destination),
            Halts { key, .. } => !self.halted.contains(destination, key.as_deref()),
        };
        if is_news {
            let (table, reason, position) =
                (&routed.plan.relation, cause.reason, open.transaction.commit_lsn);
            let Halts { key, keyless } = halts;
            tracing::error!(source = self.source, table, key, keyless, destination, %position, reason, "dead letter");
        }
        self.halted.halt(destination, halts, self.offset_min);
        self.show_halted();
        Ok(())
    }

    /// Produces a record of the dead-letter topic, under the key or row that it is about.
    pub fn produce(
        &self,
        kafka: &mut Kafka,
        halts: &Halts,
        value: &[u8],
        open: &mut OpenTransaction<'_>,
    ) -> Result<()> {
        let key = halts.key.as_ref().or(halts.keyless.as_ref()).map_or(&b""[..], |key| key.as_bytes());
        let (topic, transaction_seq) = (self.topic.as_str(), open.transaction_seq);
        let record = DeadLetterRecord { topic, key, value, transaction: open.transaction, transaction_seq };
        offer(|| kafka.produce_dead_letter(&record))?;
        let bytes = key.len() + value.len();
        open.count(SinkMessage { sink: Sink::Kafka, bytes, is_link: true }, &self.metrics);
        Ok(())
    }

    fn show_halted(&self) {
        self.metrics.stream.halted_keys.set(self.halted.len() as i64);
    }
}
