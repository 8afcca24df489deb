//! Finds charges that nobody works on: lapsed leases of dead processes, ended pauses, due inquiries.
//!
//! * It reads rows only, so any number of processors may sweep, and a restart resumes.
//! * A scan finds new charges by age. A walk through the whole table, a few blocks after each scan, finds charges that
//!   appeared with an age that was scanned before.
//! * Once the database owns other users than before, all of its charges are scanned again.
//! * A charge of the due queue whose row is gone leaves the queue: the table may have been restored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use saga::telemetry::log_text;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::breaker::Refusal;
use crate::calls::{Calls, Permit, Report};
use crate::charge::Charge;
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::metrics::Metrics;
use crate::saga::{Event, State, Step, To, decide};
use crate::shares::Shares;
use crate::store::Store;
use crate::store::sweep::{ChargeAge, ChargeView, Due};

/// How often the due queue is polled. This reads no rows.
const DUE_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of charges in the due queue. A scan reads one row more.
pub const DUE_QUEUE_MAX: usize = 100_000;
/// Charges read in one statement.
const VIEW_ROWS_MAX: usize = 500;
/// Pause before a charge is due again that found no permit, or that another processor claimed.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Blocks of the table per statement of the walk: 4 MB.
const WALK_BLOCKS_MAX: u64 = 512;
/// The walk takes one fiftieth of the time between two scans.
const WALK_TIME_DIVISOR: u32 = 50;
/// Charges whose status and age are read at once, and counted at most.
const OLDEST_MAX: usize = 1000;
/// How often the identity of the database is read. A restore or failover changes it.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(5);

pub struct Sweep {
    pub store: Store,
    pub calls: Calls,
    pub due_queue: DueQueue,
    pub ended_cache: EndedCache,
    /// One permit per inquiry or repeated call.
    pub permits: Arc<Semaphore>,
    pub shares: Shares,
    /// How often to look for charges of processes that died.
    pub scan_interval: Duration,
    /// How long a claimed inquiry belongs to this process.
    pub claim: Duration,
    /// The visibility delay of the gateway: a charge that was made is found after it.
    pub visibility: Duration,
    pub metrics: Metrics,
}

impl Sweep {
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(DUE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut next_scan, mut next_identity) = (Instant::now(), Instant::now());
        let (mut known, mut changes, mut walked_to) = (None, None, 0);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if Instant::now() >= next_identity {
                let identity = self.store.identity().await;
                self.ended_cache.set_identity(identity.as_deref().ok());
                if let Ok(identity) = &identity
                    && known.replace(identity.clone()).is_some_and(|before| before != *identity)
                {
                    tracing::warn!(
                        "the database has another identity (a restore or a failover); all of its charges are scanned again"
                    );
                    self.due_queue.start_over();
                    next_scan = Instant::now();
                }
                next_identity = Instant::now() + IDENTITY_INTERVAL;
                self.failed("read the identity of the database", identity.map(drop));
                let owned = self.store.ownership_changes().await;
                if let Ok(owned) = owned
                    && changes.replace(owned).is_some_and(|before| before != owned)
                {
                    tracing::info!(
                        "the database owns other users than before; all of its charges are scanned again"
                    );
                    self.due_queue.start_over();
                    next_scan = Instant::now();
                }
                self.failed("read which users the database owns", owned.map(drop));
            }
            if Instant::now() >= next_scan {
                let scanned = self.scan(&mut walked_to).await;
                let wait = if scanned.is_ok() {
                    self.scan_interval
                } else {
                    self.scan_interval.min(RECHECK_INTERVAL * 2)
                };
                next_scan = Instant::now() + wait;
                self.failed("scan the charges", scanned);
            }
            let handled = self.handle_due().await;
            self.failed("read the due charges", handled);
        }
    }

    /// Counts and logs a failure. The work is repeated at the next interval anyway.
    fn failed(&self, what: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            Metrics::count(&self.metrics.failures, "database");
            tracing::warn!(
                error = log_text(&error),
                "the sweeper cannot read the database: {what}; it is tried again"
            );
        }
    }

    async fn scan(&self, walked_to: &mut u64) -> anyhow::Result<()> {
        let (live, read_at) = self.store.scan(self.due_queue.low_water(), DUE_QUEUE_MAX + 1).await?;
        self.due_queue.scanned(&live, live.len() <= DUE_QUEUE_MAX, read_at);
        self.walk(walked_to).await?;
        self.metrics.sweep.show_live(&self.oldest_live().await?);
        self.metrics.sweep.due_queue_charges.set(self.due_queue.len() as i64);
        self.metrics.sweep.scans.inc();
        Ok(())
    }

    /// Continues the walk for its share of the time, and at most once through the table.
    async fn walk(&self, walked_to: &mut u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let walk_step = self.store.walk(*walked_to, WALK_BLOCKS_MAX).await?;
            self.due_queue.add_walked(&walk_step.live);
            *walked_to = walk_step.next.unwrap_or(0);
            if *walked_to == 0 {
                self.metrics.sweep.walks.inc();
            }
            if *walked_to == 0 || begun.elapsed() >= self.scan_interval / WALK_TIME_DIVISOR {
                return Ok(());
            }
        }
    }

    /// The oldest charges that are not terminal.
    async fn oldest_live(&self) -> anyhow::Result<Vec<ChargeAge>> {
        loop {
            let oldest = self.due_queue.oldest(OLDEST_MAX);
            if oldest.is_empty() {
                return Ok(Vec::new());
            }
            let live = self.store.live(&oldest).await?;
            // The other charges ended elsewhere, or their rows are gone.
            let is_live: HashSet<Uuid> = live.iter().map(|charge| charge.payment_id).collect();
            oldest.iter().filter(|id| !is_live.contains(id)).for_each(|id| self.due_queue.remove(*id));
            if !live.is_empty() {
                return Ok(live);
            }
        }
    }

    /// Reads the due charges and begins the work that each needs.
    async fn handle_due(&self) -> anyhow::Result<()> {
        let due = self.due_queue.take_due(VIEW_ROWS_MAX, RECHECK_INTERVAL);
        if due.is_empty() {
            return Ok(());
        }
        let mut inquiries = Vec::new();
        let views = self.store.views(&due).await?;
        let found: HashSet<Uuid> = views.iter().map(|view| view.charge.payment_id).collect();
        due.iter().filter(|id| !found.contains(id)).for_each(|id| self.due_queue.remove(*id));
        for view in views {
            let payment_id = view.charge.payment_id;
            match (&view.due, view.state.has_ended()) {
                (_, true) => self.due_queue.remove(payment_id),
                (Due::After(wait), false) => self.due_queue.set(payment_id, *wait),
                (Due::Now, false) => inquiries.extend(self.due(view)),
            }
        }
        self.inquire(inquiries).await
    }

    /// Handles a due charge. Returns it, with a permit, if it needs an inquiry.
    fn due(&self, view: ChargeView) -> Option<(Uuid, Permit)> {
        let ChargeView { charge, state, past_deadline, .. } = view;
        let never_called = matches!(state, State::Waiting { .. });
        let event = if past_deadline && never_called { Event::DeadlinePassed } else { Event::LeaseLapsed };
        match decide(&state, &event) {
            Step::Inquire => Some((charge.payment_id, self.permit(Some(&charge))?)),
            Step::Move(to) => {
                let calls = matches!(to, To::Calling { .. });
                // Without a permit the charge is due again soon.
                let permit = self.permit(calls.then_some(&charge))?;
                let pass = match calls.then(|| self.calls.breaker.begin(&charge)).transpose() {
                    Ok(pass) => pass,
                    Err(refusal) => {
                        self.due_queue.set(charge.payment_id, pause(refusal));
                        return None;
                    }
                };
                self.calls.report(Report { charge, from: state, event, inquiry: None, permit, pass });
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

    /// Claims inquiries and makes them. A charge that another processor claims gives its permit back.
    async fn inquire(&self, due: Vec<(Uuid, Permit)>) -> anyhow::Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let mut permits: HashMap<Uuid, Permit> = due.into_iter().collect();
        let ids: Vec<Uuid> = permits.keys().copied().collect();
        for claim in self.store.claim(&ids, self.claim, self.visibility).await? {
            let Some(permit) = permits.remove(&claim.charge.payment_id) else { continue };
            // The charge is due again if this inquiry is never reported.
            self.due_queue.set(claim.charge.payment_id, self.claim);
            self.calls.inquire(claim, permit);
        }
        Ok(())
    }

    /// A permit for one more charge, with a share of its user and service if it calls the gateway.
    fn permit(&self, charge: Option<&Charge>) -> Option<Permit> {
        let room = self.permits.clone().try_acquire_owned().ok()?;
        let share = match charge {
            Some(charge) => Some(self.shares.take(charge)?),
            None => None,
        };
        Some(Permit { room, share })
    }
}

/// The pause after a refusal of the breaker.
fn pause(refusal: Refusal) -> Duration {
    let pause = refusal.until.map(|until| until.saturating_duration_since(Instant::now()));
    pause.map_or(RECHECK_INTERVAL, |pause| pause.max(DUE_INTERVAL))
}
