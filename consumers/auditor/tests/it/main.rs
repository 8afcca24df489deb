//! The auditor on real servers: each planted fault raises its metric, a clean run raises none, and a restart goes on.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`. The relay does not run: a test emits as the relay does.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod faults;
mod harness;
mod relay;
mod restarts;
mod second;
mod shards;
