//! Identifies a primary, so that a connection does not speak of another one than the checkpoint.
//!
//! * A connection of several hosts leads to another server after a promotion.
//! * A server keeps its timeline for as long as it is a primary. One in recovery cannot be identified.
//! * Each promotion has a higher timeline. A server of the same cluster on a lower one was the primary before, and nobody stopped
//!   it: of several hosts it counts as one that failed. The only host is the one that is meant.

use anyhow::{Context, Result};
use tokio_postgres::Client;

/// The first eight digits of a WAL file's name are its timeline.
pub(super) const QUERY: &str = "select system_identifier::text, \
     ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::bit(32)::int4 \
     from pg_catalog.pg_control_system()";

/// A primary: its cluster, and its timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    pub system_id: String,
    pub timeline: u32,
}

impl ServerIdentity {
    /// Whether that server was the primary before this one.
    pub fn succeeds(&self, other: &ServerIdentity) -> bool {
        other.system_id == self.system_id && other.timeline < self.timeline
    }

    /// Why a server is left that was the primary before this one.
    pub fn former(&self, found: &ServerIdentity) -> String {
        format!(
            "a host of the connection string takes writes on timeline {}, and was the primary before timeline {}: stop it. The other \
             hosts are tried",
            found.timeline, self.timeline
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

    /// Reads the answer to `QUERY`, as text.
    pub(super) fn read(row: &[Option<String>]) -> Option<ServerIdentity> {
        let [Some(system_id), Some(timeline), ..] = row else { return None };
        let timeline: i32 = timeline.parse().ok()?;
        Some(ServerIdentity { system_id: system_id.clone(), timeline: timeline.cast_unsigned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(system_id: &str, timeline: u32) -> ServerIdentity {
        ServerIdentity { system_id: system_id.to_owned(), timeline }
    }

    /// A former primary that passed for the promoted one would have the relay read it, and refuse.
    #[test]
    fn only_a_lower_timeline_of_the_same_cluster_was_the_primary_before() {
        let known = server("1", 5);
        for (found, expected) in [
            (server("1", 4), true),
            (server("1", 5), false),
            (server("1", 6), false),
            (server("2", 4), false),
            (server("2", 6), false),
        ] {
            assert_eq!(known.succeeds(&found), expected, "{found:?}");
        }
    }

    #[test]
    fn an_answer_in_text_is_read_like_one_in_binary() {
        let row = |system: &str, timeline: &str| [Some(system.to_owned()), Some(timeline.to_owned())];
        assert_eq!(ServerIdentity::read(&row("77", "3")), Some(server("77", 3)));
        assert_eq!(ServerIdentity::read(&row("77", "-1")), Some(server("77", u32::MAX)));
        assert_eq!(ServerIdentity::read(&row("77", "")), None);
        assert_eq!(ServerIdentity::read(&[]), None);
    }
}
