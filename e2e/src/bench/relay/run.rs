//! The names of one run, and the processes that it starts.

use std::process::Child;

use stack::process::ProcessId;

use super::Name;
use super::backlog::TABLE;

/// The names of one run.
pub struct Run {
    pub slot: String,
    /// Debezium's prefix of topics.
    pub prefix: String,
    pub topic: String,
    pub state_topic: String,
    pub dead_letter_topic: String,
}

impl Run {
    pub fn new(name: Name, of: &str) -> Self {
        let prefix = format!("bench_{}_{of}", format!("{name:?}").to_lowercase());
        Self {
            slot: prefix.clone(),
            topic: format!("{prefix}.public.{TABLE}"),
            state_topic: format!("{prefix}.state"),
            dead_letter_topic: format!("{prefix}.dead"),
            prefix,
        }
    }
}

pub fn process(child: &Child) -> Option<ProcessId> {
    ProcessId::of(i32::try_from(child.id()).ok()?)
}
