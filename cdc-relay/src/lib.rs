//! `cdc-relay`: tells committed Postgres row changes to Kafka and RabbitMQ.
//!
//! What it promises: a committed change of a published table is told at least once; changes of a key are first told
//! in commit order; what was rolled back is never told; an event has the same id at every telling; and Postgres is
//! told that a change is safe only after every sink, and the relay's own memory, have it. Where that cannot be kept
//! it stops and says why.
//!
//! Reading order: `routes` and `template` (what to tell), `wire`, `copy` and `pgoutput` (what Postgres says),
//! `route` (from a row to a record), `progress` (what may be confirmed), `stream` and `pace` (the loop), `source`
//! (its life), `state` (what is refused), `kafka`, `rabbit`, `dead` (where it goes).
//!
//! Pure, without clock or I/O: `pgoutput`, `json`, `template`, `body`, `route`, `progress`, `pace`, `state`,
//! `dead`, `runway`.

pub mod body;
mod check;
pub mod config;
pub mod copy;
pub mod dead;
pub mod inspect;
pub mod json;
pub mod lsn;
pub mod pace;
pub mod pgoutput;
pub mod progress;
pub mod route;
pub mod routes;
mod socket;
mod stall;
pub mod state;
pub mod template;
pub mod wire;

#[cfg(feature = "sinks")]
mod acks;
#[cfg(feature = "sinks")]
mod http;
#[cfg(feature = "sinks")]
mod kafka;
#[cfg(feature = "sinks")]
mod lag;
#[cfg(feature = "sinks")]
mod metrics;
#[cfg(feature = "sinks")]
mod rabbit;
#[cfg(feature = "sinks")]
pub mod run;
#[cfg(feature = "sinks")]
mod runway;
#[cfg(feature = "sinks")]
mod source;
#[cfg(feature = "sinks")]
mod status;
#[cfg(feature = "sinks")]
mod stream;
#[cfg(feature = "sinks")]
mod tell;
#[cfg(feature = "sinks")]
mod topics;
