//! Shows each check a violation of its promise: an audit that cannot complain proves nothing. [`shards`] does so for shards.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod brokers;
mod command;
mod emissions;
mod fixture;
mod plants;
mod shards;
mod violations;
