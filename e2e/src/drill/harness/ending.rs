//! The end of a drill: every accepted payment ends, and everything is audited.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use coroctl::audit;
use coroctl::databases;
use uuid::Uuid;

use super::Harness;
use crate::bench::audited::Audited;
use crate::drill::report::Report;

/// How long accepted payments may take to end once the runbook is done: inquiries about a long outage have pauses of minutes.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(420);
/// Answers are counted by their beginning: what follows names ids and times.
const ANSWER_CHARS_MAX: usize = 60;

impl Harness {
    /// Ends the load, waits for the end of every accepted payment, and audits everything.
    ///
    /// # Errors
    /// When the audit itself cannot be made.
    pub async fn finish(mut self, title: &str, played: Result<()>) -> Result<Report> {
        let mut misses: Vec<String> = played.err().map(|error| format!("{error:#}")).into_iter().collect();
        self.load.stop();
        // Requests under way may still be accepted.
        (&mut self.running).await.context("load")?;
        let paid = self.load.accepted();
        let of_load = paid.iter().map(|paid| (paid.user_id, paid.payment_id));
        let (users, ids): (Vec<Uuid>, Vec<Uuid>) = of_load.chain(self.others.iter().copied()).unzip();
        let url = &self.stack.payments_database_url;
        let all_ended =
            async || Ok(ended(url, &users, &ids).await?.values().sum::<u64>() == ids.len() as u64);
        if let Err(error) = self.until(SETTLE_TIMEOUT, "all payments to end", all_ended).await {
            misses.push(format!("{error:#}"));
        }
        let failed_requests = by_answer(&self.load.failed());
        if !self.drill.requests_may_fail && !failed_requests.is_empty() {
            misses.push(format!("{} requests failed", self.load.failed_count()));
        }
        self.view.line(&format!("{} payments accepted; audit", ids.len()));
        self.view.wait("the audit");
        let options = audit::Options {
            accepted: ids.clone(),
            explained: self.explained.clone(),
            wait: SETTLE_TIMEOUT,
            ..Default::default()
        };
        let findings = audit::run_with(&self.stack, &options).await.context("audit")?;
        self.view.finish();
        Ok(Report {
            drill: title.to_owned(),
            alerts: self.alerts,
            scripts: self.scripts,
            seconds: self.began.elapsed().as_secs_f64(),
            accepted: ids.len(),
            ended: ended(&self.stack.payments_database_url, &users, &ids).await?,
            failed_requests,
            notes: self.notes,
            misses,
            audit: Audited::new(&findings),
        })
    }
}

/// The payments that have ended, by status.
async fn ended(url: &str, users: &[Uuid], ids: &[Uuid]) -> Result<BTreeMap<String, u64>> {
    const ENDED: &str = "
        select status, count(*) from unnest($1::uuid[], $2::uuid[]) as wanted (user_id, payment_id)
          join payments using (user_id, payment_id)
         where status in ('completed', 'rejected', 'failed', 'cancelled') group by status";
    let client = databases::reader("payments", url).await?;
    let rows = client.query(ENDED, &[&users, &ids]).await.context("payments")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs())).collect())
}

fn by_answer(failed: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in failed {
        *counts.entry(answer.chars().take(ANSWER_CHARS_MAX).collect()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_their_beginning() {
        let answer =
            |id: u32| format!("503 Service Unavailable {{\"type\":\"https://coro.example/problems/{id}\"}}");
        let counts = by_answer(&[answer(1), answer(2), "no answer".to_owned()]);
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [2, 1]);
    }
}
