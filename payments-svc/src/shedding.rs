//! Stops accepting payments while their holds do not come: a payment that only waits helps nobody.
//!
//! * The measure is the delay from the acceptance of a payment to its hold or rejection. What comes after that, calls of the
//!   gateway and unknown outcomes, does not count.
//! * It is taken from rows, since any instance may consume the hold of a payment that this one accepted.
//! * It is taken from samples: one accepted payment per interval, looked up by primary key until it has its hold or is late.
//!   So the cost is bounded by the configured delay, whatever the load and the backlog; and without payments there is none.
//! * A single late payment proves nothing: its event may be parked, or only its partition may wait. So many samples in a row
//!   are late before payments are refused.
//! * While payments are refused, one per interval is accepted: its hold shows whether the delay is over. So shedding ends by
//!   itself, and needs no knowledge of balance-svc.
//! * The idempotency key still counts first: a request that was accepted before gets its 201 again.
//!
//! Each instance decides for itself, by what it accepted itself. A restart forgets: the instance accepts until it has seen
//! that holds are late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use saga::shards::{Part, Router};
use saga::telemetry::log_text;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::store::{self, Hold};

/// Samples in a row that are late before payments are refused. With one of four partitions at a standstill, and all others
/// well, that happens by chance once in a million samples.
const LATE_MAX: u32 = 10;
/// Samples in a row that are on time before payments are accepted again.
const ON_TIME_MIN: u32 = 3;
/// The delay that is still on time while payments are refused, as a part of the configured one: what would be late again at
/// once is not over.
const RECOVERED_DIVISOR: u32 = 2;
/// The interval is this part of the configured delay, between the two bounds.
const INTERVAL_DIVISOR: u32 = 50;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Whether payments are accepted, and what speaks for the opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open {
        /// The last samples in a row that were late.
        late: u32,
    },
    Shedding {
        /// The last samples in a row that were on time.
        on_time: u32,
    },
}

/// The verdict about the hold of one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punctuality {
    OnTime,
    Late,
    /// It has not come, and is not late yet.
    Waits,
}

impl Gate {
    /// The longest delay that is on time.
    fn limit(self, delay_max: Duration) -> Duration {
        match self {
            Gate::Open { .. } => delay_max,
            Gate::Shedding { .. } => delay_max / RECOVERED_DIVISOR,
        }
    }
}

/// Judges the hold of a sample. One that came late is late, too.
pub fn judge(gate: Gate, delay_max: Duration, is_answered: bool, delay: Duration) -> Punctuality {
    match (delay > gate.limit(delay_max), is_answered) {
        (true, _) => Punctuality::Late,
        (false, true) => Punctuality::OnTime,
        (false, false) => Punctuality::Waits,
    }
}

/// The gate after one more verdict.
pub fn next(gate: Gate, verdict: Punctuality) -> Gate {
    match (gate, verdict) {
        (gate, Punctuality::Waits) => gate,
        (Gate::Open { .. }, Punctuality::OnTime) => Gate::Open { late: 0 },
        (Gate::Open { late }, Punctuality::Late) if late + 1 < LATE_MAX => Gate::Open { late: late + 1 },
        (Gate::Open { .. } | Gate::Shedding { .. }, Punctuality::Late) => Gate::Shedding { on_time: 0 },
        (Gate::Shedding { on_time }, Punctuality::OnTime) if on_time + 1 < ON_TIME_MIN => {
            Gate::Shedding { on_time: on_time + 1 }
        }
        (Gate::Shedding { .. }, Punctuality::OnTime) => Gate::Open { late: 0 },
    }
}

/// The decision about one request to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A payment may be made.
    Accept,
    /// Only a payment that was accepted before is given back.
    Shed,
}

/// Decides whether payments are accepted. Clones share the samples.
#[derive(Clone)]
pub struct Shedding(Option<Arc<Sampler>>);

struct Sampler {
    delay_max: Duration,
    /// Between two samples, two looks at them, and two payments that are accepted while the others are refused.
    interval: Duration,
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    gate: Gate,
    /// By payment: the user. They wait for their verdicts.
    samples: HashMap<Uuid, Uuid>,
    sampled_at: Option<Instant>,
    probed_at: Option<Instant>,
}

impl Shedding {
    /// Refuses payments while holds take longer than `delay_max`; zero refuses none.
    pub fn start(delay_max: Duration, router: Router, metrics: Metrics) -> Self {
        if delay_max.is_zero() {
            return Self::none();
        }
        let sampler = Arc::new(Sampler::new(delay_max, metrics));
        tokio::spawn(look(Arc::downgrade(&sampler), sampler.interval, router));
        Self(Some(sampler))
    }

    /// Refuses no payment.
    pub fn none() -> Self {
        Self(None)
    }

    /// Decides about a request to pay that arrives now.
    pub fn admission(&self) -> Admission {
        self.0.as_ref().map_or(Admission::Accept, |sampler| sampler.admission(Instant::now()))
    }

    /// A payment was accepted: it may become a sample.
    pub fn accepted(&self, user_id: Uuid, payment_id: Uuid) {
        if let Some(sampler) = &self.0 {
            sampler.sample(Instant::now(), user_id, payment_id);
        }
    }
}

/// Looks at the samples once per interval, as long as anybody accepts payments.
async fn look(sampler: Weak<Sampler>, interval: Duration, router: Router) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(sampler) = sampler.upgrade() else { return };
        let samples = sampler.samples();
        if samples.is_empty() {
            continue;
        }
        let users: Vec<Uuid> = samples.iter().map(|(user_id, _)| *user_id).collect();
        // The samples of users who are being moved, or whose shard is away, stay.
        for Part { ownership, items } in router.split(&users).await.owned {
            let samples: Vec<(Uuid, Uuid)> = items.into_iter().map(|item| samples[item]).collect();
            match router.in_time(store::holds(&ownership, &samples)).await {
                Ok(holds) => sampler.judge(&samples, &holds),
                Err(error) => {
                    router.was_refused(&ownership, &error).await;
                    tracing::warn!(
                        error = log_text(&error),
                        "the delay of holds cannot be read; it is tried again"
                    );
                }
            }
        }
    }
}

impl Sampler {
    fn new(delay_max: Duration, metrics: Metrics) -> Self {
        let state = State {
            gate: Gate::Open { late: 0 },
            samples: HashMap::new(),
            sampled_at: None,
            probed_at: None,
        };
        let interval = (delay_max / INTERVAL_DIVISOR).clamp(INTERVAL_MIN, INTERVAL_MAX);
        Self { delay_max, interval, state: Mutex::new(state), metrics }
    }

    /// The state stays whole whatever panicked while it was locked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admission(&self, now: Instant) -> Admission {
        let mut state = self.state();
        match state.gate {
            Gate::Open { .. } => Admission::Accept,
            Gate::Shedding { .. } if is_due(state.probed_at, now, self.interval) => {
                state.probed_at = Some(now);
                Admission::Accept
            }
            Gate::Shedding { .. } => Admission::Shed,
        }
    }

    fn sample(&self, now: Instant, user_id: Uuid, payment_id: Uuid) {
        let mut state = self.state();
        if is_due(state.sampled_at, now, self.interval) {
            state.sampled_at = Some(now);
            state.samples.insert(payment_id, user_id);
        }
    }

    /// User and payment of each sample that waits for its verdict.
    fn samples(&self) -> Vec<(Uuid, Uuid)> {
        self.state().samples.iter().map(|(payment_id, user_id)| (*user_id, *payment_id)).collect()
    }

    /// Judges the holds of `samples`, in the order in which their payments were accepted.
    fn judge(&self, samples: &[(Uuid, Uuid)], holds: &[Hold]) {
        let mut holds = holds.to_vec();
        // A payment's id begins with the time.
        holds.sort_unstable_by_key(|hold| hold.payment_id);
        let mut state = self.state();
        let before = state.gate;
        for hold in &holds {
            let verdict = judge(state.gate, self.delay_max, hold.is_answered, hold.delay);
            if verdict != Punctuality::Waits {
                self.metrics.hold_seconds.observe(hold.delay.as_secs_f64());
                state.samples.remove(&hold.payment_id);
            }
            state.gate = next(state.gate, verdict);
        }
        // A row that is gone, as after a restore, never gets a hold.
        for (_, payment_id) in samples {
            if holds.binary_search_by_key(payment_id, |hold| hold.payment_id).is_err() {
                state.samples.remove(payment_id);
            }
        }
        self.report(before, state.gate);
    }

    fn report(&self, before: Gate, after: Gate) {
        match (before, after) {
            (Gate::Open { .. }, Gate::Shedding { .. }) => {
                self.metrics.shedding.set(1);
                tracing::warn!(delay_max = ?self.delay_max, "holds take too long; new payments are refused until they come in time");
            }
            (Gate::Shedding { .. }, Gate::Open { .. }) => {
                self.metrics.shedding.set(0);
                tracing::info!("holds come in time again; new payments are accepted");
            }
            (Gate::Open { .. }, Gate::Open { .. }) | (Gate::Shedding { .. }, Gate::Shedding { .. }) => {}
        }
    }
}

fn is_due(last: Option<Instant>, now: Instant, interval: Duration) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= interval)
}

#[cfg(test)]
#[path = "shedding_tests.rs"]
mod tests;
