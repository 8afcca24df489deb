//! Loads and faults on a running Coro, and what it does per second.
//!
//! * [`retrying_client`]: a client that repeats a request until it is answered.
//! * [`chaos`]: a load under faults, compared with its plan; [`demo`] is one to watch.
//! * [`load`]: a load of a profile, which k6 could put on the stack too.
//! * [`bench`]: payments and events per second, and what they cost.

pub mod bench;
pub mod chaos;
pub mod demo;
pub mod load;
pub mod retrying_client;

#[cfg(test)]
mod tidy;
