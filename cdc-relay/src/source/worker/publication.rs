//! What the publication sends when a session begins.
//!
//! * It is compared with what it sent when the last session ended, or before the slot was made.
//! * Where nothing is known of it, it has to be what the routes need.
//! * A break is one whether or not the state topic took it: what was seen then need not be seen again.

use anyhow::anyhow;

use super::{AttemptError, SourceWorker};
use crate::checkpoint::refusal::{Break, Refusal};
use crate::checkpoint::state::Checkpoint;
use crate::postgres::session::Session;
use crate::source::coverage::baseline::baseline;
use crate::source::coverage::query;
use crate::source::coverage::record::Record;

impl SourceWorker {
    /// Writes down what the publication sends now, to compare with it from now on.
    pub(super) fn baseline(&self, session: &mut Session) -> Result<Record, AttemptError> {
        let coverage = baseline(session, &self.context.routes, &self.context.source)
            .map_err(|error| error.downcast().map_or_else(AttemptError::Failed, AttemptError::Refused))?;
        let record = Record { coverage, ..Record::default() };
        self.clients.save_publication(&record)?;
        Ok(record)
    }

    /// What the publication sends, compared with what it sent: refuses where it may have sent less in between.
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
        // A reconcile since then goes on behind it.
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
        // It has routes since this session, and left after the contract was checked, which the next attempt refuses.
        if let Some(table) = found.lacks(source) {
            return Err(
                anyhow!("{table} is not in publication {} any more", source.publication.get_ref()).into()
            );
        }
        self.broken = None;
        let record = Record { coverage: found.after(&known.coverage), ..known.clone() };
        if record != known {
            self.clients.save_publication(&record)?;
        }
        Ok(record)
    }

    /// Writes down that nothing is emitted until the rows were read again, and says why. If it cannot be written now, the
    /// next attempt writes it.
    pub(super) fn record_break(&mut self, record: Record, broken: Break) -> Refusal {
        let record = Record { broken: Some(broken.clone()), ..record };
        if let Err(error) = self.clients.save_publication(&record) {
            let source = self.context.source.name.get_ref();
            tracing::warn!(
                source,
                "the break of the publication cannot be written to the state topic; the next attempt writes it: {error:#}"
            );
            self.unwritten = Some(broken.clone());
        }
        Refusal::Broken(broken)
    }
}
