//! Waits for the copy of a move, and says how far it is.
//!
//! * Nothing is fenced while the target or the relay is far behind: the fence would be lifted, and nobody would own the buckets meanwhile.
//! * The state is printed when it is asked for the first time, and then every [`REPORT_INTERVAL`].

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::super::replication;
use super::Mover;

const COPY_POLL_INTERVAL: Duration = Duration::from_millis(500);
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const COPIED: &str = "
    select (select count(*) from pg_subscription_rel r where r.srsubid = s.oid),
           (select count(*) from pg_subscription_rel r where r.srsubid = s.oid and r.srsubstate = 'r'),
           exists (select from pg_stat_subscription w where w.subid = s.oid and w.pid is not null)
      from pg_subscription s
      join pg_database d on d.oid = s.subdbid
     where s.subname = $1 and d.datname = current_database()";

/// How far the copy is.
#[derive(Default)]
struct CopyState {
    tables: i64,
    following: i64,
    has_worker: bool,
    /// In bytes; the largest number where it is not known.
    target_lag: i64,
    relay_lag: i64,
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lag = |bytes: i64| match bytes {
            i64::MAX => "an unknown distance".to_owned(),
            bytes => format!("{} KB", bytes / 1024),
        };
        write!(
            f,
            "{} of {} tables follow; the target is {} behind the source, its relay {}",
            self.following,
            self.tables,
            lag(self.target_lag),
            lag(self.relay_lag)
        )?;
        if !self.has_worker {
            f.write_str(". No worker of the target copies: see its server's log")?;
        }
        Ok(())
    }
}

impl Mover {
    pub(super) async fn await_copy(&mut self) -> Result<()> {
        self.compare().await?;
        if self.progress.reported_at.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            self.progress.reported_at = Some(Instant::now());
            let copied = self.copied().await?;
            (self.report)(&copied.to_string());
        }
        // A relay that is sent nothing confirms nothing.
        let name = replication::name(self.moved.move_id);
        self.source.client.query_one(replication::MARK, &[&name]).await.context("pg_logical_emit_message")?;
        sleep(COPY_POLL_INTERVAL).await;
        Ok(())
    }

    async fn copied(&self) -> Result<CopyState> {
        let name = replication::name(self.moved.move_id);
        let lags = CopyState {
            target_lag: self.lag().await?,
            relay_lag: self.relay_lag().await?,
            ..CopyState::default()
        };
        let row = self.target.client.query_opt(COPIED, &[&name]).await.context("pg_subscription")?;
        let Some(row) = row else { return Ok(lags) };
        Ok(CopyState {
            tables: row.try_get(0)?,
            following: row.try_get(1)?,
            has_worker: row.try_get(2)?,
            ..lags
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_says_what_is_waited_for() {
        let copied =
            CopyState { tables: 3, following: 1, has_worker: true, target_lag: 2048, relay_lag: i64::MAX };
        let text = copied.to_string();
        assert_eq!(
            text,
            "1 of 3 tables follow; the target is 2 KB behind the source, its relay an unknown distance"
        );
        assert!(CopyState::default().to_string().contains("No worker"));
    }
}
