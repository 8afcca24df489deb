//! Finds what nobody is working on: leases that lapsed (their process died), pauses that are over, inquiries
//! that are due. Rows are all it knows, so any number of processors may sweep, and a restart resumes.
//!
//! * New charges are found by age, a scan at a time; those that appear with an age that was scanned before, by a walk
//!   through the whole table, a few blocks after each scan.
//! * What is watched and is not there any more is forgotten: the table may have been restored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::store::sweep::ChargeView;

/// How often the watched charges are asked whether one is due. Memory only.
const DUE_INTERVAL: Duration = Duration::from_millis(50);
/// Rows per scan, at most one more than can be watched.
pub const DUE_QUEUE_MAX: usize = 100_000;
/// Charges looked at in one statement.
const VIEW_ROWS_MAX: usize = 500;
/// When to look again at a charge that was due while all permits were taken, or that another one claimed.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Blocks of the table in one statement of the walk: 4 MB.
const WALK_BLOCKS_MAX: u64 = 512;
/// Of the time between two scans so much is spent on walking: a fiftieth.
const WALK_TIME_DIVISOR: u32 = 50;
/// Charges whose age is asked for at once.
const OLDEST_MAX: usize = 100;
/// How often the database is asked who it is (a restore or failover makes it another).
const IDENTITY_INTERVAL: Duration = Duration::from_secs(5);

pub struct Sweep {
    pub store: Store,
    pub calls: Calls,
    pub due_queue: DueQueue,
    pub ended_cache: EndedCache,
    /// Bounds inquiries and repeated calls.
    pub permits: Arc<Semaphore>,
    pub shares: Shares,
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
        let mut ticks = tokio::time::interval(DUE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut next_scan, mut next_identity) = (Instant::now(), Instant::now());
        let (mut known, mut walked_to) = (None, 0);
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
                        "the database is another one than before: all of its charges are looked at"
                    );
                    self.due_queue.start_over();
                    next_scan = Instant::now();
                }
                next_identity = Instant::now() + IDENTITY_INTERVAL;
                self.failed("identity", identity.map(drop));
            }
            if Instant::now() >= next_scan {
                let scanned = self.scan(&mut walked_to).await;
                let wait =
                    if scanned.is_ok() { self.scan_every } else { self.scan_every.min(RECHECK_INTERVAL * 2) };
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

    async fn scan(&self, walked_to: &mut u64) -> anyhow::Result<()> {
        let (live, read_at) = self.store.scan(self.due_queue.low_water(), DUE_QUEUE_MAX + 1).await?;
        self.due_queue.scanned(&live, live.len() <= DUE_QUEUE_MAX, read_at);
        self.walk(walked_to).await?;
        let oldest = self.oldest_live().await?;
        self.metrics.oldest_live_seconds.set(oldest.map_or(0, |age| age.as_secs() as i64));
        self.metrics.due_queue_charges.set(self.due_queue.len() as i64);
        self.metrics.scans.inc();
        Ok(())
    }

    /// Goes on with the walk for its share of the time, and at most once through the table.
    async fn walk(&self, walked_to: &mut u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let walk_step = self.store.walk(*walked_to, WALK_BLOCKS_MAX).await?;
            self.due_queue.add_walked(&walk_step.live);
            *walked_to = walk_step.next.unwrap_or(0);
            if *walked_to == 0 {
                self.metrics.walks.inc();
            }
            if *walked_to == 0 || begun.elapsed() >= self.scan_every / WALK_TIME_DIVISOR {
                return Ok(());
            }
        }
    }

    /// The age of the oldest charge that has not ended, as the database says now.
    async fn oldest_live(&self) -> anyhow::Result<Option<Duration>> {
        loop {
            let oldest = self.due_queue.oldest(OLDEST_MAX);
            if oldest.is_empty() {
                return Ok(None);
            }
            let (live, read_at) = self.store.live(&oldest).await?;
            // The others ended elsewhere, or are not there any more.
            let is_live: HashSet<Uuid> = live.iter().map(|live| live.payment_id).collect();
            oldest.iter().filter(|id| !is_live.contains(id)).for_each(|id| self.due_queue.remove(*id));
            if let (Some(first), Some(read_at)) = (live.first(), read_at) {
                let age = read_at.duration_since(first.created_at);
                return Ok(Some(age.try_into().unwrap_or(Duration::ZERO)));
            }
        }
    }

    /// Looks at the charges that are due and sets going what each needs.
    async fn attend(&self) -> anyhow::Result<()> {
        let due = self.due_queue.take_due(VIEW_ROWS_MAX, RECHECK_INTERVAL);
        if due.is_empty() {
            return Ok(());
        }
        let mut inquiries = Vec::new();
        let looked = self.store.views(&due).await?;
        let there: HashSet<Uuid> = looked.iter().map(|view| view.charge.payment_id).collect();
        due.iter().filter(|id| !there.contains(id)).for_each(|id| self.due_queue.remove(*id));
        for view in looked {
            let payment_id = view.charge.payment_id;
            match (&view.due, view.state.has_ended()) {
                (_, true) => self.due_queue.remove(payment_id),
                (Err(wait), false) => self.due_queue.set(payment_id, *wait),
                (Ok(()), false) => inquiries.extend(self.due(view)),
            }
        }
        self.inquire(inquiries).await
    }

    /// A charge whose time has come; answers it, and the right to ask, if what it needs is an inquiry.
    fn due(&self, view: ChargeView) -> Option<(Uuid, Permit)> {
        let ChargeView { charge, state, past_deadline, .. } = view;
        let never_called = matches!(state, State::Waiting { .. });
        let event = if past_deadline && never_called { Event::DeadlinePassed } else { Event::LeaseLapsed };
        match decide(&state, &event) {
            Step::Inquire => Some((charge.payment_id, self.permit(Some(&charge))?)),
            Step::Move(to) => {
                let calls = matches!(to, To::Calling { .. });
                // Without a permit it is due again in a moment.
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

    /// Claims inquiries and makes them. What another processor claims gives its permit back.
    async fn inquire(&self, due: Vec<(Uuid, Permit)>) -> anyhow::Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let mut permits: HashMap<Uuid, Permit> = due.into_iter().collect();
        let ids: Vec<Uuid> = permits.keys().copied().collect();
        for claim in self.store.claim(&ids, self.claim, self.visibility).await? {
            let Some(permit) = permits.remove(&claim.charge.payment_id) else { continue };
            // Looked at again if this inquiry is never reported.
            self.due_queue.set(claim.charge.payment_id, self.claim);
            self.calls.inquire(claim, permit);
        }
        Ok(())
    }

    /// Room for one more, with a share of its user and service if it goes to the gateway.
    fn permit(&self, charge: Option<&Charge>) -> Option<Permit> {
        let room = self.permits.clone().try_acquire_owned().ok()?;
        let share = match charge {
            Some(charge) => Some(self.shares.take(charge)?),
            None => None,
        };
        Some(Permit { room, share })
    }
}

/// When to ask a breaker again that refused.
fn pause(refusal: Refusal) -> Duration {
    let pause = refusal.until.map(|until| until.saturating_duration_since(Instant::now()));
    pause.map_or(RECHECK_INTERVAL, |pause| pause.max(DUE_INTERVAL))
}
