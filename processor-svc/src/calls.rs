//! Calls and inquiries under way. Each holds a permit from before its intent is committed until its outcome
//! is: that bounds what is in memory, in flight and unwritten at the same time.

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

/// Something happened to a charge; to be decided and written.
pub struct Report {
    pub charge: Charge,
    /// The state in which it was when it happened.
    pub from: State,
    pub event: Event,
    /// The number of the inquiry, if it was one.
    pub inquiry: Option<i32>,
    /// Kept until the report is written.
    pub permit: Permit,
    /// Of a call that may follow.
    pub pass: Option<Pass>,
}

/// Room for one charge, and a share of its user and service while it is called or inquired about.
pub struct Permit {
    pub room: OwnedSemaphorePermit,
    pub share: Option<Share>,
}

/// Makes calls and reports how they ended.
#[derive(Clone)]
pub struct Calls {
    pub gateway: Gateway,
    pub reports: mpsc::UnboundedSender<Report>,
    pub tasks: TaskTracker,
    /// After the attempt was taken a call must be over by then.
    pub lease: Duration,
    pub call_max: Duration,
    /// Closed to calls for a service while the gateway fails for it; inquiries go on.
    pub breaker: Breaker,
    pub metrics: Metrics,
}

impl Calls {
    /// Calls the gateway for an attempt whose intent is committed. `taken` is when it was decided to take it,
    /// so never later than the lease began.
    pub fn start(
        &self,
        charge: Charge,
        attempt: i32,
        exposed: bool,
        taken: Instant,
        (permit, pass): (Permit, Pass),
    ) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let outcome = this.call(&charge, taken, pass).await;
            Metrics::count(&this.metrics.calls, outcome_label(&outcome));
            let from = State::Calling { attempt, exposed };
            let event = Event::Called { attempt, outcome };
            this.report(Report { charge, from, event, inquiry: None, permit, pass: None });
        });
    }

    async fn call(&self, charge: &Charge, taken: Instant, pass: Pass) -> Outcome {
        // A process that was stopped for a while must not call on a lease others may have taken for lost.
        if taken.elapsed() + self.call_max > self.lease {
            return Outcome::NotSent { why: Cause::LeaseTooShort };
        }
        let begun = Instant::now();
        self.metrics.calls_in_flight.inc();
        hit(Failpoint::BeforeCall);
        let outcome = self.gateway.charge(charge).await;
        hit(Failpoint::AfterCall);
        self.metrics.calls_in_flight.dec();
        self.metrics.call_seconds.observe(begun.elapsed().as_secs_f64());
        pass.ended(health(&outcome));
        self.alarm(charge, outcome.cause());
        outcome
    }

    /// Makes an inquiry that was claimed.
    pub fn inquire(&self, claim: Claim, permit: Permit) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let Claim { charge, attempt, seq, conclusive } = claim;
            hit(Failpoint::BeforeInquiry);
            let finding = this.gateway.inquire(&charge, conclusive).await;
            hit(Failpoint::AfterInquiry);
            this.alarm(&charge, finding.cause());
            Metrics::count(&this.metrics.inquiries, finding_label(&finding));
            let event = Event::Inquired { attempt, finding };
            let from = State::Unknown { attempt };
            this.report(Report { charge, from, event, inquiry: Some(seq), permit, pass: None });
        });
    }

    fn alarm(&self, charge: &Charge, cause: Option<&Cause>) {
        if let Some(cause) = cause.filter(|cause| cause.is_alarming()) {
            Metrics::count(&self.metrics.alarms, "mismatch");
            tracing::error!(payment_id = %charge.payment_id, %cause, "the gateway's answer is not about this charge as we know it");
        }
    }

    /// Hands a report to the writer. Never waits: there are no more reports than permits.
    pub fn report(&self, report: Report) {
        let payment_id = report.charge.payment_id;
        if self.reports.send(report).is_err() {
            // The writer is gone, so this process is ending; the lease tells the next one.
            tracing::warn!(%payment_id, "an outcome was left to the lease");
        }
    }
}
