//! The circuit breakers: one for each service that is paid, and one for the gateway as a whole.
//!
//! * While the gateway fails for a service, no calls are made for it. While nobody can connect to the gateway, no calls
//!   are made at all, and no messages are taken.
//! * Only faults count: a decline is an answer of a gateway that works. Of one user only some count, so that a user
//!   whose calls hang does not close a service to the others.
//! * After a pause a few probes go out; when all of them are answered, calls flow again. A user whose probe failed makes
//!   none for some pauses: others find out whether the service works.
//! * A refusal is no attempt: who is refused writes nothing and asks again later.
//!
//! Why not a crate: `failsafe` lets every call through while half-open, `recloser` at least so many; with
//! hundreds of calls waiting either would send them all to a gateway that may still be down. Here the probes
//! are counted while they are under way, a call begun before the breaker opened says nothing about the
//! probes, and whoever takes messages can wait for calls to flow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::watch;
use uuid::Uuid;

use crate::charge::Charge;

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
    /// Nobody could connect to it, for whatever service.
    Unreachable,
    /// It was silent, broke off or failed.
    Fault,
    /// Nothing was learned.
    Neither,
}

/// Of the faults after which a breaker opens, one user's are at most every fifth.
const USER_FAULTS_DIVISOR: u32 = 5;
/// For so many pauses a user whose probe failed makes no other one.
const SUSPECT_PAUSES_MAX: u32 = 5;
/// More services than this share one breaker: a name that nobody knows must not cost memory.
const SERVICES_MAX: usize = 10_000;

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
            (State::Closed { faults }, Health::Fault | Health::Unreachable)
                if faults + 1 >= limits.faults =>
            {
                open
            }
            (State::Closed { faults }, Health::Fault | Health::Unreachable) => {
                State::Closed { faults: faults + 1 }
            }
            (State::Closed { .. }, Health::Neither) => self,
            // Nothing begins while it is open.
            (
                State::Open { .. },
                Health::Answered | Health::Fault | Health::Unreachable | Health::Neither,
            ) => self,
            (State::HalfOpen { answered, .. }, Health::Answered) if answered + 1 >= limits.probes => {
                State::Closed { faults: 0 }
            }
            (State::HalfOpen { under_way, answered }, Health::Answered) => {
                State::HalfOpen { under_way: under_way.saturating_sub(1), answered: answered + 1 }
            }
            (State::HalfOpen { .. }, Health::Fault | Health::Unreachable) => open,
            (State::HalfOpen { under_way, answered }, Health::Neither) => {
                State::HalfOpen { under_way: under_way.saturating_sub(1), answered }
            }
        }
    }

    /// How much may begin at `now`.
    pub fn capacity(self, now: Instant, limits: &Limits) -> Capacity {
        match self {
            State::Closed { .. } => Capacity::Free,
            State::Open { until } if now < until => Capacity::None { until: Some(until) },
            State::Open { .. } => Capacity::Probes(limits.probes),
            State::HalfOpen { under_way, answered } => {
                match limits.probes.saturating_sub(under_way + answered) {
                    0 => Capacity::None { until: None },
                    probes => Capacity::Probes(probes),
                }
            }
        }
    }

    /// When to ask again, of one that lets no call begin.
    fn refusal(self) -> Refusal {
        match self {
            State::Open { until } => Refusal { until: Some(until) },
            State::Closed { .. } | State::HalfOpen { .. } => Refusal { until: None },
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
pub enum Capacity {
    /// Any number.
    Free,
    /// So many, at least one.
    Probes(u32),
    /// None before this instant; without one, before a probe has ended.
    None { until: Option<Instant> },
}

/// The state, and how many of its periods there were before: a call that began in one of them says nothing
/// about this one.
struct Circuit {
    state: State,
    period: u64,
    /// Faults in a row by user.
    users: HashMap<Uuid, u32>,
    /// Users whose probes failed, and until when they make no other one.
    suspects: HashMap<Uuid, Instant>,
}

struct Table {
    whole: Circuit,
    /// A service that is not there has a breaker that was never opened.
    services: HashMap<String, Circuit>,
}

/// The breakers of a process; clones share them.
#[derive(Clone)]
pub struct Breaker {
    table: Arc<watch::Sender<Table>>,
    limits: Limits,
    gauge: IntGauge,
}

/// The right to make one call. Dropped without a word, nothing was learned by the call.
pub struct Pass {
    breaker: Breaker,
    service: String,
    user: Uuid,
    /// Of the whole, and of the service.
    periods: (u64, u64),
    health: Health,
}

/// No call now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// None before this instant; without one, before a probe has ended.
    pub until: Option<Instant>,
}

/// A time in which calls may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    period: u64,
    /// No more than these; none: any number.
    pub probes: Option<u32>,
}

impl Breaker {
    /// `gauge` is 0 while all are closed, 1 while one is half-open, 2 while one is open.
    pub fn new(limits: Limits, gauge: IntGauge) -> Breaker {
        let table = Table { whole: Circuit::closed(), services: HashMap::new() };
        Breaker { table: Arc::new(watch::Sender::new(table)), limits, gauge }
    }

    /// The right to make a call, unless a breaker is open or enough probes are under way.
    pub fn begin(&self, charge: &Charge) -> Result<Pass, Refusal> {
        let mut begun = Err(Refusal { until: None });
        self.table.send_if_modified(|table| {
            let (whole, service, now) = table.pair(&charge.service_id);
            let at = Instant::now();
            let user = charge.user_id;
            let after = (whole.begins(user, at, &self.limits), now.begins(user, at, &self.limits));
            let (whole_state, state) = match after {
                (Ok(whole), Ok(service)) => (whole, service),
                (Err(refusal), _) | (_, Err(refusal)) => {
                    begun = Err(refusal);
                    return false;
                }
            };
            let changed =
                [enter(whole, whole_state, "all", &self.limits), enter(now, state, service, &self.limits)];
            begun = Ok((service.to_owned(), (whole.period, now.period)));
            self.show(table, changed.contains(&true))
        });
        let user = charge.user_id;
        let pass = |(service, periods)| Pass {
            breaker: self.clone(),
            service,
            user,
            periods,
            health: Health::Neither,
        };
        begun.map(pass)
    }

    /// Waits until calls may begin, of whatever service.
    pub async fn opening(&self) -> Opening {
        let mut changes = self.table.subscribe();
        loop {
            let (state, period) = {
                let table = changes.borrow_and_update();
                (table.whole.state, table.whole.period)
            };
            let until = match state.capacity(Instant::now(), &self.limits) {
                Capacity::Free => return Opening { period, probes: None },
                Capacity::Probes(probes) => return Opening { period, probes: Some(probes) },
                Capacity::None { until } => until,
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

    /// Waits until the breaker of the whole has changed its mind about this.
    pub async fn over(&self, opening: Opening) {
        let mut changes = self.table.subscribe();
        let _ = changes.wait_for(|table| table.whole.period != opening.period).await;
    }

    fn end(&self, pass: &Pass) {
        self.table.send_if_modified(|table| {
            let (whole, service, now) = table.pair(&pass.service);
            let (at, mut changed) = (Instant::now(), false);
            if whole.period == pass.periods.0 {
                // Whoever was connected reached it, whatever came then.
                let health = match pass.health {
                    Health::Fault => Health::Answered,
                    Health::Answered | Health::Unreachable | Health::Neither => pass.health,
                };
                changed |= enter(whole, whole.state.end(health, at, &self.limits), "all", &self.limits);
            }
            if now.period == pass.periods.1 {
                let health = now.counted(pass.user, pass.health, at, &self.limits);
                changed |= enter(now, now.state.end(health, at, &self.limits), service, &self.limits);
            }
            self.show(table, changed)
        });
    }

    fn show(&self, table: &Table, changed: bool) -> bool {
        if changed {
            let all = table.services.values().chain([&table.whole]);
            self.gauge.set(all.map(|now| now.state.number()).max().unwrap_or(0));
        }
        changed
    }
}

impl Table {
    /// The breakers that a call for this service has to pass, and the name under which the second one is kept.
    fn pair<'a>(&'a mut self, service: &'a str) -> (&'a mut Circuit, &'a str, &'a mut Circuit) {
        let Table { whole, services } = self;
        let capacity = services.len() < SERVICES_MAX || services.contains_key(service);
        let service = if capacity { service } else { "" };
        (whole, service, services.entry(service.to_owned()).or_insert_with(Circuit::closed))
    }
}

impl Circuit {
    fn closed() -> Circuit {
        Circuit {
            state: State::Closed { faults: 0 },
            period: 0,
            users: HashMap::new(),
            suspects: HashMap::new(),
        }
    }

    /// The state after a call of this user has begun, unless none may.
    fn begins(&self, user: Uuid, at: Instant, limits: &Limits) -> Result<State, Refusal> {
        match self.state.begin(at, limits) {
            (_, false) => Err(self.state.refusal()),
            (State::HalfOpen { .. }, true) if self.suspects.get(&user).is_some_and(|until| *until > at) => {
                Err(Refusal { until: self.suspects.get(&user).copied() })
            }
            (state, true) => Ok(state),
        }
    }

    /// What a call of this user counts as.
    fn counted(&mut self, user: Uuid, health: Health, at: Instant, limits: &Limits) -> Health {
        match (health, self.state) {
            (Health::Answered, _) => {
                self.users.clear();
                self.suspects.remove(&user);
            }
            (Health::Fault, State::HalfOpen { .. }) => {
                self.suspects.retain(|_, until| *until > at);
                self.suspects.insert(user, at + limits.pause * SUSPECT_PAUSES_MAX);
            }
            (Health::Fault, State::Closed { .. }) => {
                let faults = self.users.entry(user).or_insert(0);
                if *faults >= limits.faults.div_ceil(USER_FAULTS_DIVISOR) {
                    return Health::Neither;
                }
                *faults += 1;
            }
            (Health::Fault | Health::Unreachable | Health::Neither, _) => {}
        }
        health
    }
}

/// Answers whether those who wait are to look again. Counting while closed wakes nobody.
fn enter(now: &mut Circuit, state: State, service: &str, limits: &Limits) -> bool {
    let before = std::mem::replace(&mut now.state, state);
    if before.number() == state.number() {
        return before != state && state.number() != 0;
    }
    now.period += 1;
    now.users.clear();
    match state {
        State::Open { .. } => {
            tracing::warn!(service, pause = ?limits.pause, "the gateway fails: no calls for this service");
        }
        State::HalfOpen { .. } => tracing::debug!(service, "the gateway is probed"),
        State::Closed { .. } => tracing::info!(service, "the gateway answers: calls flow again"),
    }
    true
}

impl Pass {
    /// The call has ended.
    pub fn ended(mut self, health: Health) {
        self.health = health;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.breaker.end(self);
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
