//! What each source is doing, for people and probes.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::observe::metrics::SourceMetrics;

/// Names of the states, as metrics label them.
pub const NAMES: [&str; 4] = ["connecting", "standby", "streaming", "refused"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "lowercase")]
pub enum State {
    /// Not connected; with what went wrong last, if anything did.
    Connecting(String),
    /// Another relay reads the slot; this one takes over when it ends.
    Standby,
    Streaming,
    /// Streaming would lose something. Says what, and what to do.
    Refused(String),
}

impl State {
    fn index(&self) -> usize {
        match self {
            Self::Connecting(_) => 0,
            Self::Standby => 1,
            Self::Streaming => 2,
            Self::Refused(_) => 3,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Streaming | Self::Standby)
    }
}

#[derive(Clone)]
pub struct Status {
    name: String,
    state: Arc<Mutex<State>>,
    metrics: SourceMetrics,
}

impl Status {
    pub fn new(name: &str, metrics: SourceMetrics) -> Status {
        let status = Status {
            name: name.to_owned(),
            state: Arc::new(Mutex::new(State::Connecting(String::new()))),
            metrics,
        };
        status.set(State::Connecting(String::new()));
        status
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes the state, and logs it if it is another one.
    pub fn set(&self, state: State) {
        for (index, gauge) in self.metrics.states.iter().enumerate() {
            gauge.set(i64::from(index == state.index()));
        }
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == state {
            return;
        }
        if matches!(state, State::Standby | State::Refused(_)) {
            // What waited here is emitted by another relay, or again.
            self.metrics.waits_for_nothing();
        }
        match &state {
            State::Connecting(problem) if problem.is_empty() => {}
            State::Connecting(problem) => tracing::warn!(source = self.name, %problem, "not streaming"),
            State::Standby => tracing::info!(source = self.name, "another relay reads the slot: standing by"),
            // The session says so itself, with its position.
            State::Streaming => {}
            State::Refused(reason) => tracing::error!(source = self.name, %reason, "refusing to stream"),
        }
        *current = state;
    }

    pub fn get(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
