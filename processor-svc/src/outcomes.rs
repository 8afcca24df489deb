//! Writes the outcomes of charges.
//!
//! * One task takes all waiting reports, decides each, and commits all transitions in one statement. So batches grow with
//!   the load.
//! * A transition that did not apply met a changed row. Its report is decided again on the new state.
//! * Consequences follow the commit: the next call, the next inquiry, the cache.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use saga::telemetry::log_text;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::calls::{Attempt, CallRight, Calls, Report};
use crate::cause::Cause;
use crate::charge::{Charge, ChargeKey};
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::failpoints::{Failpoint, hit};
use crate::metrics::{Metrics, finding_label, step_label, to_label};
use crate::retry::{Stop, until_done};
use crate::saga::{Event, Finding, State, Step, To, decide};
use crate::store::sweep::InquiryResult;
use crate::store::{Store, Transition};

/// Rows per commit, which bounds its duration.
const BATCH_MAX: usize = 500;
/// Rounds in which a report is decided before it is left to the sweeper.
const ROUNDS_MAX: usize = 8;
/// Pause before the sweeper looks again at a charge whose transition did not apply.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

pub struct Outcomes {
    pub store: Store,
    pub calls: Calls,
    pub due_queue: DueQueue,
    pub ended_cache: EndedCache,
    pub inquiries: Backoff,
    pub resends: Backoff,
    pub metrics: Metrics,
    /// Cancelled when no call may begin any more.
    pub stopping: CancellationToken,
    /// Cancelled when unwritten outcomes are left to their leases.
    pub abandon: CancellationToken,
}

impl Outcomes {
    /// Writes reports until `drained`.
    pub async fn run(self, mut reports: mpsc::UnboundedReceiver<Report>, drained: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                _ = reports.recv_many(&mut batch, BATCH_MAX) => {}
                () = drained.cancelled() => break,
            }
            if self.write(batch).await.is_err() {
                tracing::warn!(
                    "the process is stopping; unwritten outcomes are left to their leases and will be inquired about"
                );
            }
        }
    }

    /// Writes reports in rounds until each is written or needs nothing.
    async fn write(&self, mut reports: Vec<Report>) -> Result<(), Stop> {
        for _ in 0..ROUNDS_MAX {
            let (round, mut again) = first_of_each(reports);
            again.extend(self.round(round).await?);
            if again.is_empty() {
                return Ok(());
            }
            let keys: Vec<ChargeKey> = again.iter().map(|report| report.charge.key()).collect();
            let read = until_done("read states", &self.metrics, &self.abandon, || self.store.states(&keys));
            let states = read.await?;
            // An event without an attempt says nothing about the new state, so its compare-and-set must fail.
            for report in again.iter_mut().filter(|report| is_about_an_attempt(&report.event)) {
                report.from = states.get(&report.charge.payment_id).copied().unwrap_or(State::Absent);
            }
            reports = again;
        }
        for report in reports {
            tracing::warn!(payment_id = %report.charge.payment_id, "the charge changed in every round; the sweeper takes it over");
            self.due_queue.set(report.charge.payment_id, RECHECK_INTERVAL);
        }
        Ok(())
    }

    /// Commits one round. Returns the reports to decide again, whose rows had changed.
    async fn round(&self, reports: Vec<Report>) -> Result<Vec<Report>, Stop> {
        let decided: Vec<(Report, Step)> =
            reports.into_iter().filter_map(|report| self.decide(report)).collect();
        let transitions = decided.iter().filter_map(|(report, step)| self.transition(report, step)).collect();
        let begun = Instant::now();
        let applied = self.apply(transitions).await?;
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
        match until_done("record inquiries", &self.metrics, &self.abandon, || {
            self.store.record_inquiries(&results)
        })
        .await
        {
            Err(Stop::Poison(error)) => self.refused(&error, None),
            Err(Stop::Abandoned) => return Err(Stop::Abandoned),
            Ok(()) => {}
        }
        Ok(again)
    }

    fn decide(&self, mut report: Report) -> Option<(Report, Step)> {
        let mut step = decide(&report.from, &report.event);
        if matches!(step, Step::Move(To::Calling { .. })) {
            // A call that may not end in time is not begun. The row stays as it is for the next process.
            if self.stopping.is_cancelled() {
                return None;
            }
            // Nor is a call that the breaker refuses, which is no attempt.
            if report.pass.is_none() {
                match self.calls.breaker.begin(&report.charge) {
                    Ok(pass) => report.pass = Some(pass),
                    Err(_) => step = Step::InquireLater,
                }
            }
        }
        Some((report, step))
    }

    fn transition(&self, report: &Report, step: &Step) -> Option<Transition> {
        let Step::Move(to) = step else { return None };
        let pause = self.pause(report.charge.payment_id, to);
        let ChargeKey { payment_id, user_id } = report.charge.key();
        Some(Transition { payment_id, user_id, from: report.from, to: to.clone(), pause })
    }

    /// The pause until a waiting charge is called again, or an unknown one is inquired about. It grows with the attempts.
    fn pause(&self, payment_id: Uuid, to: &To) -> Duration {
        let tries = |attempt: &i32| u32::try_from(attempt - 1).unwrap_or(0);
        match to {
            To::Waiting { attempt, .. } => self.resends.after(tries(attempt), payment_id),
            // Nobody waits for an answer any more, so the inquiry is due at once.
            To::Unknown { why: Cause::LeaseLapsed, .. } => Duration::ZERO,
            To::Unknown { attempt, .. } => self.inquiries.after(tries(attempt), payment_id),
            To::Calling { .. } | To::Succeeded { .. } | To::Declined { .. } | To::Expired | To::Cancelled => {
                Duration::ZERO
            }
        }
    }

    /// Commits transitions. A row that the database refuses for good is found by halving and left as it is.
    async fn apply(&self, transitions: Vec<Transition>) -> Result<HashSet<Uuid>, Stop> {
        let mut applied = HashSet::new();
        let mut parts = vec![transitions];
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
                    self.refused(&error, Some(part[0].payment_id));
                }
                Err(Stop::Poison(_)) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
            }
        }
        Ok(applied)
    }

    /// `payment_id`: of the charge, if the statement was about one.
    fn refused(&self, error: &anyhow::Error, payment_id: Option<Uuid>) {
        Metrics::count(&self.metrics.alarms, "refused");
        tracing::error!(
            error = log_text(error),
            payment_id = payment_id.map(tracing::field::display),
            "the database refuses a decided transition for good; the charge stays as it is, and an operator must look"
        );
    }

    /// The result of an inquiry, for its row in `charge_attempts`.
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
        let ChargeKey { payment_id, user_id } = report.charge.key();
        let next = (*step == Step::InquireLater).then(|| self.next_inquiry(payment_id, *attempt, seq));
        Some(InquiryResult { payment_id, user_id, attempt: *attempt, seq, outcome, detail, next })
    }

    fn next_inquiry(&self, payment_id: Uuid, attempt: i32, seq: i32) -> Duration {
        self.inquiries.after(u32::try_from(attempt + seq - 2).unwrap_or(0), payment_id)
    }

    /// Carries out the consequences of a committed step. Returns the charge if it has ended.
    fn consequences(&self, report: Report, step: Step, begun: Instant) -> Option<Charge> {
        let payment_id = report.charge.payment_id;
        match step {
            Step::Move(to) => {
                Metrics::count(&self.metrics.transitions, to_label(&to));
                let pause = self.pause(payment_id, &to);
                match to {
                    To::Waiting { .. } | To::Unknown { .. } => self.due_queue.set(payment_id, pause),
                    To::Calling { attempt } => {
                        // The charge stays in the due queue until it ends, since this process may die before it reports.
                        self.due_queue.set(payment_id, self.calls.lease);
                        let exposed = matches!(report.from, State::Unknown { .. });
                        match report.pass {
                            Some(pass) => {
                                let right = CallRight { permit: report.permit, pass };
                                let attempt = Attempt { number: attempt, exposed, taken_at: begun };
                                self.calls.start(report.charge, attempt, right);
                            }
                            // The pass was taken before the decision. Without one, the sweeper finds the lapsed lease.
                            None => {
                                tracing::error!(%payment_id, "a call has no pass of the breaker and is not made; the sweeper takes the charge over when its lease lapses");
                            }
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
                tracing::error!(%payment_id, from = ?report.from, event = ?report.event, ?step, "an event is impossible in this state; the charge stays as it is, and an operator must look");
            }
        }
        None
    }
}

/// Whether an event names its attempt, so that it can be decided in any state.
fn is_about_an_attempt(event: &Event) -> bool {
    match event {
        Event::Called { .. } | Event::Inquired { .. } => true,
        Event::LeaseLapsed | Event::DeadlinePassed | Event::CancelRequested | Event::Work { .. } => false,
    }
}

/// Splits reports into the first of each payment and the others, since one statement changes a row only once.
fn first_of_each(reports: Vec<Report>) -> (Vec<Report>, Vec<Report>) {
    let mut payments = HashSet::with_capacity(reports.len());
    reports.into_iter().partition(|report| payments.insert(report.charge.payment_id))
}
