//! The notifier on real servers: Postgres, Kafka, SMTP, and receivers that do everything wrong.
//!
//! Needs a stack: `cargo stack up --with notify && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod deliveries;
mod disabling;
mod emails;
mod fairness;
mod harness;
mod instances;
mod operators;
mod receiver;
mod removed;
mod slow_smtp;
mod tls;
