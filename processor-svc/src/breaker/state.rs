//! The state of one circuit breaker.
//!
//! * Every function is pure: the caller passes the time.

use std::time::{Duration, Instant};

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Faults in a row, without an answer between them, that open the breaker.
    pub faults: u32,
    /// How long the breaker stays open before it lets probes through.
    pub pause: Duration,
    /// Maximum number of probes, and the number of answers that close the breaker.
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

/// The health of the gateway that the end of a call shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The gateway answered; a decline is an answer.
    Answered,
    /// Nobody could connect to the gateway, for any service.
    Unreachable,
    /// The gateway was silent, broke off or failed.
    Fault,
    /// The call says nothing about the health.
    Neither,
}

impl State {
    /// The state after a call asks to begin at `now`, and whether it may.
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

    /// The state after the end of a call that began in this state (or, when closed, in this closed period).
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

    /// How many calls may begin at `now`.
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

    /// The refusal of a state in which no call may begin.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            State::Open { until } => Refusal { until: Some(until) },
            State::Closed { .. } | State::HalfOpen { .. } => Refusal { until: None },
        }
    }

    /// The value of the metric.
    pub(super) fn number(self) -> i64 {
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
    /// This many, at least one.
    Probes(u32),
    /// None before this instant. Without an instant, none before a probe has ended.
    None { until: Option<Instant> },
}

/// No call may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// None before this instant. Without an instant, none before a probe has ended.
    pub until: Option<Instant>,
}
