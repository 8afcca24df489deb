//! Loads and faults on a running Coro, and what it does per second.
//!
//! * [`retrying_client`]: a client that repeats a request until it is answered.
//! * [`chaos`]: a load under faults, compared with its plan; [`demo`] is one to watch.
//! * [`bench`]: payments and events per second, and what they cost.

pub mod bench;
pub mod chaos;
pub mod demo;
pub mod retrying_client;

#[cfg(test)]
mod tidy;
