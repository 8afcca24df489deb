//! Everything about Postgres itself: URLs, TLS, sessions, the replication stream, SQL text, and the decoder.

pub mod asked_connection;
pub mod connection_url;
pub mod decode;
pub mod error;
pub mod facts;
pub mod lsn;
pub mod name;
pub mod quorum;
pub mod replication_stream;
pub mod server_identity;
pub mod session;
pub(crate) mod settings;
pub(crate) mod shell;
pub(crate) mod socket;
pub mod sql;
pub(crate) mod tls_stream;
pub mod utf8;
