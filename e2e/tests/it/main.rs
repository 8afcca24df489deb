//! Coro as a whole, on a running stack: what clients, subscribers and operators were promised.
//!
//! Tests run side by side, each with users of its own; those that stop or kill something run alone.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod authorized;
mod cancel;
mod captured;
mod contract;
mod documents;
mod edge;
mod expiry;
mod following;
mod http_rules;
mod idempotency;
mod kills;
mod logins;

mod asyncapi;
mod harness;
mod operators;
mod outages;
mod outcomes;
mod payments;
mod poison;
mod raw_http;
mod rolling;
mod scraping;
mod search;
mod subscribe;
