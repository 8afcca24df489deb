//! Finds what nobody is working on: leases that lapsed (their process died), pauses that are over, inquiries
//! that are due. Rows are all it knows, so any number of processors may sweep, and a restart resumes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::calls::{Calls, Report};
use crate::metrics::Metrics;
use crate::saga::{Event, State, Step, decide};
use crate::settled::Settled;
use crate::store::Store;
use crate::store::sweep::Seen;
use crate::watch::Watch;

/// How often the watched charges are asked whether one is due. Memory only.
const TICK: Duration = Duration::from_millis(50);
/// Rows per scan, at most one more than can be watched.
pub const WATCHED_MAX: usize = 100_000;
/// Charges looked at in one statement.
const LOOK_MAX: usize = 500;
/// When to look again at a charge that was due while all permits were taken, or that another one claimed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often the database is asked who it is (a restore or failover makes it another).
const IDENTITY_EVERY: Duration = Duration::from_secs(5);

pub struct Sweep {
    pub store: Store,
    pub calls: Calls,
    pub watch: Watch,
    pub settled: Settled,
    /// Bounds inquiries and repeated calls.
    pub permits: Arc<Semaphore>,
    /// How often to look for charges of processes that died.
    pub scan_every: Duration,
    /// How long a claimed inquiry is this process's.
    pub claim: Duration,
    /// The gateway's promise: a charge that was made is found after this.
    pub visibility: Duration,
    pub metrics: Metrics,
}

impl Sweep {
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut next_scan, mut next_identity) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if Instant::now() >= next_identity {
                let identity = self.store.identity().await;
                self.settled.set_identity(identity.as_deref().ok());
                next_identity = Instant::now() + IDENTITY_EVERY;
                self.failed("identity", identity.map(drop));
            }
            if Instant::now() >= next_scan {
                let scanned = self.scan().await;
                let wait =
                    if scanned.is_ok() { self.scan_every } else { self.scan_every.min(LOOK_AGAIN * 2) };
                next_scan = Instant::now() + wait;
                self.failed("scan", scanned);
            }
            let attended = self.attend().await;
            self.failed("look at due charges", attended);
        }
    }

    /// Everything here is tried again later anyway.
    fn failed(&self, what: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            Metrics::count(&self.metrics.failures, "database");
            tracing::warn!(error = format!("{error:#}"), "{what} failed, trying again");
        }
    }

    async fn scan(&self) -> anyhow::Result<()> {
        let (live, read_at) = self.store.scan(self.watch.low_water(), WATCHED_MAX + 1).await?;
        self.watch.scanned(&live, live.len() <= WATCHED_MAX, read_at);
        let age = |created: Timestamp| read_at.duration_since(created).as_secs();
        self.metrics.oldest_live_seconds.set(live.first().map_or(0, |oldest| age(oldest.created_at)));
        self.metrics.watched.set(self.watch.len() as i64);
        self.metrics.scans.inc();
        Ok(())
    }

    /// Looks at the charges that are due and sets going what each needs.
    async fn attend(&self) -> anyhow::Result<()> {
        let due = self.watch.take_due(LOOK_MAX, LOOK_AGAIN);
        if due.is_empty() {
            return Ok(());
        }
        let mut inquiries = Vec::new();
        for seen in self.store.look(&due).await? {
            let payment_id = seen.charge.payment_id;
            match (&seen.due, seen.state.has_ended()) {
                (_, true) => self.watch.forget(payment_id),
                (Err(wait), false) => self.watch.set(payment_id, *wait),
                (Ok(()), false) => inquiries.extend(self.due(seen)),
            }
        }
        self.inquire(&inquiries).await
    }

    /// A charge whose time has come; answers it if what it needs is an inquiry.
    fn due(&self, seen: Seen) -> Option<Uuid> {
        let Seen { charge, state, past_deadline, .. } = seen;
        let never_called = matches!(state, State::Waiting { .. });
        let event = if past_deadline && never_called { Event::DeadlinePassed } else { Event::LeaseLapsed };
        match decide(&state, &event) {
            Step::Inquire => Some(charge.payment_id),
            Step::Move(_) => {
                // Without a permit it is due again in a moment.
                if let Some(permit) = self.permit() {
                    self.calls.report(Report { charge, from: state, event, inquiry: None, permit });
                }
                None
            }
            Step::Insert(_)
            | Step::InquireLater
            | Step::Already
            | Step::TooLate
            | Step::Stale
            | Step::Contradiction
            | Step::Illegal => None,
        }
    }

    /// Claims as many inquiries as there are permits, and makes them.
    async fn inquire(&self, due: &[Uuid]) -> anyhow::Result<()> {
        let mut permits: Vec<OwnedSemaphorePermit> = due.iter().map_while(|_| self.permit()).collect();
        if permits.is_empty() {
            return Ok(());
        }
        let claims = self.store.claim(&due[..permits.len()], self.claim, self.visibility).await?;
        for claim in claims {
            let Some(permit) = permits.pop() else { break };
            // Looked at again if this inquiry is never reported.
            self.watch.set(claim.charge.payment_id, self.claim);
            self.calls.inquire(claim, permit);
        }
        Ok(())
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }
}
