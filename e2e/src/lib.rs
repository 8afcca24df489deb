//! Coro from outside: what a client, a subscriber and an operator can see, and nothing else.
//!
//! * [`stack`]: where everything is, from the variables `cargo stack up` writes.
//! * [`client`]: an app's view: deposits, payments, waiting for their end.
//! * [`topics`]: a subscriber's view: events with their headers.
//! * [`databases`]: an operator's view: read-only connections.
//! * [`explain`]: the whole life of one payment, and where it stands still.
//! * [`audit`]: money, gateway and saga invariants over everything there is.
//! * [`insist`]: a client that asks until it is answered.
//! * [`chaos`]: a load under faults, compared with its plan; [`demo`] is one to watch.
//! * [`bench`]: what it does per second, and what that costs.
//! * [`first_payment`]: the payment `cargo stack up` ends with.

pub mod audit;
pub mod bench;
pub mod chaos;
pub mod client;
pub mod databases;
pub mod demo;
pub mod explain;
pub mod first_payment;
pub mod insist;
pub mod stack;
pub mod topics;

#[cfg(test)]
mod tidy;
