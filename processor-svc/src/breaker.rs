//! Circuit breakers: one per paid service, and one for the gateway as a whole.
//!
//! * While the gateway fails for a service, no calls are made for that service. While nobody can connect to the gateway,
//!   no calls are made at all, and no messages are taken.
//! * Only faults count: a decline is an answer of a working gateway. Only some faults of one user count, so that a user
//!   whose calls hang does not close a service to others.
//! * After a pause a few probes are sent. When all are answered, the breaker closes. A user whose probe failed sends none
//!   for some pauses, so that others find out whether the service works.
//! * A refusal is no attempt: a refused caller writes nothing and asks again later.
//!
//! Why not a crate: `failsafe` lets every call through while half-open, `recloser` at least so many; with
//! hundreds of calls waiting either would send them all to a gateway that may still be down. Here the probes
//! are counted while they are under way, a call begun before the breaker opened says nothing about the
//! probes, and whoever takes messages can wait for calls to flow.

mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::watch;
use uuid::Uuid;

pub use self::state::{Capacity, Health, Limits, Refusal, State};
use crate::charge::Charge;

/// At most one fifth of the faults that open a breaker may be one user's.
const USER_FAULTS_DIVISOR: u32 = 5;
/// Number of pauses during which a user whose probe failed sends no other probe.
const SUSPECT_PAUSES_MAX: u32 = 5;
/// Services beyond this number share one breaker, so that unknown names cost no RAM.
const SERVICES_MAX: usize = 10_000;

/// The state of one breaker, and the number of its period. A call that began in an earlier period does not count.
struct Circuit {
    state: State,
    period: u64,
    /// Faults in a row by user.
    users: HashMap<Uuid, u32>,
    /// Users whose probes failed, and until when they send no other probe.
    suspects: HashMap<Uuid, Instant>,
}

struct Table {
    gateway: Circuit,
    /// A service without an entry has a breaker that never opened.
    services: HashMap<String, Circuit>,
}

/// The breakers of a process; clones share them.
#[derive(Clone)]
pub struct Breaker {
    table: Arc<watch::Sender<Table>>,
    limits: Limits,
    gauge: IntGauge,
}

/// The periods of the two breakers of a call.
struct Periods {
    gateway: u64,
    service: u64,
}

/// The right to make one call. A pass that is dropped without [`Pass::ended`] does not count.
pub struct Pass {
    breaker: Breaker,
    service: String,
    user: Uuid,
    /// The periods in which the call began.
    periods: Periods,
    health: Health,
}

/// A period in which calls may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    period: u64,
    /// The maximum number of calls; `None` means any number.
    pub probes: Option<u32>,
}

impl Breaker {
    /// `gauge` is 0 while all are closed, 1 while one is half-open, 2 while one is open.
    pub fn new(limits: Limits, gauge: IntGauge) -> Breaker {
        let table = Table { gateway: Circuit::closed(), services: HashMap::new() };
        Breaker { table: Arc::new(watch::Sender::new(table)), limits, gauge }
    }

    /// Asks for the right to make a call.
    ///
    /// # Errors
    /// When a breaker is open, or enough probes are under way.
    pub fn begin(&self, charge: &Charge) -> Result<Pass, Refusal> {
        let mut begun = Err(Refusal { until: None });
        self.table.send_if_modified(|table| {
            let (gateway, service, now) = table.pair(&charge.service_id);
            let at = Instant::now();
            let user = charge.user_id;
            let after = (gateway.begins(user, at, &self.limits), now.begins(user, at, &self.limits));
            let (whole_state, state) = match after {
                (Ok(gateway), Ok(service)) => (gateway, service),
                (Err(refusal), _) | (_, Err(refusal)) => {
                    begun = Err(refusal);
                    return false;
                }
            };
            let changed =
                [enter(gateway, whole_state, "all", &self.limits), enter(now, state, service, &self.limits)];
            begun = Ok((service.to_owned(), Periods { gateway: gateway.period, service: now.period }));
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

    /// Waits until calls may begin, for any service.
    pub async fn opening(&self) -> Opening {
        let mut changes = self.table.subscribe();
        loop {
            let (state, period) = {
                let table = changes.borrow_and_update();
                (table.gateway.state, table.gateway.period)
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

    /// Waits until the breaker of the gateway has left the period of `opening`.
    pub async fn over(&self, opening: Opening) {
        let mut changes = self.table.subscribe();
        let _ = changes.wait_for(|table| table.gateway.period != opening.period).await;
    }

    fn end(&self, pass: &Pass) {
        self.table.send_if_modified(|table| {
            let (gateway, service, now) = table.pair(&pass.service);
            let (at, mut changed) = (Instant::now(), false);
            if gateway.period == pass.periods.gateway {
                // A call that connected has reached the gateway, whatever followed.
                let health = match pass.health {
                    Health::Fault => Health::Answered,
                    Health::Answered | Health::Unreachable | Health::Neither => pass.health,
                };
                changed |= enter(gateway, gateway.state.end(health, at, &self.limits), "all", &self.limits);
            }
            if now.period == pass.periods.service {
                let health = now.counted(pass.user, pass.health, at, &self.limits);
                changed |= enter(now, now.state.end(health, at, &self.limits), service, &self.limits);
            }
            self.show(table, changed)
        });
    }

    fn show(&self, table: &Table, changed: bool) -> bool {
        if changed {
            let all = table.services.values().chain([&table.gateway]);
            self.gauge.set(all.map(|now| now.state.number()).max().unwrap_or(0));
        }
        changed
    }
}

impl Table {
    /// The breakers that a call for this service must pass, and the name of the second one.
    fn pair<'a>(&'a mut self, service: &'a str) -> (&'a mut Circuit, &'a str, &'a mut Circuit) {
        let Table { gateway, services } = self;
        let capacity = services.len() < SERVICES_MAX || services.contains_key(service);
        let service = if capacity { service } else { "" };
        (gateway, service, services.entry(service.to_owned()).or_insert_with(Circuit::closed))
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

    /// The state after a call of this user has begun.
    ///
    /// # Errors
    /// When no call of this user may begin.
    fn begins(&self, user: Uuid, at: Instant, limits: &Limits) -> Result<State, Refusal> {
        match self.state.begin(at, limits) {
            (_, false) => Err(self.state.refusal()),
            (State::HalfOpen { .. }, true) if self.suspects.get(&user).is_some_and(|until| *until > at) => {
                Err(Refusal { until: self.suspects.get(&user).copied() })
            }
            (state, true) => Ok(state),
        }
    }

    /// The health that a call of this user counts as.
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

/// Enters a state; true when waiting callers must look again. Counting while closed wakes nobody.
fn enter(now: &mut Circuit, state: State, service: &str, limits: &Limits) -> bool {
    let before = std::mem::replace(&mut now.state, state);
    if before.number() == state.number() {
        return before != state && state.number() != 0;
    }
    now.period += 1;
    now.users.clear();
    match state {
        State::Open { .. } => {
            tracing::warn!(service, pause = ?limits.pause, "the gateway fails for this service; its breaker is open, and no calls are made for it during the pause");
        }
        State::HalfOpen { .. } => {
            tracing::debug!(service, "the breaker of this service is half-open; probes are sent");
        }
        State::Closed { .. } => {
            tracing::info!(service, "the gateway answers for this service again; its breaker is closed");
        }
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
