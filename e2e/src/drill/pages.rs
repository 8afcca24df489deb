//! A planned change is noticed by nobody: no page, and payments go on settling.
//!
//! * The change begins when nothing pages and nothing is about to. What was broken before, such as by another drill, is waited for:
//!   an alert that fires already could not fire because of the change.
//! * It ends when nothing is about to page any more: whatever does by then is held against the change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coroctl::databases;
use jiff::Timestamp;
use uuid::Uuid;

use super::alerts::AlertState;
use super::harness::Harness;

/// Payments that come after the change, so that what stands still is seen.
const FURTHER_PAYMENTS: usize = 25;
/// Two looks of Prometheus at its rules.
const JUST_NOW: Duration = Duration::from_secs(30);
/// The shorter window of the slowest page (`slo.yml`: 30 minutes), a look at the rules, and time for what leads to it.
const EARLIER_TIMEOUT: Duration = Duration::from_secs(2400);
/// The longest `for` of a page, and two looks.
const PENDING_TIMEOUT: Duration = Duration::from_secs(690);
/// The longest time in which no payment settles. A process that is replaced takes seconds on a slow machine.
const GAP_MAX: Duration = Duration::from_secs(30);

/// From the beginning of a planned change to its end.
pub struct Quiet {
    since: Timestamp,
    began: Instant,
}

impl Quiet {
    /// Waits until nothing pages, and nothing is about to.
    ///
    /// # Errors
    /// When something still does after forty minutes: then the change would show nothing.
    pub async fn begin(harness: &mut Harness) -> Result<Self> {
        let began = Instant::now();
        let is_quiet = async || {
            let (now, just_now) = (harness.pages().await?, harness.paged(JUST_NOW).await?);
            let mut names: Vec<String> = now.into_keys().chain(just_now).collect();
            names.sort_unstable();
            names.dedup();
            ensure!(names.is_empty(), "there are pages: {}", names.join(", "));
            Ok(true)
        };
        harness.until(EARLIER_TIMEOUT, "pages from before the change to end", is_quiet).await?;
        let waited = began.elapsed();
        if waited > JUST_NOW {
            harness.note(format!("The change waited {} s for pages from before to end", waited.as_secs()));
        }
        harness.view.line("nothing pages: the change begins");
        Ok(Self { since: Timestamp::now(), began: Instant::now() })
    }

    /// # Errors
    /// When payments stood still for too long, or somebody was paged.
    pub async fn end(self, harness: &mut Harness) -> Result<()> {
        harness.accepts(FURTHER_PAYMENTS).await?;
        let gap = self.gap(harness).await?;
        harness.note(format!("The longest time without a settled payment was {:.1} s", gap.as_secs_f64()));
        let is_decided = async || {
            let pages = harness.pages().await?.into_iter();
            let mut pending = pages.filter(|(_, state)| *state == AlertState::Pending).map(|(name, _)| name);
            let first = pending.next();
            ensure!(first.is_none(), "pending: {}", first.unwrap_or_default());
            Ok(true)
        };
        harness.until(PENDING_TIMEOUT, "pending pages to fire or to end", is_decided).await?;
        let paged = harness.paged(self.began.elapsed()).await?;
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
