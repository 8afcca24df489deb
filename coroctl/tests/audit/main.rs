//! The audit is believed only if it complains: each check is shown a violation of its promise.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod brokers;
mod command;
mod fixture;
mod plants;
mod tellings;
mod violations;
