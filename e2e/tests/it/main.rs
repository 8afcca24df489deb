//! Coro as a whole, on a running stack: what clients, subscribers and operators were promised.
//!
//! Tests run side by side, each with users of its own; those that stop or kill something run alone.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod authorized;
mod canaries;
mod cancel;
mod captured;
mod clients;
mod conformance;
mod contract;
mod dashboards;
mod documents;
mod drills;
mod edge;
mod encrypted;
mod expiry;
mod following;
mod growing;
mod http2;
mod http_rules;
mod idempotency;
mod identity;
mod instance;
mod issuers;
mod kills;
mod leaders;
mod loads;
mod logins;

mod asyncapi;
mod harness;
mod notify;
mod openapi;
mod operators;
mod outages;
mod outcomes;
mod pages;
mod pay;
mod pay_page;
mod payments;
mod poison;
mod rates;
mod raw_http;
mod rolling;
mod runbooks;
mod scaling;
mod scraping;
mod search;
mod secret_files;
mod sharded;
mod shedding;
mod silence;
mod subscribe;
mod tools;
