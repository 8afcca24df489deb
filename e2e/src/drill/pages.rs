//! A planned change is noticed by nobody: no page, and payments go on settling.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use jiff::Timestamp;
use uuid::Uuid;

use super::harness::Harness;

/// Payments that come after the change, so that what stands still is seen.
const FURTHER_PAYMENTS: usize = 25;
/// Two looks of Prometheus at its rules.
const JUST_NOW: Duration = Duration::from_secs(30);
/// The longest time in which no payment settles. A process that is replaced takes seconds on a slow machine.
const GAP_MAX: Duration = Duration::from_secs(30);

/// From the beginning of a planned change to its end.
pub struct Quiet {
    /// Pages from before, which say nothing about the change.
    earlier: Vec<String>,
    since: Timestamp,
    began: Instant,
}

impl Quiet {
    /// # Errors
    /// When Prometheus does not answer.
    pub async fn begin(harness: &mut Harness) -> Result<Self> {
        let earlier = harness.paged(JUST_NOW).await?;
        if !earlier.is_empty() {
            harness.note(format!("Before the change there were pages: {}", earlier.join(", ")));
        }
        harness.view.line("the change begins");
        Ok(Self { earlier, since: Timestamp::now(), began: Instant::now() })
    }

    /// # Errors
    /// When payments stood still for too long, or somebody was paged.
    pub async fn end(self, harness: &mut Harness) -> Result<()> {
        harness.accepts(FURTHER_PAYMENTS).await?;
        let gap = self.gap(harness).await?;
        harness.note(format!("The longest time without a settled payment was {:.1} s", gap.as_secs_f64()));
        let mut paged = harness.paged(self.began.elapsed()).await?;
        paged.retain(|alert| !self.earlier.contains(alert));
        harness.note(match paged.as_slice() {
            [] => "The change paged nobody".to_owned(),
            alerts => format!("Pages: {}", alerts.join(", ")),
        });
        ensure!(gap < GAP_MAX, "no payment settled for {:.1} s", gap.as_secs_f64());
        ensure!(paged.is_empty(), "somebody was paged: {}", paged.join(", "));
        Ok(())
    }

    /// The longest time between two payments of the load that ended, and up to now.
    async fn gap(&self, harness: &Harness) -> Result<Duration> {
        const GAP: &str = "
            select extract(epoch from max(at - before))::float8
              from (select at, lag(at, 1, $2) over (order by at) as before
                      from (select coalesce(completed_at, failed_at, rejected_at, cancelled_at) as at
                              from payments where user_id = any($1)
                            union all select now()) as ends
                     where at >= $2) as pairs";
        let mut users: Vec<Uuid> = harness.load.accepted().iter().map(|paid| paid.user_id).collect();
        users.sort_unstable();
        users.dedup();
        let client = databases::reader("payments", &harness.stack.payments_database_url).await?;
        let row = client.query_one(GAP, &[&users, &self.since]).await.context("the times of payments")?;
        Ok(Duration::from_secs_f64(row.get(0)))
    }
}
