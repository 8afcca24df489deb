//! Identifies a server, so that a second connection does not speak of another one than the stream reads.
//!
//! * A connection of several hosts leads to another server after a promotion.
//! * A server keeps its timeline for as long as it is a primary. One in recovery cannot be identified.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::checkpoint::state::Checkpoint;

/// The first eight digits of a WAL file's name are its timeline.
const QUERY: &str = "select system_identifier::text, \
     ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::bit(32)::int4 \
     from pg_catalog.pg_control_system()";

/// A primary: its cluster, and its timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    pub system_id: String,
    pub timeline: u32,
}

/// The server that a session of this checkpoint reads.
impl From<&Checkpoint> for ServerIdentity {
    fn from(checkpoint: &Checkpoint) -> ServerIdentity {
        ServerIdentity { system_id: checkpoint.system_id.clone(), timeline: checkpoint.timeline }
    }
}

impl ServerIdentity {
    /// Asks the server of a connection.
    ///
    /// # Errors
    /// When it is in recovery, or does not answer.
    pub async fn of(client: &Client) -> Result<ServerIdentity> {
        let row = client.query_one(QUERY, &[]).await.context("the primary cannot be identified")?;
        let timeline: i32 = row.try_get(1)?;
        Ok(ServerIdentity { system_id: row.try_get(0)?, timeline: timeline.cast_unsigned() })
    }
}
