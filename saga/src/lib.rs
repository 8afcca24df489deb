//! What the services share and none of them owns.
//!
//! A thing is admitted here when two services use it *and* it knows no service's table or rule:
//! the wire contract, the consumer loop, the Postgres pool, telemetry and the HTTP edges.
//!
//! * [`contract`]: topics, event types and their data, in one place; golden files beside it.
//! * [`consumer`]: Kafka to one database transaction per batch, at least once, the effect once.
//! * [`parked`]: messages that cannot be applied, set aside in the transaction of their batch.
//! * [`postgres`]: the pool, and which failures are worth another try.
//! * [`http`], [`fields`], [`problem`]: serving with limits and time-outs; requests parsed field by field;
//!   errors as RFC 9457 documents.
//! * [`process`], [`telemetry`], [`trace`]: start, stop, logs, trace context.

pub mod consumer;
pub mod contract;
pub mod fields;
pub mod http;
pub mod parked;
pub mod postgres;
pub mod problem;
pub mod process;
pub mod telemetry;
pub mod trace;

pub use tokio_util::sync::CancellationToken;
