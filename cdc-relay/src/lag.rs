//! Asks Postgres every few seconds how far behind the slot is: on a connection of its own, so that it answers even
//! when the stream stands still.

use std::time::Duration;

use anyhow::Result;
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

use crate::metrics::SourceMetrics;

const EVERY: Duration = Duration::from_secs(5);

/// Runs until `shutdown`.
pub async fn watch(config: Config, slot: String, metrics: SourceMetrics, shutdown: CancellationToken) {
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = ask(&config, &slot, &metrics) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(slot, "lag: {error:#}");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn ask(config: &Config, slot: &str, metrics: &SourceMetrics) -> Result<()> {
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let query = "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8, \
                 pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, coalesce(safe_wal_size, -1) \
                 from pg_replication_slots where slot_name = $1";
    let statement = client.prepare(query).await?;
    while !connection.is_finished() {
        if let Some(row) = client.query_opt(&statement, &[&slot]).await? {
            let value = |index: usize| row.get::<_, Option<i64>>(index).unwrap_or_default();
            metrics.behind.set(value(0));
            metrics.retained.set(value(1));
            metrics.safe.set(value(2));
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}
