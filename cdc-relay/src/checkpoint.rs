//! The relay's record of what it has emitted: progress, the checkpoint on Kafka, the chain of events, and continuity.

pub mod chain;
pub mod chain_name;
pub mod continuity;
#[cfg(feature = "sinks")]
pub(crate) mod failover;
pub mod progress;
pub mod refusal;
pub mod state;
