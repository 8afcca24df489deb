//! Goes on with a promoted standby by itself, if synchronous standbys had everything before it was emitted.
//!
//! * The checkpoint says that they had. Then a promoted standby has everything that was emitted, to Kafka and to a queue, also what the
//!   checkpoint does not show yet, if it is one of those that commits waited for. With `ANY n` of more than n names not every one is:
//!   whoever promotes has to choose, as for the commits themselves. What was saved is compared with the branch in any case.
//! * Everything else is judged as `cdc-relay failover` does: the branch of the timeline, the slot, the routes.
//! * It is refused where events that are emitted again would get other ids.
//! * Two relays may do this at the same time: the newer checkpoint counts, and only one of them gets the slot.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{AttemptError, SourceWorker};
use crate::checkpoint::failover::{Continuation, Evidence, branches, judge};
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::state::{Checkpoint, Cluster, Phase, Slot};
use crate::postgres::lsn::Lsn;
use crate::postgres::server_identity::ServerIdentity;
use crate::postgres::session::Session;
use crate::routes::{Source, SynchronousRule};
use crate::source::backfill::snapshot;
use crate::source::clients::Loaded;
use crate::source::inspect;
use crate::source::synchronous::Synchronous;

/// Where none but a former primary has answered for so long, the source is refused: the newer one may not exist any more.
const FORMER_TIMEOUT: Duration = Duration::from_secs(60);

/// The server of the session.
#[derive(Clone, Copy)]
pub(super) struct Server<'a> {
    pub cluster: &'a Cluster,
    pub database: &'a str,
    pub slot: Option<&'a Slot>,
}

impl SourceWorker {
    /// Whether transactions wait for synchronous standbys.
    pub(super) fn waits_for_standbys(&self) -> bool {
        self.context.source.synchronous == SynchronousRule::Require
    }

    /// The standbys that transactions of a session wait for. Call it once the session has the slot.
    pub(super) fn standbys(&self, checkpoint: &Checkpoint) -> Option<Synchronous> {
        let begin = || Synchronous::begin(&self.context, checkpoint.into(), checkpoint.synchronous);
        self.waits_for_standbys().then(begin)
    }

    /// Leaves a server that was the primary before the checkpoint's timeline began, if another host may be the primary now, and has
    /// all connections leave it. With one host `admit` refuses the timeline, as after a restore.
    ///
    /// # Errors
    /// It is such a server. The next attempt tries the other hosts first. It is a refusal once none but such servers has answered for
    /// a while.
    pub(super) fn leave_former(
        &mut self,
        cluster: &Cluster,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), AttemptError> {
        let database = &self.context.database;
        let (expected, found) = (checkpoint.map(ServerIdentity::from), ServerIdentity::from(cluster));
        database.keep_to(expected.clone());
        let former = expected.filter(|expected| database.host_count() > 1 && expected.succeeds(&found));
        let Some(expected) = former else {
            self.former_since = None;
            return Ok(());
        };
        database.try_others();
        let since = *self.former_since.get_or_insert_with(Instant::now);
        Err(left(&expected, &found, since.elapsed()))
    }

    /// Leaves a former primary before anything is judged by its catalog, or altered there. Only where the checkpoint that was loaded
    /// before says that it is one, the checkpoint is loaded again.
    pub(super) fn leave_known_former(&mut self, cluster: &Cluster) -> Result<(), AttemptError> {
        let known = self.context.database.primary();
        if known.is_some_and(|known| known.succeeds(&cluster.into())) {
            self.leave_former_of_several(cluster)?;
        }
        Ok(())
    }

    /// As `leave_former`, by the checkpoint as it is now. One host costs nothing.
    pub(super) fn leave_former_of_several(&mut self, cluster: &Cluster) -> Result<(), AttemptError> {
        if self.context.database.host_count() > 1 {
            self.clients.connect()?;
            let loaded = self.clients.load(0)?;
            self.leave_former(cluster, loaded.checkpoint.as_ref())?;
        }
        Ok(())
    }

    /// A refusal came before the checkpoint was known: it may be a former primary's, so the next attempt begins with the other hosts.
    pub(super) fn doubt_host(&self) {
        let database = &self.context.database;
        if database.primary().is_none() {
            database.try_others();
        }
    }

    /// Saves the checkpoint with which the relay goes on after a promotion. Nothing changes where none was, and where
    /// sessions did not wait for standbys: `admit` refuses the other timeline then.
    pub(super) fn follow_promotion(
        &self,
        session: &mut Session,
        server: Server<'_>,
        loaded: &mut Loaded,
    ) -> Result<(), AttemptError> {
        let Some(checkpoint) = loaded.checkpoint.as_ref().filter(|checkpoint| {
            let Cluster { system_id, timeline, .. } = server.cluster;
            checkpoint.synchronous
                && checkpoint.phase == Phase::Streaming
                && (checkpoint.system_id == *system_id && checkpoint.timeline != *timeline)
        }) else {
            return Ok(());
        };
        let (expected, found) = (checkpoint.timeline, server.cluster.timeline);
        // This process may have emitted more than was saved.
        let sent_lsn = checkpoint.sent_lsn.max(self.emitted.until(checkpoint));
        let known = Checkpoint { sent_lsn, ..checkpoint.clone() };
        let history = branches(&inspect::timeline_history(session, found)?);
        let unfinished = snapshot::unfinished(&self.context.source, server.cluster, &loaded.positions);
        let judged = judge(&Evidence {
            checkpoint: Some(&known),
            cluster: server.cluster,
            standby: false,
            database: server.database,
            routes: &self.fingerprint,
            unfinished: unfinished.as_deref(),
            branches: &history,
            slot: server.slot,
            newest: Lsn::ZERO,
        });
        let judged = judged.map_err(|obstacle| obstacle.to_string());
        let judged = judged.and_then(|continuation| match renamed(&self.context.source) {
            Some(why) => Err(why),
            None => Ok(continuation),
        });
        let Continuation { checkpoint, branch } =
            judged.map_err(|why| Refusal::NotContinued { expected, found, why })?;
        self.clients.save(&checkpoint)?;
        let source = &self.context.metrics.name;
        tracing::warn!(source, timeline = found, branched_off = %branch.at, "goes on with a promoted standby, which has everything that was emitted");
        loaded.checkpoint = Some(checkpoint);
        Ok(())
    }
}

/// Why a former primary is left. `lasts`: for how long none but former primaries has answered.
fn left(expected: &ServerIdentity, found: &ServerIdentity, lasts: Duration) -> AttemptError {
    if lasts < FORMER_TIMEOUT {
        return anyhow!(expected.former(found)).into();
    }
    Refusal::OnlyFormer { expected: expected.timeline, found: found.timeline }.into()
}

/// Why events that are emitted again after a promotion would get other ids.
fn renamed(source: &Source) -> Option<String> {
    let table = source.tables.iter().find(|table| table.id.is_none())?;
    Some(format!(
        "{} has no `id`, so its events are named after the timeline, and those that are emitted again would get another id. To \
         accept that: `cdc-relay failover --yes`",
        table.table_name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A promoted primary that restarts is waited for; after a restore nothing newer ever comes.
    #[test]
    fn a_former_primary_is_refused_only_once_nothing_newer_has_answered_for_a_while() {
        let server = |timeline| ServerIdentity { system_id: "1".to_owned(), timeline };
        for (seconds, is_refused) in [(0, false), (59, false), (60, true), (600, true)] {
            let (is_right, text) = match left(&server(3), &server(1), Duration::from_secs(seconds)) {
                AttemptError::Refused(refusal) => (is_refused, refusal.to_string()),
                AttemptError::Failed(error) => (!is_refused, error.to_string()),
                _ => (false, String::new()),
            };
            assert!(is_right && text.contains("takes writes on timeline 1"), "{seconds} s: {text}");
        }
    }
}
