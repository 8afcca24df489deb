//! Makes slot and checkpoint ready for a session, and waits for a slot that another relay reads.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::{AttemptError, STANDBY_CHECK_INTERVAL, STANDBY_INTERVAL, SavedState, SourceWorker};
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::state::{Checkpoint, Cluster, NewSlot, Phase, Start};
use crate::observe::status::State;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::source::context::SourceContext;
use crate::source::contract::Contract;
use crate::source::coverage::record::Record;
use crate::source::inspect;
use crate::source::slots;
use crate::source::succession::{self, Candidate, Move, Request};

/// How often a relay looks at a free slot that another one may take before it.
const FREE_INTERVAL: Duration = Duration::from_millis(150);

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
        let chain_name = self.chain_name(checkpoint.as_ref());
        let slot = self.context.source.slot.get_ref();
        let new_slot = NewSlot { name: slot, chain_name: &chain_name, routes: &self.fingerprint };
        let fresh = |phase, acknowledged| Checkpoint::of_new_slot(cluster, &new_slot, phase, acknowledged);
        let begun = match (start, checkpoint) {
            (Start::Resume { .. }, Some(checkpoint))
                if checkpoint.routes == self.fingerprint && checkpoint.chain_name == chain_name =>
            {
                return Ok((checkpoint, publication));
            }
            // Other routes emit other transactions, so the first one names none before it. An earlier release named no chain.
            (Start::Resume { .. }, Some(checkpoint)) => {
                let (routes, chain) = (self.fingerprint.clone(), Lsn::ZERO);
                Checkpoint { routes, chain_name: chain_name.clone(), chain, ..checkpoint }
            }
            (Start::Adopt, _) => fresh(Phase::Streaming, confirmed),
            (Start::Create | Start::Resume { .. }, _) => {
                Contract { routes: &self.context.routes, source: &self.context.source }.publish(session)?;
                // After a crash here the next start finds `Creating`, and takes or makes the slot. Nothing was emitted from it.
                self.clients.save(&fresh(Phase::Creating, Lsn::ZERO))?;
                // The baseline comes before the slot, whose making may take long.
                publication = Some(self.baseline(session)?);
                let begin = self.make_slot(session, slot)?;
                tracing::info!(source = self.context.metrics.name, slot, %begin, "slot created");
                fresh(Phase::Streaming, begin)
            }
        };
        self.clients.save(&begun)?;
        Ok((begun, publication))
    }

    /// Returns the name of the chain that goes on; without one a chain begins now. A slot that was being made keeps the name
    /// that was saved before: two relays that find it so must not choose two.
    fn chain_name(&self, checkpoint: Option<&Checkpoint>) -> ChainName {
        let known = checkpoint.map(|checkpoint| &checkpoint.chain_name).filter(|name| !name.is_empty());
        let begin = || ChainName::begin(self.context.source.name.get_ref(), PgTime::now());
        known.cloned().unwrap_or_else(begin)
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

    /// This relay in the order of those that may read the slot.
    pub(super) fn candidate(&self) -> Candidate {
        Candidate::new(self.context.membership.clone(), self.context.source.slot.get_ref())
    }

    /// Waits until the slot is free and this relay's turn has come, or until everything must be checked again. Asks for the
    /// slot if this relay comes first.
    pub(super) fn stand_by(&mut self, slot_name: &str) -> Result<AttemptError, AttemptError> {
        self.context.status.set(State::Standby);
        let candidate = self.candidate();
        let mut session = Session::connect_to_read(&self.context.database)?;
        // A frozen primary must not hold up the wait for another one.
        session.set_silence_timeout(STANDBY_CHECK_INTERVAL)?;
        session.query(&format!("set application_name = {}", literal(&candidate.session_name())))?;
        let until = Instant::now() + STANDBY_CHECK_INTERVAL;
        let mut is_free = false;
        while !self.context.acks.stopping() && Instant::now() < until {
            self.context.pause(if is_free { FREE_INTERVAL } else { STANDBY_INTERVAL });
            let slot = inspect::slot(&mut session, slot_name)?;
            is_free = slot.is_none_or(|slot| slot.active_pid.is_none());
            if !self.standby_wait.is_due(is_free, Instant::now()) || !(is_free || candidate.shares()) {
                continue;
            }
            let place = candidate.place(&inspect::standbys(&mut session, &candidate)?);
            match self.standby_wait.next(is_free, place, Instant::now()) {
                Move::Wait => {}
                Move::Take => break,
                Move::Ask => ask(&mut session, &candidate.request())?,
            }
        }
        Ok(AttemptError::Turn)
    }
}

/// Asks the relay that reads the slot to hand it over.
fn ask(session: &mut Session, request: &Request) -> Result<(), AttemptError> {
    let content = serde_json::to_string(request).context("a request for the slot")?;
    let (prefix, content) = (literal(succession::PREFIX), literal(&content));
    session.query(&format!("select pg_catalog.pg_logical_emit_message(true, {prefix}, {content})"))?;
    Ok(())
}
