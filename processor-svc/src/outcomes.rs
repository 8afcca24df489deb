//! Writes what happened to charges. One task: it takes every report there is, decides each, commits all
//! transitions in one statement, and begins again; so the batches grow with the load by themselves.
//!
//! What did not apply was changed by somebody else: it is read and decided again. After the commit come the
//! consequences: the next call, the next inquiry, the cache.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::calls::{Calls, Report};
use crate::cause::Cause;
use crate::charge::Charge;
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::failpoints::{Failpoint, hit};
use crate::metrics::{Metrics, finding_label, step_label, to_label};
use crate::retry::{Stop, until_done};
use crate::saga::{Event, Finding, State, Step, To, decide};
use crate::store::sweep::InquiryResult;
use crate::store::{Store, Write};

/// Rows per commit; also bounds how long one takes.
const BATCH_MAX: usize = 500;
/// How often a report is decided anew before it is left to the sweeper.
const ROUNDS_MAX: usize = 8;
/// When to look again at a charge that could not be moved on.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

pub struct Outcomes {
    pub store: Store,
    pub calls: Calls,
    pub due_queue: DueQueue,
    pub ended_cache: EndedCache,
    pub inquiries: Backoff,
    pub resends: Backoff,
    pub metrics: Metrics,
    /// Cancelled when no new call may start.
    pub stopping: CancellationToken,
    /// Cancelled when what is not written yet is left to the leases.
    pub abandon: CancellationToken,
}

impl Outcomes {
    /// Until `drained`, then what is still queued.
    pub async fn run(self, mut reports: mpsc::UnboundedReceiver<Report>, drained: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                _ = reports.recv_many(&mut batch, BATCH_MAX) => {}
                () = drained.cancelled() => break,
            }
            if self.write(batch).await.is_err() {
                tracing::warn!("outcomes were left to the leases");
            }
        }
    }

    /// Rounds until everything is written or needs nothing.
    async fn write(&self, mut reports: Vec<Report>) -> Result<(), Stop> {
        for _ in 0..ROUNDS_MAX {
            let (round, mut again) = first_of_each(reports);
            again.extend(self.round(round).await?);
            if again.is_empty() {
                return Ok(());
            }
            let ids: Vec<Uuid> = again.iter().map(|report| report.charge.payment_id).collect();
            let read = until_done("read states", &self.metrics, &self.abandon, || self.store.states(&ids));
            let states = read.await?;
            // What was seen of the old state says nothing about the new one, so its compare-and-set must fail.
            for report in again.iter_mut().filter(|report| is_about_an_attempt(&report.event)) {
                report.from = states.get(&report.charge.payment_id).copied().unwrap_or(State::Absent);
            }
            reports = again;
        }
        for report in reports {
            tracing::warn!(payment_id = %report.charge.payment_id, "left to the sweeper");
            self.due_queue.set(report.charge.payment_id, RECHECK_INTERVAL);
        }
        Ok(())
    }

    /// One commit. Answers the reports to decide again, since their rows had changed.
    async fn round(&self, reports: Vec<Report>) -> Result<Vec<Report>, Stop> {
        let decided: Vec<(Report, Step)> =
            reports.into_iter().filter_map(|report| self.decide(report)).collect();
        let writes = decided.iter().filter_map(|(report, step)| self.transition(report, step)).collect();
        let begun = Instant::now();
        let applied = self.apply(writes).await?;
        let (mut ended, mut results, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for (report, step) in decided {
            let payment_id = report.charge.payment_id;
            if matches!(step, Step::Move(_)) && !applied.contains(&payment_id) {
                if is_about_an_attempt(&report.event) {
                    again.push(report);
                } else {
                    self.due_queue.set(payment_id, RECHECK_INTERVAL);
                }
                continue;
            }
            results.extend(self.inquiry_result(&report, &step));
            ended.extend(self.consequences(report, step, begun));
        }
        self.ended_cache.save(&ended.iter().collect::<Vec<_>>());
        hit(Failpoint::AfterCacheWrite);
        match until_done("note inquiries", &self.metrics, &self.abandon, || {
            self.store.record_inquiries(&results)
        })
        .await
        {
            Err(Stop::Poison(error)) => self.refused(&format!("{error:#}")),
            Err(Stop::Abandoned) => return Err(Stop::Abandoned),
            Ok(()) => {}
        }
        Ok(again)
    }

    fn decide(&self, mut report: Report) -> Option<(Report, Step)> {
        let mut step = decide(&report.from, &report.event);
        if matches!(step, Step::Move(To::Calling { .. })) {
            // A call that may not be finished is not begun; the row stays as it is for the next process.
            if self.stopping.is_cancelled() {
                return None;
            }
            // Nor is one that the breaker refuses: that is no attempt.
            if report.pass.is_none() {
                match self.calls.breaker.begin(&report.charge) {
                    Ok(pass) => report.pass = Some(pass),
                    Err(_) => step = Step::InquireLater,
                }
            }
        }
        Some((report, step))
    }

    fn transition(&self, report: &Report, step: &Step) -> Option<Write> {
        let Step::Move(to) = step else { return None };
        let pause = self.pause(report.charge.payment_id, to);
        Some(Write { payment_id: report.charge.payment_id, from: report.from, to: to.clone(), pause })
    }

    /// Until a waiting charge is called again, or an unknown one is inquired about. Later attempts wait longer.
    fn pause(&self, payment_id: Uuid, to: &To) -> Duration {
        let tries = |attempt: &i32| u32::try_from(attempt - 1).unwrap_or(0);
        match to {
            To::Waiting { attempt, .. } => self.resends.after(tries(attempt), payment_id),
            // Nobody waits for an answer any more: ask at once.
            To::Unknown { why: Cause::LeaseLapsed, .. } => Duration::ZERO,
            To::Unknown { attempt, .. } => self.inquiries.after(tries(attempt), payment_id),
            To::Calling { .. } | To::Succeeded { .. } | To::Declined { .. } | To::Expired | To::Cancelled => {
                Duration::ZERO
            }
        }
    }

    /// Commits; a row the database refuses for good is found by halving and left as it is.
    async fn apply(&self, writes: Vec<Write>) -> Result<HashSet<Uuid>, Stop> {
        let mut applied = HashSet::new();
        let mut parts = vec![writes];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let begun = Instant::now();
            hit(Failpoint::BeforeOutcome);
            match until_done("write outcomes", &self.metrics, &self.abandon, || self.store.apply(&part)).await
            {
                Ok(moved) => {
                    hit(Failpoint::AfterOutcome);
                    self.metrics.committed("outcomes", part.len(), begun);
                    applied.extend(moved);
                }
                Err(Stop::Abandoned) => return Err(Stop::Abandoned),
                Err(Stop::Poison(error)) if part.len() == 1 => {
                    self.refused(&format!("{error:#}: {:?}", part[0]));
                }
                Err(Stop::Poison(_)) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
            }
        }
        Ok(applied)
    }

    fn refused(&self, error: &str) {
        Metrics::count(&self.metrics.alarms, "refused");
        tracing::error!(error, "the database refuses what was decided");
    }

    /// What an inquiry's row in `charge_attempts` is to say.
    fn inquiry_result(&self, report: &Report, step: &Step) -> Option<InquiryResult> {
        let (Some(seq), Event::Inquired { attempt, finding }) = (report.inquiry, &report.event) else {
            return None;
        };
        let (outcome, detail) = match finding {
            Finding::NotFound { .. } => ("not_found", None),
            Finding::Declined { code } => (finding_label(finding), Some(code.clone())),
            Finding::Unavailable { why } => (finding_label(finding), Some(why.to_string())),
            Finding::Succeeded { provider_reference } => {
                (finding_label(finding), Some(provider_reference.clone()))
            }
        };
        let payment_id = report.charge.payment_id;
        let next = (*step == Step::InquireLater).then(|| self.next_inquiry(payment_id, *attempt, seq));
        Some(InquiryResult { payment_id, attempt: *attempt, seq, outcome, detail, next })
    }

    fn next_inquiry(&self, payment_id: Uuid, attempt: i32, seq: i32) -> Duration {
        self.inquiries.after(u32::try_from(attempt + seq - 2).unwrap_or(0), payment_id)
    }

    /// After the commit. Answers the charge if it has ended.
    fn consequences(&self, report: Report, step: Step, begun: Instant) -> Option<Charge> {
        let payment_id = report.charge.payment_id;
        match step {
            Step::Move(to) => {
                Metrics::count(&self.metrics.transitions, to_label(&to));
                let pause = self.pause(payment_id, &to);
                match to {
                    To::Waiting { .. } | To::Unknown { .. } => self.due_queue.set(payment_id, pause),
                    To::Calling { attempt } => {
                        // Watched until it ends; this process may be the one that does not report.
                        self.due_queue.set(payment_id, self.calls.lease);
                        let exposed = matches!(report.from, State::Unknown { .. });
                        match report.pass {
                            Some(pass) => {
                                let right = (report.permit, pass);
                                self.calls.start(report.charge, attempt, exposed, begun, right);
                            }
                            // It was asked for before the decision; if not, the lease tells the sweeper.
                            None => tracing::error!(%payment_id, "a call without a pass"),
                        }
                    }
                    To::Succeeded { .. } | To::Declined { .. } | To::Expired | To::Cancelled => {
                        self.due_queue.remove(payment_id);
                        return Some(report.charge);
                    }
                }
            }
            Step::Inquire => self.due_queue.set(payment_id, Duration::ZERO),
            Step::InquireLater => {
                if let (Some(seq), Event::Inquired { attempt, .. }) = (report.inquiry, &report.event) {
                    self.due_queue.set(payment_id, self.next_inquiry(payment_id, *attempt, seq));
                }
            }
            Step::Already | Step::TooLate | Step::Stale => {
                Metrics::count(&self.metrics.ignored, step_label(&step));
            }
            Step::Insert(_) | Step::Contradiction | Step::Illegal => {
                Metrics::count(&self.metrics.alarms, step_label(&step));
                tracing::error!(%payment_id, from = ?report.from, event = ?report.event, ?step, "cannot be");
            }
        }
        None
    }
}

/// Such an event names what it is about, so it can be held against any state.
fn is_about_an_attempt(event: &Event) -> bool {
    match event {
        Event::Called { .. } | Event::Inquired { .. } => true,
        Event::LeaseLapsed | Event::DeadlinePassed | Event::CancelRequested | Event::Work { .. } => false,
    }
}

/// The first report of each payment, and the others: one statement changes a row once.
fn first_of_each(reports: Vec<Report>) -> (Vec<Report>, Vec<Report>) {
    let mut seen = HashSet::with_capacity(reports.len());
    reports.into_iter().partition(|report| seen.insert(report.charge.payment_id))
}
