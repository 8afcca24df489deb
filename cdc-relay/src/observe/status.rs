//! Keeps the state of each source, for people and probes.
//!
//! * A change of state is logged once.
//! * A source that refuses or stands by has nothing in flight: another relay emits it, or this one emits it again.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::observe::metrics::SourceMetrics;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "lowercase")]
pub enum State {
    /// Not connected, with the last problem, if there was one.
    Connecting(String),
    /// Another relay reads the slot; this one takes over when it ends.
    Standby,
    Streaming,
    /// Streaming would lose something. The text says what, and what to do.
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
    /// The transaction that waits for synchronous standbys, and why.
    held: Arc<Mutex<Option<String>>>,
    metrics: SourceMetrics,
}

impl Status {
    pub fn new(name: &str, metrics: SourceMetrics) -> Status {
        let status = Status {
            name: name.to_owned(),
            state: Arc::new(Mutex::new(State::Connecting(String::new()))),
            held: Arc::default(),
            metrics,
        };
        status.set(State::Connecting(String::new()));
        status
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the state, and logs a change.
    pub fn set(&self, state: State) {
        for (index, gauge) in self.metrics.stream.states.iter().enumerate() {
            gauge.set(i64::from(index == state.index()));
        }
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == state {
            return;
        }
        if matches!(state, State::Standby | State::Refused(_)) {
            self.metrics.clear_in_flight();
        }
        match &state {
            State::Connecting(problem) if problem.is_empty() => {}
            State::Connecting(problem) => tracing::warn!(source = self.name, %problem, "not streaming"),
            State::Standby => tracing::info!(source = self.name, "another relay reads the slot: standing by"),
            // The session logs it itself, with its position.
            State::Streaming => {}
            State::Refused(reason) => tracing::error!(source = self.name, %reason, "refusing to stream"),
        }
        *current = state;
    }

    /// Shows a transaction that has waited for synchronous standbys for a while; `None` if none has.
    pub fn hold(&self, held: Option<String>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// The transaction that waits for synchronous standbys, and why.
    pub fn held(&self) -> Option<String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn get(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
