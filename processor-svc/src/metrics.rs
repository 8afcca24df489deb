//! What is counted. All labels are fixed words, never ids or texts of the gateway.

use std::time::Instant;

use ::saga::consumer::ConsumerMetrics;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::saga::{Finding, Outcome, Step, To};

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// Requests to cancel.
    pub consumer: ConsumerMetrics,
    /// Work messages by what became of them.
    pub jobs: IntCounterVec,
    /// Calls by how they ended.
    pub calls: IntCounterVec,
    pub call_seconds: Histogram,
    pub calls_in_flight: IntGauge,
    pub breaker_state: IntGauge,
    /// Inquiries by what they found.
    pub inquiries: IntCounterVec,
    /// Webhooks by what they led to.
    pub webhooks: IntCounterVec,
    /// Committed transitions by the status they led to.
    pub transitions: IntCounterVec,
    /// Steps that changed nothing.
    pub ignored: IntCounterVec,
    /// What a person must look at.
    pub alarms: IntCounterVec,
    /// Rows per commit, by what they are.
    pub batch_rows: HistogramVec,
    pub commit_seconds: HistogramVec,
    /// Failures of what this service depends on; each was retried.
    pub failures: IntCounterVec,
    /// Messages looked up in Redis.
    pub cache: IntCounterVec,
    pub broker_connected: IntGauge,
    /// Charges the sweeper keeps an eye on.
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
        let call_seconds = HistogramOpts::new("processor_call_seconds", "Duration of gateway calls.");
        let call_seconds = Histogram::with_opts(call_seconds.buckets(SECONDS.to_vec()))?;
        registry.register(Box::new(call_seconds.clone()))?;
        let scans = IntCounter::new("processor_scans_total", "Scans for charges that have not ended.")?;
        registry.register(Box::new(scans.clone()))?;
        let walks = IntCounter::new("processor_walks_total", "Walks through all charges, completed.")?;
        registry.register(Box::new(walks.clone()))?;
        Ok(Metrics {
            consumer: ConsumerMetrics::register(&registry)?,
            jobs: counters("processor_jobs_total", "Work messages by what became of them.", "result")?,
            calls: counters("processor_calls_total", "Gateway calls by how they ended.", "outcome")?,
            call_seconds,
            calls_in_flight: gauge("processor_calls_in_flight", "Gateway calls under way.")?,
            breaker_state: gauge("processor_breaker_state", "0 calls flow, 1 probes, 2 no calls.")?,
            inquiries: counters("processor_inquiries_total", "Inquiries by what they found.", "finding")?,
            webhooks: counters("processor_webhooks_total", "Webhooks by what they led to.", "result")?,
            transitions: counters("processor_transitions_total", "Committed transitions.", "to")?,
            ignored: counters("processor_ignored_total", "Steps that changed nothing.", "why")?,
            alarms: counters("processor_alarms_total", "What a person must look at.", "what")?,
            batch_rows: histograms("processor_batch_rows", "Rows per commit.", ROWS)?,
            commit_seconds: histograms("processor_commit_seconds", "Duration of commits.", SECONDS)?,
            failures: counters("processor_failures_total", "Failures that were retried.", "of")?,
            cache: counters("processor_cache_total", "Messages looked up in Redis.", "result")?,
            broker_connected: gauge("processor_broker_connected", "1 while messages can arrive.")?,
            due_queue_charges: gauge("processor_due_queue_charges", "Charges the sweeper keeps an eye on.")?,
            oldest_live_seconds: gauge("processor_oldest_live_seconds", "Age of the oldest unended charge.")?,
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
