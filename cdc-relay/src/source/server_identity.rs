//! Identifies a server, so that a second connection does not speak of another one than the stream reads.
//!
//! * A connection of several hosts leads to another server after a promotion.
//! * A server keeps its timeline for as long as it is a primary. One in recovery cannot be identified.
//! * Each promotion has a higher timeline. One on a lower timeline than the session's was the primary before, and nobody stopped
//!   it: it counts as a host that failed.

use std::cmp::Ordering;

use anyhow::{Context, Result, anyhow};
use tokio_postgres::Client;

use crate::checkpoint::state::{Checkpoint, Cluster};

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

/// A server that a second connection found, towards the one that the session reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Same,
    /// It was promoted since, or is of another cluster.
    Another,
    /// It was the primary before.
    Former,
}

/// The server that a session of this checkpoint reads.
impl From<&Checkpoint> for ServerIdentity {
    fn from(checkpoint: &Checkpoint) -> ServerIdentity {
        ServerIdentity { system_id: checkpoint.system_id.clone(), timeline: checkpoint.timeline }
    }
}

impl From<&Cluster> for ServerIdentity {
    fn from(cluster: &Cluster) -> ServerIdentity {
        ServerIdentity { system_id: cluster.system_id.clone(), timeline: cluster.timeline }
    }
}

impl ServerIdentity {
    /// What a server is that a second connection found.
    pub fn judge(&self, found: &ServerIdentity) -> Found {
        if found.system_id != self.system_id {
            return Found::Another;
        }
        match found.timeline.cmp(&self.timeline) {
            Ordering::Equal => Found::Same,
            Ordering::Greater => Found::Another,
            Ordering::Less => Found::Former,
        }
    }

    /// Why a former primary is not read.
    pub fn former(&self, found: &ServerIdentity) -> anyhow::Error {
        anyhow!(
            "a host of the connection string takes writes on timeline {}, and was the primary before timeline {}: stop it. The other \
             hosts are tried",
            found.timeline,
            self.timeline
        )
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    /// A former primary that ended the session on the promoted one would have the relay read it, and refuse.
    #[test]
    fn only_a_higher_timeline_of_the_same_cluster_is_another_primary() {
        let server = |system_id: &str, timeline| ServerIdentity { system_id: system_id.to_owned(), timeline };
        let session = server("1", 5);
        for (found, expected) in [
            (server("1", 5), Found::Same),
            (server("1", 6), Found::Another),
            (server("1", 4), Found::Former),
            (server("2", 4), Found::Another),
            (server("2", 5), Found::Another),
        ] {
            assert_eq!(session.judge(&found), expected, "{found:?}");
        }
    }
}
