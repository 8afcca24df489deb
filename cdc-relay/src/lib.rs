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

mod array;
pub mod body;
pub mod catalog;
pub mod chain;
mod check;
pub mod commands;
pub mod config;
pub mod contract;
pub mod copy;
pub mod coverage;
pub mod database;
pub mod dead;
mod encrypted;
#[cfg(feature = "sinks")]
mod failover;
pub mod failpoints;
pub mod history;
pub mod inspect;
pub mod json;
pub mod letter;
pub mod lsn;
pub mod made;
mod nearest;
pub mod pace;
pub mod pgoutput;
pub mod progress;
pub mod published;
pub mod release;
pub mod route;
pub mod routes;
pub mod rows;
mod settings;
pub mod shelf;
mod shell;
mod slots;
mod socket;
pub mod sql;
#[cfg(feature = "sinks")]
mod stall;
pub mod state;
mod strict;
pub mod template;
mod tls;
pub mod utf8;
pub mod when;
pub mod wire;

#[cfg(feature = "sinks")]
mod acks;
#[cfg(feature = "sinks")]
mod clients;
#[cfg(feature = "sinks")]
mod flight;
#[cfg(feature = "sinks")]
mod guard;
#[cfg(feature = "sinks")]
mod http;
#[cfg(feature = "sinks")]
mod kafka;
#[cfg(feature = "sinks")]
mod lag;
#[cfg(feature = "sinks")]
mod metrics;
#[cfg(feature = "sinks")]
mod polled;
#[cfg(feature = "sinks")]
mod present;
#[cfg(feature = "sinks")]
mod producers;
#[cfg(feature = "sinks")]
mod rabbit;
#[cfg(feature = "sinks")]
mod reconcile;
#[cfg(feature = "sinks")]
mod replay;
#[cfg(feature = "sinks")]
pub mod run;
#[cfg(feature = "sinks")]
mod runway;
#[cfg(feature = "sinks")]
mod snapshot;
#[cfg(feature = "sinks")]
mod source;
#[cfg(feature = "sinks")]
mod status;
#[cfg(feature = "sinks")]
mod stream;
#[cfg(feature = "sinks")]
mod stuck;
#[cfg(feature = "sinks")]
mod tell;
#[cfg(feature = "sinks")]
mod topics;
#[cfg(feature = "sinks")]
mod watch;
