//! The checks: pure functions of what was observed, one file a subject.

pub mod chain;
pub mod derived;
pub mod gateway;
pub mod money;
pub mod ownership;
pub mod reconcile;
pub mod saga;
pub mod transport;
