//! Compares the publication's coverage at the start of a session with the last known one.
//!
//! * The last known coverage is that of the last session's end, or of the time before the slot was made.
//! * Without a known coverage, the publication must have all that the routes need.
//! * A break counts even if the state topic did not take it, since the next check may not find it again.

use anyhow::anyhow;

use super::{AttemptError, SourceWorker};
use crate::checkpoint::refusal::{Break, Refusal};
use crate::checkpoint::state::Checkpoint;
use crate::postgres::session::Session;
use crate::source::coverage::baseline::baseline;
use crate::source::coverage::query;
use crate::source::coverage::record::Record;

impl SourceWorker {
    /// Saves the current coverage, which later ones are compared with.
    pub(super) fn baseline(&self, session: &mut Session) -> Result<Record, AttemptError> {
        let coverage = baseline(session, &self.context.routes, &self.context.source)
            .map_err(|error| error.downcast().map_or_else(AttemptError::Failed, AttemptError::Refused))?;
        let record = Record { coverage, ..Record::default() };
        self.clients.save_publication(&record)?;
        Ok(record)
    }

    /// Compares the current coverage with the known one. Refuses if the publication may have sent fewer rows in between.
    pub(super) fn covered(
        &mut self,
        session: &mut Session,
        known: Option<Record>,
        checkpoint: &Checkpoint,
    ) -> Result<Record, AttemptError> {
        let Some(known) = known else {
            let record = self.baseline(session)?;
            (self.broken, self.unwritten) = (None, None);
            return Ok(record);
        };
        if let Some(broken) = known.broken.clone() {
            // The state topic took it after all.
            self.unwritten = None;
            return Err(Refusal::Broken(broken).into());
        }
        // A resnapshot since then has a later position.
        if let Some(broken) =
            self.unwritten.take().filter(|broken| checkpoint.complete_until() <= broken.since)
        {
            return Err(self.record_break(known, broken).into());
        }
        let source = &self.context.source;
        let found = query::coverage(session, source)?;
        if let Some(broken) = known.judge(&found, source, checkpoint.complete_until()) {
            return Err(self.record_break(known, broken).into());
        }
        // The table left after the contract was checked. The next attempt refuses it.
        if let Some(table) = found.lacks(source) {
            return Err(anyhow!(
                "{table} was removed from publication {} during the start, which is repeated",
                source.publication.get_ref()
            )
            .into());
        }
        self.broken = None;
        let record = Record { coverage: found.after(&known.coverage), ..known.clone() };
        if record != known {
            self.clients.save_publication(&record)?;
        }
        Ok(record)
    }

    /// Saves the break, and returns the refusal. A break that cannot be saved now is saved by the next attempt.
    pub(super) fn record_break(&mut self, record: Record, broken: Break) -> Refusal {
        let record = Record { broken: Some(broken.clone()), ..record };
        if let Err(error) = self.clients.save_publication(&record) {
            let source = self.context.source.name.get_ref();
            tracing::warn!(
                source,
                "the break of the publication could not be saved in the state topic; the next attempt saves it: {error:#}"
            );
            self.unwritten = Some(broken.clone());
        }
        Refusal::Broken(broken)
    }
}
