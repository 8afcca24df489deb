//! What the relay knows about what it has emitted: progress, its record on Kafka, the chain of events, and continuity.

pub mod chain;
pub mod continuity;
#[cfg(feature = "sinks")]
pub(crate) mod failover;
pub mod progress;
pub mod state;
