//! Holds every transaction until enough synchronous standbys have flushed it (`synchronous = "require"`).
//!
//! * So no promotion of a synchronous standby undoes a transaction whose event was emitted.
//! * The checkpoint says whether every session kept to this. If so, `run` goes on with a promoted standby by itself.
//! * A held transaction stays in the session's buffer. The stream reads nothing more, so the server waits too, and memory stays
//!   bounded; Postgres still gets its status messages.
//! * `gate` decides and `poller` asks. Positions come from the server's walsenders, as commits do that wait for
//!   the same standbys.

mod gate;
mod poller;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use self::gate::{Gate, Observation, Reason};
use self::poller::{Answer, Poller, Standbys};
use crate::checkpoint::refusal::Refusal;
use crate::observe::metrics::SourceMetrics;
use crate::observe::status::Status;
use crate::postgres::lsn::{Lsn, PgTime};
use crate::postgres::quorum::Standing;
use crate::postgres::server_identity::ServerIdentity;
use crate::source::context::SourceContext;

/// A transaction that waits longer is shown in the status, and logged.
const SHOW_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the other hosts are tried while a transaction waits.
const TRY_OTHERS_INTERVAL: Duration = Duration::from_secs(5);
/// A session whose transaction waits for so long without an answer of the server ends. The stream does not read meanwhile, so
/// nothing else shows that its server is frozen.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a command asks for the standbys.
const AWAIT_INTERVAL: Duration = Duration::from_millis(200);

/// The standbys of a session, as its stream sees them.
pub struct Synchronous {
    gate: Gate,
    poller: Poller,
    role: String,
    metrics: SourceMetrics,
    status: Status,
    /// Why the server did not answer the last question.
    failure: Option<String>,
    /// When the other hosts were tried last.
    tried_others_at: Instant,
    is_shown: bool,
}

impl Synchronous {
    /// `kept`: the checkpoint says that every session before kept to the rule. `identity`: the server that the stream reads.
    /// Call it once the session has the slot.
    pub fn begin(context: &Arc<SourceContext>, identity: ServerIdentity, kept: bool) -> Synchronous {
        let metrics = context.metrics.clone();
        metrics.standbys.kept.set(i64::from(kept));
        Synchronous {
            gate: Gate::new(kept, Instant::now()),
            poller: Poller::begin(context, identity),
            role: context.database.get_user().unwrap_or_default().to_owned(),
            metrics,
            status: context.status.clone(),
            failure: None,
            tried_others_at: Instant::now(),
            is_shown: false,
        }
    }

    /// Takes an answer, and asks the next question if it is due.
    ///
    /// # Errors
    /// The role may not see the standbys, the stream's server is not the primary any more, or it does not answer.
    pub fn tend(&mut self) -> Result<()> {
        let now = Instant::now();
        match self.poller.answer() {
            None => {}
            Some(Answer::Observed(observation)) => self.observe(observation, now),
            Some(Answer::Failed(question, reason)) => {
                self.gate.answered(question, now);
                self.failure = Some(reason);
            }
            Some(Answer::Hidden) => return Err(Refusal::StandbysHidden { role: self.role.clone() }.into()),
            Some(Answer::OtherServer(ServerIdentity { timeline, .. })) => {
                bail!("another server is the primary now, on timeline {timeline}; a new session begins there")
            }
        }
        if let Some(question) = self.gate.ask(now) {
            let since = self.gate.held_since().unwrap_or(now).max(self.tried_others_at);
            // A question that failed has left its host already: another change would lead back to it.
            if self.failure.is_none() && now.saturating_duration_since(since) >= TRY_OTHERS_INTERVAL {
                self.tried_others_at = now;
                self.poller.try_others();
            }
            self.poller.ask(question);
            self.metrics.standbys.queries.inc();
        }
        self.show(now);
        let silence = self.gate.silence(now);
        ensure!(
            silence < SERVER_TIMEOUT,
            "the server has not said for {} s which standbys have flushed the transaction that waits ({}); a new session \
             connects again",
            silence.as_secs(),
            self.failure.as_deref().unwrap_or("no answer")
        );
        Ok(())
    }

    fn observe(&mut self, observation: Observation, now: Instant) {
        self.failure = None;
        self.gate.observe(observation, now);
        let series = &self.metrics.standbys;
        series.flushed.set(self.gate.flushed().0 as f64);
        series.kept.set(i64::from(self.gate.is_kept()));
    }

    /// Whether a transaction that was committed at `commit_lsn` may be emitted. `end` finds the end of its commit record, if
    /// the buffer has it.
    pub fn passes(&mut self, commit_lsn: Lsn, end: impl FnOnce() -> Option<Lsn>) -> bool {
        let (before, now) = (self.gate.held_since(), Instant::now());
        let passes = self.gate.passes(commit_lsn, end, now);
        let series = &self.metrics.standbys;
        match (before, passes) {
            (None, false) => {
                series.held.inc();
                series.held_since.set(PgTime::now().unix_seconds());
            }
            (Some(since), true) => {
                series.hold.observe(now.saturating_duration_since(since).as_secs_f64());
                series.held_since.set(f64::NAN);
                self.show(now);
            }
            _ => {}
        }
        passes
    }

    /// Whether a transaction waits.
    pub fn holds(&self) -> bool {
        self.gate.held_since().is_some()
    }

    /// How long the stream may sleep until the next question is due, at most `timer`.
    pub fn limit(&self, timer: Duration) -> Duration {
        self.gate.due().map_or(timer, |due| due.saturating_duration_since(Instant::now()).min(timer))
    }

    /// Whether everything that was emitted from this timeline is flushed by synchronous standbys.
    pub fn is_kept(&self) -> bool {
        self.gate.is_kept()
    }

    /// Shows a long wait, and its end.
    fn show(&mut self, now: Instant) {
        let since = self.gate.held_since();
        let is_long = since.is_some_and(|since| now.saturating_duration_since(since) >= SHOW_TIMEOUT);
        if !is_long && !self.is_shown {
            return;
        }
        let text = self.gate.held().filter(|_| is_long).map(|(commit_lsn, reason)| {
            let why = self.failure.as_ref().map_or_else(
                || text(reason),
                |why| format!("the server does not say which standbys have flushed it: {why}"),
            );
            format!("the transaction of {commit_lsn} waits for a synchronous standby: {why}")
        });
        match (&text, self.is_shown) {
            (Some(text), false) => tracing::warn!(source = self.metrics.name, "nothing is emitted: {text}"),
            (None, true) => tracing::info!(
                source = self.metrics.name,
                "the synchronous standbys have flushed what was held"
            ),
            _ => {}
        }
        self.is_shown = text.is_some();
        self.status.hold(text);
    }
}

impl Drop for Synchronous {
    fn drop(&mut self) {
        // Another session, or another relay, emits what was held.
        self.metrics.standbys.held_since.set(f64::NAN);
        self.status.hold(None);
    }
}

/// Checks that the role may see the standbys, before a command changes anything. Call it off the runtime.
///
/// # Errors
/// It may not, or the server does not answer.
pub fn ensure_visible(context: &SourceContext) -> Result<()> {
    if context.runtime.block_on(look_up(context, &mut None))?.is_none() {
        let role = context.database.get_user().unwrap_or_default().to_owned();
        return Err(Refusal::StandbysHidden { role }.into());
    }
    Ok(())
}

/// Waits until enough synchronous standbys have flushed the WAL up to `position`, for a command that emits rows beside the
/// stream. `waits` receives what it waits for. Call it off the runtime.
///
/// # Errors
/// The role may not see the standbys, or the relay stops.
pub fn await_standbys(context: &SourceContext, position: Lsn, waits: &mut dyn FnMut(&str)) -> Result<()> {
    let mut connection = None;
    while !context.acks.stopping() {
        let why = match context.runtime.block_on(look_up(context, &mut connection)) {
            Ok(None) => {
                let role = context.database.get_user().unwrap_or_default().to_owned();
                return Err(Refusal::StandbysHidden { role }.into());
            }
            Ok(Some(Standing::Flushed(flushed))) if flushed >= position => return Ok(()),
            Ok(Some(standing)) => text(standing.into()),
            Err(error) => {
                connection = None;
                format!("{error:#}")
            }
        };
        waits(&format!("waiting until synchronous standbys have flushed {position}: {why}"));
        context.pause(AWAIT_INTERVAL);
    }
    bail!("the relay stopped before synchronous standbys had flushed {position}")
}

async fn look_up(context: &SourceContext, connection: &mut Option<Standbys>) -> Result<Option<Standing>> {
    let standbys = match connection {
        Some(ready) => ready,
        None => connection.insert(Standbys::connect(context).await?),
    };
    Ok(standbys.look_up().await?.map(|(_, standing)| standing))
}

/// Why a transaction waits, for people.
fn text(reason: Reason) -> String {
    match reason {
        Reason::NotAnswered => "the server has not answered yet".to_owned(),
        Reason::Behind(flushed) => format!("they have flushed up to {flushed}"),
        Reason::NotConfigured => {
            "synchronous_standby_names is empty, so there is none: name the standbys there, or take `synchronous` out of the \
             routes file"
                .to_owned()
        }
        Reason::TooFew { needed, connected } => {
            format!("{connected} are connected and commits wait for {needed}: look at the standbys")
        }
    }
}
