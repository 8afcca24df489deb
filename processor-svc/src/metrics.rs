//! The metrics of processor-svc.
//!
//! * All labels are fixed texts, never ids or texts of the gateway.

use std::time::Instant;

use ::saga::consumer::ConsumerMetrics;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::saga::{Finding, Outcome, Step, To};

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// The consumer of requests to cancel.
    pub consumer: ConsumerMetrics,
    /// Work messages by result.
    pub jobs: IntCounterVec,
    /// Calls by outcome.
    pub calls: IntCounterVec,
    pub call_seconds: Histogram,
    pub calls_in_flight: IntGauge,
    pub breaker_state: IntGauge,
    /// Inquiries by finding.
    pub inquiries: IntCounterVec,
    /// Webhooks by result.
    pub webhooks: IntCounterVec,
    /// Committed transitions by the new status.
    pub transitions: IntCounterVec,
    /// Decisions that changed nothing.
    pub ignored: IntCounterVec,
    /// Contradictions that an operator must look at.
    pub alarms: IntCounterVec,
    /// Rows per commit, by kind.
    pub batch_rows: HistogramVec,
    pub commit_seconds: HistogramVec,
    /// Failures of a dependency. Each was retried.
    pub failures: IntCounterVec,
    /// Messages looked up in Redis.
    pub cache: IntCounterVec,
    pub broker_connected: IntGauge,
    /// Charges in the due queue.
    pub due_queue_charges: IntGauge,
    pub oldest_live_seconds: IntGauge,
    pub scans: IntCounter,
    pub walks: IntCounter,
}

const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
const ROWS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

impl Metrics {
    pub fn new() -> anyhow::Result<Metrics> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, label: &str| -> anyhow::Result<IntCounterVec> {
            let made = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let gauge = |name: &str, help: &str| -> anyhow::Result<IntGauge> {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let histograms = |name: &str, help: &str, buckets: &[f64]| -> anyhow::Result<HistogramVec> {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let made = HistogramVec::new(opts, &["of"])?;
            registry.register(Box::new(made.clone()))?;
            Ok(made)
        };
        let call_seconds = HistogramOpts::new("processor_call_seconds", "Seconds per gateway call.");
        let call_seconds = Histogram::with_opts(call_seconds.buckets(SECONDS.to_vec()))?;
        registry.register(Box::new(call_seconds.clone()))?;
        let scans = IntCounter::new("processor_scans_total", "Scans for charges that are not terminal.")?;
        registry.register(Box::new(scans.clone()))?;
        let walks =
            IntCounter::new("processor_walks_total", "Completed walks through the whole table of charges.")?;
        registry.register(Box::new(walks.clone()))?;
        Ok(Metrics {
            consumer: ConsumerMetrics::register(&registry)?,
            jobs: counters(
                "processor_jobs_total",
                "Work messages, by result: calling, waiting, expired, already, ended or parked. Worry when `parked` grows: see the table parked.",
                "result",
            )?,
            calls: counters(
                "processor_calls_total",
                "Gateway calls, by outcome: succeeded, declined, not_sent or unknown. Worry when the share of `unknown` grows.",
                "outcome",
            )?,
            call_seconds,
            calls_in_flight: gauge(
                "processor_calls_in_flight",
                "Gateway calls under way. Worry when it stays at the limit of concurrent calls.",
            )?,
            breaker_state: gauge(
                "processor_breaker_state",
                "State of the most restrictive circuit breaker: 0 closed, 1 half-open, 2 open. Worry at 2: the gateway fails for a service, and no calls are made for it.",
            )?,
            inquiries: counters(
                "processor_inquiries_total",
                "Inquiries, by finding: succeeded, declined, not_found, not_yet or unavailable.",
                "finding",
            )?,
            webhooks: counters(
                "processor_webhooks_total",
                "Webhooks, by result: hastened (an inquiry is due now), needless or refused. Worry when `refused` grows: the secret is wrong, or somebody forges webhooks.",
                "result",
            )?,
            transitions: counters(
                "processor_transitions_total",
                "Committed transitions, by the new status.",
                "to",
            )?,
            ignored: counters("processor_ignored_total", "Decisions that changed nothing, by step.", "why")?,
            alarms: counters(
                "processor_alarms_total",
                "Contradictions that an operator must look at, by kind. Worry at the first one: the log names the payment.",
                "what",
            )?,
            batch_rows: histograms(
                "processor_batch_rows",
                "Rows per commit, by kind: intents or outcomes.",
                ROWS,
            )?,
            commit_seconds: histograms(
                "processor_commit_seconds",
                "Seconds per commit, by kind: intents or outcomes.",
                SECONDS,
            )?,
            failures: counters(
                "processor_failures_total",
                "Failures of a dependency, all of which are retried, by dependency: database, broker or redis. Worry while it grows.",
                "of",
            )?,
            cache: counters(
                "processor_cache_total",
                "Messages looked up in Redis, by result: hit, miss, failed or unconfirmed (the database did not confirm a hit).",
                "result",
            )?,
            broker_connected: gauge(
                "processor_broker_connected",
                "1 while work messages can arrive, else 0. Worry when it stays 0: RabbitMQ is away, or the breaker is open.",
            )?,
            due_queue_charges: gauge(
                "processor_due_queue_charges",
                "Charges in the due queue of the sweeper. Worry above 50000: no more work is taken.",
            )?,
            oldest_live_seconds: gauge(
                "processor_oldest_live_seconds",
                "Age in seconds of the oldest charge that is not terminal. Worry above the visibility delay: a charge gets no outcome.",
            )?,
            scans,
            walks,
            registry,
        })
    }

    pub fn count(counter: &IntCounterVec, label: &str) {
        counter.with_label_values(&[label]).inc();
    }

    /// One commit of `rows` rows of a kind (`intents`, `outcomes`) that began at `begun`.
    pub fn committed(&self, of: &str, rows: usize, begun: Instant) {
        self.batch_rows.with_label_values(&[of]).observe(rows as f64);
        self.commit_seconds.with_label_values(&[of]).observe(begun.elapsed().as_secs_f64());
    }
}

pub fn outcome_label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Declined { .. } => "declined",
        Outcome::NotSent { .. } => "not_sent",
        Outcome::Unknown { .. } => "unknown",
    }
}

pub fn finding_label(finding: &Finding) -> &'static str {
    match finding {
        Finding::Succeeded { .. } => "succeeded",
        Finding::Declined { .. } => "declined",
        Finding::NotFound { conclusive: true } => "not_found",
        Finding::NotFound { conclusive: false } => "not_yet",
        Finding::Unavailable { .. } => "unavailable",
    }
}

pub fn to_label(to: &To) -> &'static str {
    match to {
        To::Waiting { .. } => "waiting",
        To::Calling { .. } => "calling",
        To::Unknown { .. } => "unknown",
        To::Succeeded { .. } => "succeeded",
        To::Declined { .. } => "declined",
        To::Expired => "expired",
        To::Cancelled => "cancelled",
    }
}

pub fn step_label(step: &Step) -> &'static str {
    match step {
        Step::Insert(_) => "insert",
        Step::Move(_) => "move",
        Step::Inquire => "inquire",
        Step::InquireLater => "inquire_later",
        Step::Already => "already",
        Step::TooLate => "too_late",
        Step::Stale => "stale",
        Step::Contradiction => "contradiction",
        Step::Illegal => "illegal",
    }
}
