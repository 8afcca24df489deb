//! What the watch over the publication has noticed.

use anyhow::{Result, bail};

use super::Stream;
use crate::sinks::kafka::{Sent, StateRecord};
use crate::source::coverage::record::{Record, record_key};
use crate::source::watch::Notice;

impl Stream<'_> {
    /// Goes on where more is sent than before, and ends where less may have been.
    pub(super) fn apply_notices(&mut self) -> Result<()> {
        while let Some(notice) = self.start.watch.notice() {
            let coverage = match notice {
                Notice::Refused(refusal) => return Err(refusal.into()),
                Notice::Rekeyed(what) => bail!(
                    "{what}: a new session names its rows by it. What was emitted under another key stays where it is; \
                     `cdc-relay resnapshot` emits every row again"
                ),
                Notice::Changed(coverage) => coverage,
            };
            let record = Record { coverage, healed: self.start.healed.clone(), broken: None };
            let (key, value) = (record_key(&self.start.checkpoint_key), serde_json::to_vec(&record)?);
            let state = StateRecord { topic: &self.start.checkpoint_topic, key: &key, value: &value };
            if self.emitter.kafka().save_best_effort(state)? != Sent::Taken {
                return Ok(());
            }
            self.log("the publication sends more of the tables with routes than before, or these have other columns");
            self.coverage = Some(record.coverage);
            self.start.watch.pop_notice();
        }
        Ok(())
    }
}
