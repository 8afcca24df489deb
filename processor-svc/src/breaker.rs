//! The circuit breaker: while the gateway is out of order no calls are made, and no messages are taken for
//! them.
//!
//! Only faults count against it: a decline is an answer of a gateway that works. After a pause a few probes go
//! out; when all of them are answered, calls flow again.
//!
//! Why not a crate: `failsafe` lets every call through while half-open, `recloser` at least so many; with
//! hundreds of calls waiting either would send them all to a gateway that may still be down. Here the probes
//! are counted while they are under way, a call begun before the breaker opened says nothing about the
//! probes, and whoever takes messages can wait for calls to flow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::watch;

/// When it opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Faults in a row, none answered in between, after which it opens.
    pub faults: u32,
    /// How long it stays open before it lets probes through.
    pub pause: Duration,
    /// Probes at most, and answers needed to close.
    pub probes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls flow; the last `faults` of them failed.
    Closed { faults: u32 },
    /// No calls before `until`.
    Open { until: Instant },
    /// Probes under way, and probes that were answered.
    HalfOpen { under_way: u32, answered: u32 },
}

/// How a call ended, as far as the gateway's health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered, be it a decline.
    Answered,
    /// It could not be reached, was silent, broke off or failed.
    Fault,
    /// Nothing was learned.
    Neither,
}

impl State {
    /// Whether a call may begin at `now`, and the state in which that leaves the breaker.
    pub fn begin(self, now: Instant, limits: &Limits) -> (State, bool) {
        match self {
            State::Closed { .. } => (self, true),
            State::Open { until } if now < until => (self, false),
            State::Open { .. } => (State::HalfOpen { under_way: 1, answered: 0 }, true),
            State::HalfOpen { under_way, answered } if under_way + answered < limits.probes => {
                (State::HalfOpen { under_way: under_way + 1, answered }, true)
            }
            State::HalfOpen { .. } => (self, false),
        }
    }

    /// A call that began in this state (or, when closed, in this closed period) has ended.
    pub fn end(self, health: Health, now: Instant, limits: &Limits) -> State {
        let open = State::Open { until: now + limits.pause };
        match (self, health) {
            (State::Closed { .. }, Health::Answered) => State::Closed { faults: 0 },
            (State::Closed { faults }, Health::Fault) if faults + 1 >= limits.faults => open,
            (State::Closed { faults }, Health::Fault) => State::Closed { faults: faults + 1 },
            (State::Closed { .. }, Health::Neither) => self,
            // Nothing begins while it is open.
            (State::Open { .. }, Health::Answered | Health::Fault | Health::Neither) => self,
            (State::HalfOpen { answered, .. }, Health::Answered) if answered + 1 >= limits.probes => {
                State::Closed { faults: 0 }
            }
            (State::HalfOpen { under_way, answered }, Health::Answered) => {
                State::HalfOpen { under_way: under_way.saturating_sub(1), answered: answered + 1 }
            }
            (State::HalfOpen { .. }, Health::Fault) => open,
            (State::HalfOpen { under_way, answered }, Health::Neither) => {
                State::HalfOpen { under_way: under_way.saturating_sub(1), answered }
            }
        }
    }

    /// How much may begin at `now`.
    pub fn room(self, now: Instant, limits: &Limits) -> Room {
        match self {
            State::Closed { .. } => Room::Free,
            State::Open { until } if now < until => Room::None { until: Some(until) },
            State::Open { .. } => Room::Probes(limits.probes),
            State::HalfOpen { under_way, answered } => {
                match limits.probes.saturating_sub(under_way + answered) {
                    0 => Room::None { until: None },
                    probes => Room::Probes(probes),
                }
            }
        }
    }

    /// As the metric has it.
    fn number(self) -> i64 {
        match self {
            State::Closed { .. } => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        }
    }
}

/// How many calls may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Any number.
    Free,
    /// So many, at least one.
    Probes(u32),
    /// None before this instant; without one, before a probe has ended.
    None { until: Option<Instant> },
}

/// The state, and how many of its periods there were before: a call that began in one of them says nothing
/// about this one.
#[derive(Clone, Copy)]
struct Now {
    state: State,
    period: u64,
}

/// The one breaker of a process; clones share it.
#[derive(Clone)]
pub struct Breaker {
    now: Arc<watch::Sender<Now>>,
    limits: Limits,
    gauge: IntGauge,
}

/// The right to make one call. Dropped without a word, nothing was learned by the call.
pub struct Pass {
    breaker: Breaker,
    period: u64,
    health: Health,
}

/// A time in which calls may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    period: u64,
    /// No more than these; none: any number.
    pub probes: Option<u32>,
}

impl Breaker {
    /// `gauge` is 0 while closed, 1 while half-open, 2 while open.
    pub fn new(limits: Limits, gauge: IntGauge) -> Breaker {
        let now = Now { state: State::Closed { faults: 0 }, period: 0 };
        Breaker { now: Arc::new(watch::Sender::new(now)), limits, gauge }
    }

    /// The right to make a call, unless the breaker is open or enough probes are under way.
    pub fn begin(&self) -> Option<Pass> {
        let mut period = None;
        self.now.send_if_modified(|now| {
            let (state, may) = now.state.begin(Instant::now(), &self.limits);
            let changed = self.enter(now, state);
            period = may.then_some(now.period);
            changed
        });
        period.map(|period| Pass { breaker: self.clone(), period, health: Health::Neither })
    }

    /// Waits until calls may begin.
    pub async fn opening(&self) -> Opening {
        let mut changes = self.now.subscribe();
        loop {
            let Now { state, period } = *changes.borrow_and_update();
            let until = match state.room(Instant::now(), &self.limits) {
                Room::Free => return Opening { period, probes: None },
                Room::Probes(probes) => return Opening { period, probes: Some(probes) },
                Room::None { until } => until,
            };
            let pause = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            // The sender is ours, so it cannot be gone.
            tokio::select! {
                () = pause => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the breaker has changed its mind about this.
    pub async fn over(&self, opening: Opening) {
        let mut changes = self.now.subscribe();
        let _ = changes.wait_for(|now| now.period != opening.period).await;
    }

    fn end(&self, period: u64, health: Health) {
        self.now.send_if_modified(|now| {
            now.period == period && {
                let state = now.state.end(health, Instant::now(), &self.limits);
                self.enter(now, state)
            }
        });
    }

    /// Answers whether those who wait are to look again. Counting while closed wakes nobody.
    fn enter(&self, now: &mut Now, state: State) -> bool {
        let before = std::mem::replace(&mut now.state, state);
        if before.number() == state.number() {
            return before != state && state.number() != 0;
        }
        now.period += 1;
        self.gauge.set(state.number());
        match state {
            State::Open { .. } => tracing::warn!(pause = ?self.limits.pause, "the gateway fails: no calls"),
            State::HalfOpen { .. } => tracing::debug!("the gateway is probed"),
            State::Closed { .. } => tracing::info!("the gateway answers: calls flow again"),
        }
        true
    }
}

impl Pass {
    /// The call has ended.
    pub fn ended(mut self, health: Health) {
        self.health = health;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.breaker.end(self.period, self.health);
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
