//! `cdc-relay` emits committed Postgres row changes to Kafka and RabbitMQ.
//!
//! * A committed change of a published table is emitted at least once. Changes of a key are first emitted in commit order.
//! * A change that was rolled back is never emitted. An event has the same id each time it is emitted.
//! * The slot is confirmed only after every sink, and the relay's own checkpoint, have the change.
//! * Where the relay cannot guarantee this, it refuses to stream and says why.
//!
//! The rooms, in the order in which a row passes them backwards; an import only points down this list (a test of `e2e`
//! holds that):
//!
//! | room | contents |
//! |---|---|
//! | [`commands`] | the commands and their arguments |
//! | [`source`] | a source from its contract to its stream, and rows that do not come from the WAL |
//! | `sinks` | Kafka, RabbitMQ, and the messages in flight |
//! | [`dead_letter`] | rows that cannot be emitted, halted keys, releases |
//! | `observe` | metrics, `/ready`, the state of each source, the slot's lag |
//! | [`routes`] | the routes file, and the events that it makes of rows: pure |
//! | [`checkpoint`] | progress, its record on Kafka, the chain of events, continuity: pure |
//! | [`postgres`] | URLs, TLS, sessions, the replication stream, SQL text, the decoder |

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
