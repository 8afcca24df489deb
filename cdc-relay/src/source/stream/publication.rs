//! Applies the notices of the watch over the publication to the session.

use anyhow::{Result, bail};

use super::Stream;
use crate::postgres::lsn::Lsn;
use crate::sinks::kafka::{Sent, StateRecord};
use crate::source::coverage::Coverage;
use crate::source::coverage::record::{Healed, Record, record_key};
use crate::source::watch::{Notice, Watch};

pub struct PublicationNotices {
    watch: Watch,
    healed: Vec<Healed>,
    /// The last coverage that this session has saved.
    coverage: Option<Coverage>,
}

impl PublicationNotices {
    pub fn new(watch: Watch, healed: Vec<Healed>) -> PublicationNotices {
        PublicationNotices { watch, healed, coverage: None }
    }

    /// The publication had the known coverage up to here.
    pub fn vouched(&self) -> Lsn {
        self.watch.vouched()
    }

    pub fn take_coverage(&mut self) -> Option<Coverage> {
        self.coverage.take()
    }
}

impl Stream<'_> {
    /// Saves a wider coverage. Ends the session if rows may be missing, or if a key changed.
    pub(super) fn apply_notices(&mut self) -> Result<()> {
        while let Some(notice) = self.publication.watch.notice() {
            let coverage = match notice {
                Notice::Refused(refusal) => return Err(refusal.into()),
                Notice::Rekeyed(change) => bail!(
                    "{change}, so a new session begins with the new key. Events with the old key stay on their topics; \
                     `cdc-relay resnapshot` emits every row again"
                ),
                Notice::Changed(coverage) => coverage,
            };
            let record = Record { coverage, healed: self.publication.healed.clone(), broken: None };
            let (key, value) = (record_key(self.checkpoint.key()), serde_json::to_vec(&record)?);
            let state = StateRecord { topic: self.checkpoint.topic(), key: &key, value: &value };
            if self.emitter.kafka().save_best_effort(state)? != Sent::Taken {
                return Ok(());
            }
            self.log("the publication now sends more rows or other columns of routed tables");
            self.publication.coverage = Some(record.coverage);
            self.publication.watch.pop_notice();
        }
        Ok(())
    }
}
