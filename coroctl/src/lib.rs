//! Looks at a running Coro from outside, as a client, a subscriber and an operator can.
//!
//! * [`stack`]: the addresses, from the variables that `cargo stack up` writes.
//! * [`client`]: an app's view: deposits, payments, waiting for their end.
//! * [`topics`]: a subscriber's view: events with their headers.
//! * [`databases`]: an operator's view: read-only connections.
//! * [`explain`]: the whole life of one payment, and where it stands still.
//! * [`audit`]: money, gateway, saga and transport invariants over everything there is.
//! * [`first_payment`]: the payment that `cargo stack up` ends with.

pub mod audit;
pub mod client;
pub mod databases;
pub mod explain;
pub mod first_payment;
pub mod stack;
pub mod topics;
