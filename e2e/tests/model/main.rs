//! The model check: everything that can happen to a payment within stated bounds, over the real decisions.
//!
//! The decisions are not modelled but the real ones: `payments_svc::saga::{decide, next, cancel}`, `balance_svc::saga::{decide, next}`,
//! `processor_svc::saga::decide` and the judgement of answers in `processor_svc::gateway` are called as they are.
//! Around them, as small as they can be and with the guards that the real ones have:
//!
//! * [`payments_db`], [`balance_db`], [`processor_db`]: the three stores, and the events of each commit;
//! * [`readers`]: the relay and the consumers: records in order per topic, read and emitted again at any time;
//! * [`tasks`], [`working`]: queue, Redis and the processors, which may die between any two steps;
//! * [`gateway`]: requests that are lost, late, answered or not; decisions that are late or cannot be seen yet;
//! * [`foreign`]: answers that do not name our charge, to any request;
//! * [`operators`]: what two of them say of a charge; [`parking`]: what they do about parked messages;
//! * [`coro`]: all of it as one state machine; [`properties`]: what must hold; [`healing`]: that it becomes quiescent.
//!
//! [`moves`] is a model of its own: a bucket that moves between two shards.
//!
//! Time is not modelled: a lease, a pause or a deadline is over whenever that does most harm.
//!
//! Not modelled: amounts on the way (each row carries its own, and only forged work another one), texts, several accounts (nothing joins them), and
//! what a charge is called with, all of which the services' own tests look after.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod balance_db;
mod bounds;
mod broken;
mod checks;
mod coro;
mod foreign;
mod gateway;
mod healing;
mod moves;
mod operators;
mod parking;
mod payments_db;
mod processor_db;
mod properties;
mod readers;
mod state;
mod tasks;
mod working;
