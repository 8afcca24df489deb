//! The code that the services share.
//!
//! It holds only what two services use and what knows no service's tables or rules:
//!
//! * [`contract`]: topics, event types and their data, in one place; golden files beside it.
//! * [`consumer`]: consumes Kafka in batches, one database transaction each; at least once, with an effect once.
//! * [`backoff`]: the pauses between tries.
//! * [`parked`]: messages that cannot be applied, inserted in the transaction of their batch.
//! * [`postgres`]: the connection pool, and which failures are retried.
//! * [`incarnation`]: databases that are closed after a restore.
//! * [`identity`]: who calls a public listener, by a trusted header or by the token of an issuer.
//! * [`rate_limit`]: how many requests a user may send to one instance.
//! * [`http`], [`fields`], [`query`], [`problem`]: listeners with limits and time-outs; bodies parsed field by field and
//!   query strings parameter by parameter; errors as RFC 9457 documents.
//! * [`http_client`]: the client of servers that the configuration names.
//! * [`recovery`]: a restored database gets the rows again that it lacks, and is opened.
//! * [`shards`]: which database owns a user, and how a process that is behind is refused.
//! * [`search_index`]: the client of the search index, for who writes it and who reads it.
//! * [`process`], [`telemetry`], [`output`], [`trace`]: start, stop, logs, reports, trace context.

pub mod backoff;
pub mod consumer;
pub mod contract;
pub mod fields;
pub mod http;
pub mod http_client;
pub mod identity;
pub mod incarnation;
pub mod output;
pub mod parked;
pub mod postgres;
pub mod problem;
pub mod process;
pub mod query;
pub mod rate_limit;
pub mod recovery;
pub mod search_index;
pub mod shards;

pub mod telemetry;
pub mod trace;
pub mod weight;

pub use tokio_util::sync::CancellationToken;
