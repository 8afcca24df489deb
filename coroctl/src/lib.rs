//! Looks at a running Coro from outside, as a client, a subscriber and an operator can, and mends it by hand.
//!
//! * [`cli`]: the command line.
//! * [`stack`]: the addresses, from the variables that `cargo stack up` writes.
//! * [`client`]: an app's view: deposits, payments, waiting for their end.
//! * [`topics`]: a subscriber's view: events with their headers.
//! * [`databases`]: an operator's view: read-only connections. [`snapshots`] of several, and
//!   [`owned_rows`]: which of their rows count.
//! * [`find`]: payments by what is known of them. [`stuck`]: those that have not ended, and what they wait for.
//! * [`explain`]: the whole life of one payment. [`progress`]: the step that a payment waits for.
//! * [`parked`], [`resolve`]: acts, which the services decide and write, at their admin listeners ([`admin`]). [`replay`]:
//!   the relay's part.
//! * [`shard`]: moves of buckets between the shards of a service.
//! * [`audit`]: money, gateway, saga and transport invariants over everything there is.
//! * [`first_payment`]: the payment that `cargo stack up` ends with.
//! * [`age`], [`listing`]: lengths of time and tables, as people write and read them.

pub mod admin;
pub mod age;
pub mod audit;
pub mod cli;
pub mod client;
pub mod databases;
pub mod explain;
pub mod find;
pub mod first_payment;
pub mod listing;
pub mod owned_rows;
pub mod parked;
pub mod progress;
pub mod replay;
pub mod resolve;
pub mod shard;
pub mod snapshots;
pub mod stack;
pub mod stuck;
pub mod topics;
