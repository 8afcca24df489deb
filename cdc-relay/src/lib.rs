//! `cdc-relay`: tells committed Postgres row changes to Kafka and RabbitMQ.
//!
//! What it promises: a committed change of a published table is told at least once; changes of a key are first told
//! in commit order; what was rolled back is never told; an event has the same id at every telling; and Postgres is
//! told that a change is safe only after every sink, and the relay's own memory, have it. Where that cannot be kept
//! it stops and says why.
//!
//! Reading order: `routes`, `template` and `when` (what to tell), `wire`, `copy` and `pgoutput` (what Postgres says),
//! `catalog` (what it does not say), `contract` (whether it fits), `route`, `body` and `json` (from a row to a record), `progress` (what may be
//! confirmed), `history` (what was told before), `stream` and `pace` (the loop), `source` (its life), `state` (what
//! is refused), `coverage` and `watch` (what the publication sends, and whether it still does), `failover` (and when it need not be), `kafka`, `rabbit` (where it goes), `dead`, `letter` and `release`
//! (what cannot be told, until it can). Rows that exist already: `rows` (how they are read), `snapshot` (beside the
//! stream), `reconcile` (instead of what was lost), `replay` (once more), `flight` (what of it is under way).
//!
//! Pure, without clock or I/O: `pgoutput`, `json`, `array`, `template`, `when`, `body`, `route`, `progress`,
//! `history`, `pace`, `state`, `failover`, `dead`, `letter`, `release`, `shelf`, `chain`, `runway`.

pub mod checkpoint;
pub mod commands;
pub mod dead_letter;
pub mod failpoints;
mod nearest;
#[cfg(feature = "sinks")]
mod observe;
pub mod postgres;
pub mod routes;
#[cfg(feature = "sinks")]
mod sinks;
pub mod source;
