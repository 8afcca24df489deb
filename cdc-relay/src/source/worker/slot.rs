//! Makes slot and checkpoint ready for a session, and waits for a slot that another relay reads.

use std::time::Instant;

use super::{AttemptError, STANDBY_CHECK_INTERVAL, STANDBY_INTERVAL, SavedState, SourceWorker};
use crate::checkpoint::state::{Checkpoint, Cluster, Phase, Start};
use crate::observe::status::State;
use crate::postgres::lsn::Lsn;
use crate::postgres::session::Session;
use crate::source::context::SourceContext;
use crate::source::contract::Contract;
use crate::source::coverage::record::Record;
use crate::source::inspect;
use crate::source::slots;

impl SourceWorker {
    /// Makes slot and checkpoint ready to stream. Returns the checkpoint, and the known record of the publication.
    pub(super) fn begin(
        &self,
        start: Start,
        session: &mut Session,
        cluster: &Cluster,
        saved: SavedState,
        confirmed: Lsn,
    ) -> Result<(Checkpoint, Option<Record>), AttemptError> {
        let SavedState { checkpoint, mut publication } = saved;
        let fresh = |phase, acknowledged| {
            let slot = self.context.source.slot.get_ref();
            Checkpoint::of_new_slot(cluster, slot, &self.fingerprint, phase, acknowledged)
        };
        let begun = match (start, checkpoint) {
            (Start::Resume { .. }, Some(checkpoint)) if checkpoint.routes == self.fingerprint => {
                return Ok((checkpoint, publication));
            }
            // Other routes emit other transactions, so a new chain begins.
            (Start::Resume { .. }, Some(checkpoint)) => {
                Checkpoint { routes: self.fingerprint.clone(), chain: Lsn::ZERO, ..checkpoint }
            }
            (Start::Adopt, _) => fresh(Phase::Streaming, confirmed),
            (Start::Create | Start::Resume { .. }, _) => {
                Contract { routes: &self.context.routes, source: &self.context.source }.publish(session)?;
                // After a crash here the next start finds `Creating`, and takes or makes the slot. Nothing was emitted from it.
                self.clients.save(&fresh(Phase::Creating, Lsn::ZERO))?;
                // The baseline comes before the slot, whose making may take long.
                publication = Some(self.baseline(session)?);
                let slot = self.context.source.slot.get_ref();
                let begin = self.make_slot(session, slot)?;
                tracing::info!(source = self.context.metrics.name, slot, %begin, "slot created");
                fresh(Phase::Streaming, begin)
            }
        };
        self.clients.save(&begun)?;
        Ok((begun, publication))
    }

    /// Makes the slot. The status shows the transaction that it waits for.
    pub(super) fn make_slot(&self, session: &mut Session, slot: &str) -> Result<Lsn, AttemptError> {
        let SourceContext { database, acks, status, .. } = &*self.context;
        let mut waits = |blocker: Option<&str>| {
            if let Some(blocker) = blocker {
                status.set(State::Connecting(format!(
                    "slot {slot} begins after the transactions that are open now: waiting for {blocker} to end"
                )));
            }
            !acks.stopping()
        };
        slots::prepare(session)?;
        let made = slots::make(session, database, &inspect::slot_creation(slot), &mut waits)?;
        made.ok_or_else(|| anyhow::anyhow!("the relay stopped before slot {slot} was made").into())
    }

    /// Returns the confirmed position of the slot once this relay reads it. Somebody else may have advanced the slot, or made
    /// it again, after the first query. It takes another session, since the first one streams.
    pub(super) fn confirmed(&self, slot_name: &str) -> Result<Lsn, AttemptError> {
        let slot = inspect::slot(&mut Session::connect_to_read(&self.context.database)?, slot_name)?;
        Ok(slot.and_then(|slot| slot.confirmed).unwrap_or_default())
    }

    /// Waits until the slot is free, or until everything must be checked again.
    pub(super) fn stand_by(&self, slot_name: &str) -> Result<AttemptError, AttemptError> {
        self.context.status.set(State::Standby);
        let mut session = Session::connect_to_read(&self.context.database)?;
        let until = Instant::now() + STANDBY_CHECK_INTERVAL;
        while !self.context.acks.stopping() && Instant::now() < until {
            self.context.pause(STANDBY_INTERVAL);
            let slot = inspect::slot(&mut session, slot_name)?;
            if slot.is_none_or(|slot| slot.active_pid.is_none()) {
                break;
            }
        }
        Ok(AttemptError::Turn)
    }
}
