//! A planned change is noticed by nobody: no page, and payments go on settling.
//!
//! * The change begins when nothing pages and nothing is about to. What was broken before, such as by another drill, is waited for:
//!   an alert that fires already could not fire because of the change.
//! * It ends when nothing is about to page any more: whatever does by then is held against the change.

use std::collections::{BTreeMap, BTreeSet};
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
            let pages = earlier(harness.pages().await?, harness.paged(JUST_NOW).await?);
            ensure!(pages.is_empty(), "there are pages: {}", pages.join(", "));
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
            let pages = undecided(harness.pages().await?);
            ensure!(pages.is_empty(), "pending: {}", pages.join(", "));
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

/// The pages for which a change has to wait: those of now, also if they are about to fire, and those that fired just now.
fn earlier(now: BTreeMap<String, AlertState>, just_now: Vec<String>) -> Vec<String> {
    now.into_keys().chain(just_now).collect::<BTreeSet<String>>().into_iter().collect()
}

/// The pages that are about to fire, if their conditions last.
fn undecided(now: BTreeMap<String, AlertState>) -> Vec<String> {
    now.into_iter().filter(|(_, state)| *state == AlertState::Pending).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_for_every_page_and_at_its_end_for_those_that_are_about_to_fire() {
        let pages = |all: &[(&str, AlertState)]| -> BTreeMap<String, AlertState> {
            all.iter().map(|(name, state)| ((*name).to_owned(), *state)).collect()
        };
        let now = pages(&[("CoroAcceptBurn", AlertState::Firing), ("CoroSettleBurn", AlertState::Pending)]);
        assert_eq!(earlier(now.clone(), Vec::new()), ["CoroAcceptBurn", "CoroSettleBurn"]);
        let just_now = vec!["CdcRelayDown".to_owned(), "CoroAcceptBurn".to_owned()];
        assert_eq!(earlier(now.clone(), just_now), ["CdcRelayDown", "CoroAcceptBurn", "CoroSettleBurn"]);
        assert!(earlier(pages(&[]), Vec::new()).is_empty());
        assert_eq!(undecided(now), ["CoroSettleBurn"]);
    }
}
