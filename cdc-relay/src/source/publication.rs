//! What the publication sends when a session begins.
//!
//! * It is compared with what it sent when the last session ended, or before the slot was made.
//! * Where nothing is known of it, it has to be what the routes need.

use anyhow::anyhow;

use super::{Life, Trouble};
use crate::coverage::baseline::baseline;
use crate::coverage::record::{Break, Record};
use crate::coverage::{Replaced, look, losses};
use crate::lsn::Lsn;
use crate::state::Refusal;
use crate::wire::Session;

impl Life {
    /// Writes down what the publication sends now, to compare with it from now on.
    pub(super) fn baseline(&self, session: &mut Session) -> Result<Record, Trouble> {
        let coverage = baseline(session, &self.wiring.routes, &self.wiring.source)
            .map_err(|error| error.downcast().map_or_else(Trouble::Failed, Trouble::Refused))?;
        let record = Record { coverage, ..Record::default() };
        self.clients.remember_publication(&record)?;
        Ok(record)
    }

    /// What the publication sends, compared with what it sent: refuses where it may have sent less in between.
    pub(super) fn covered(
        &mut self,
        session: &mut Session,
        known: Option<Record>,
        acknowledged: Lsn,
    ) -> Result<Record, Trouble> {
        let Some(known) = known else {
            let record = self.baseline(session)?;
            self.broken = None;
            return Ok(record);
        };
        if let Some(broken) = known.broken {
            return Err(Refusal::Broken(broken).into());
        }
        let source = &self.wiring.source;
        let found = look::look(session, source)?;
        let losses = losses(&known.coverage, &found, source, &Replaced::default());
        if !losses.is_empty() {
            let broken = Break { what: losses.join("; "), since: acknowledged };
            self.clients.remember_publication(&Record { broken: Some(broken.clone()), ..known })?;
            return Err(Refusal::Broken(broken).into());
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
            self.clients.remember_publication(&record)?;
        }
        Ok(record)
    }
}
