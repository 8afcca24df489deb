//! Makes calls and inquiries, and reports their outcomes.
//!
//! * A call holds a permit from before its intent is committed until its outcome is committed. That bounds the charges in
//!   RAM, in flight and unwritten at the same time.
//! * A call that could outlive its lease is not made.

use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::TaskTracker;

use crate::breaker::{Breaker, Pass};
use crate::cause::Cause;
use crate::charge::Charge;
use crate::failpoints::{Failpoint, hit};
use crate::gateway::{Gateway, health};
use crate::metrics::{Metrics, finding_label, outcome_label};
use crate::saga::{Event, Outcome, State};
use crate::shares::Share;
use crate::store::sweep::Claim;

/// An event of a charge, to be decided and written.
pub struct Report {
    pub charge: Charge,
    /// The state of the charge when the event happened.
    pub from: State,
    pub event: Event,
    /// The number of the inquiry, for the result of an inquiry.
    pub inquiry: Option<i32>,
    /// Kept until the report is written.
    pub permit: Permit,
    /// The pass of a call that may follow.
    pub pass: Option<Pass>,
}

/// Room for one charge, and a share of its user and service while it is called or inquired about.
pub struct Permit {
    pub room: OwnedSemaphorePermit,
    pub share: Option<Share>,
}

/// The right to make one call.
pub struct CallRight {
    pub permit: Permit,
    pub pass: Pass,
}

/// An attempt whose intent is committed.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub number: i32,
    /// Whether an earlier attempt may have reached the gateway.
    pub exposed: bool,
    /// When the attempt was decided, which is never later than the begin of its lease.
    pub taken_at: Instant,
}

/// Makes calls and reports their outcomes.
#[derive(Clone)]
pub struct Calls {
    pub gateway: Gateway,
    pub reports: mpsc::UnboundedSender<Report>,
    pub tasks: TaskTracker,
    /// How long an attempt belongs to this process; its call must end within it.
    pub lease: Duration,
    pub call_max: Duration,
    /// Refuses calls for a service while the gateway fails for it. Inquiries go on.
    pub breaker: Breaker,
    pub metrics: Metrics,
}

impl Calls {
    /// Calls the gateway for an attempt whose intent is committed.
    pub fn start(&self, charge: Charge, attempt: Attempt, right: CallRight) {
        let CallRight { permit, pass } = right;
        let Attempt { number, exposed, taken_at } = attempt;
        let this = self.clone();
        self.tasks.spawn(async move {
            let outcome = this.call(&charge, taken_at, pass).await;
            Metrics::count(&this.metrics.gateway.calls, outcome_label(&outcome));
            let from = State::Calling { attempt: number, exposed };
            let event = Event::Called { attempt: number, outcome };
            this.report(Report { charge, from, event, inquiry: None, permit, pass: None });
        });
    }

    async fn call(&self, charge: &Charge, taken_at: Instant, pass: Pass) -> Outcome {
        // A process that was suspended must not call on a lease that others may have taken over.
        if taken_at.elapsed() + self.call_max > self.lease {
            return Outcome::NotSent { why: Cause::LeaseTooShort };
        }
        let begun = Instant::now();
        self.metrics.gateway.calls_in_flight.inc();
        hit(Failpoint::BeforeCall);
        let outcome = self.gateway.charge(charge).await;
        hit(Failpoint::AfterCall);
        self.metrics.gateway.calls_in_flight.dec();
        self.metrics.gateway.call_seconds.observe(begun.elapsed().as_secs_f64());
        pass.ended(health(&outcome));
        self.alarm(charge, outcome.cause());
        outcome
    }

    /// Makes a claimed inquiry.
    pub fn inquire(&self, claim: Claim, permit: Permit) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let Claim { charge, attempt, seq, conclusive } = claim;
            hit(Failpoint::BeforeInquiry);
            let finding = this.gateway.inquire(&charge, conclusive).await;
            hit(Failpoint::AfterInquiry);
            this.alarm(&charge, finding.cause());
            Metrics::count(&this.metrics.gateway.inquiries, finding_label(&finding));
            let event = Event::Inquired { attempt, finding };
            let from = State::Unknown { attempt };
            this.report(Report { charge, from, event, inquiry: Some(seq), permit, pass: None });
        });
    }

    fn alarm(&self, charge: &Charge, cause: Option<&Cause>) {
        if let Some(cause) = cause.filter(|cause| cause.is_alarming()) {
            Metrics::count(&self.metrics.alarms, "mismatch");
            tracing::error!(payment_id = %charge.payment_id, %cause, "the gateway's answer contradicts this charge; its outcome stays unknown, and an operator must compare both");
        }
    }

    /// Hands a report to the writer. Never waits: there are no more reports than permits.
    pub fn report(&self, report: Report) {
        let payment_id = report.charge.payment_id;
        if self.reports.send(report).is_err() {
            // The writer is gone, so this process is ending. The next one finds the lapsed lease.
            tracing::warn!(%payment_id, "the process is stopping; this outcome is left to the lease and will be inquired about");
        }
    }
}
