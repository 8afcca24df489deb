//! Loads and faults on a running Coro, and what it does per second.
//!
//! * [`retrying_client`]: a client that repeats a request until it is answered.
//! * [`chaos`]: a load under faults, compared with its plan; [`demo`] is one to watch.
//! * [`drill`]: one thing is broken, an alert fires, and the runbook ends it.
//! * [`leader`]: nodes of a highly available stack are lost under load.
//! * [`load`]: a load of a profile, which k6 could put on the stack too.
//! * [`steady_load`]: payments at even intervals, until it is stopped.
//! * [`bench`]: payments and events per second, and what they cost. [`capacity`]: what follows for other volumes.

pub mod bench;
pub mod capacity;
pub mod chaos;
pub mod demo;
pub mod drill;
pub mod leader;
pub mod load;
pub mod retrying_client;
pub mod steady_load;

#[cfg(test)]
mod tidy;
