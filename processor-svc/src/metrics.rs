//! The metrics of processor-svc.
//!
//! * All labels are fixed texts, never ids or texts of the gateway.

use std::time::Instant;

use ::saga::consumer::ConsumerMetrics;
use anyhow::Result;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::saga::{Finding, Outcome, Step, To};

/// The metrics of a processor, all in one registry.
#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// The consumer of requests to cancel.
    pub consumer: ConsumerMetrics,
    pub work: WorkMetrics,
    pub gateway: GatewayMetrics,
    pub sweep: SweepMetrics,
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
}

/// Metrics of the work messages.
#[derive(Clone)]
pub struct WorkMetrics {
    /// Work messages by result.
    pub jobs: IntCounterVec,
    /// Messages looked up in Redis.
    pub cache: IntCounterVec,
    pub broker_connected: IntGauge,
}

/// Metrics of the gateway.
#[derive(Clone)]
pub struct GatewayMetrics {
    /// Calls by outcome.
    pub calls: IntCounterVec,
    pub call_seconds: Histogram,
    pub calls_in_flight: IntGauge,
    pub breaker_state: IntGauge,
    /// Inquiries by finding.
    pub inquiries: IntCounterVec,
    /// Webhooks by result.
    pub webhooks: IntCounterVec,
}

/// Metrics of the sweeper.
#[derive(Clone)]
pub struct SweepMetrics {
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

/// Creates metrics and registers them.
struct Registrar(Registry);

impl Registrar {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms = HistogramVec::new(opts, &["of"])?;
        self.0.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }
}

impl Metrics {
    /// # Errors
    /// When a name is registered twice.
    pub fn new() -> Result<Metrics> {
        let registry = Registry::new();
        let new = Registrar(registry.clone());
        Ok(Metrics {
            consumer: ConsumerMetrics::register(&registry)?,
            work: WorkMetrics::new(&new)?,
            gateway: GatewayMetrics::new(&new)?,
            sweep: SweepMetrics::new(&new)?,
            transitions: new.counters(
                "processor_transitions_total",
                "Committed transitions, by the new status.",
                "to",
            )?,
            ignored: new.counters(
                "processor_ignored_total",
                "Decisions that changed nothing, by step.",
                "why",
            )?,
            alarms: new.counters("processor_alarms_total", ALARMS, "what")?,
            batch_rows: new.histograms(
                "processor_batch_rows",
                "Rows per commit, by kind: intents or outcomes.",
                ROWS,
            )?,
            commit_seconds: new.histograms(
                "processor_commit_seconds",
                "Seconds per commit, by kind: intents or outcomes.",
                SECONDS,
            )?,
            failures: new.counters("processor_failures_total", FAILURES, "of")?,
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

const ALARMS: &str = "Contradictions that an operator must look at, by kind. Worry at the first one: the log names the payment.";
const FAILURES: &str = "Failures of a dependency, all of which are retried, by dependency: database, broker or redis. Worry while \
    it grows.";

impl WorkMetrics {
    fn new(new: &Registrar) -> Result<WorkMetrics> {
        Ok(WorkMetrics {
            jobs: new.counters("processor_jobs_total", JOBS, "result")?,
            cache: new.counters("processor_cache_total", CACHE, "result")?,
            broker_connected: new.gauge("processor_broker_connected", BROKER_CONNECTED)?,
        })
    }
}

const JOBS: &str = "Work messages, by result: calling, waiting, expired, already, ended or parked. Worry when `parked` grows: \
    see the table parked.";
const CACHE: &str = "Messages looked up in Redis, by result: hit, miss, failed or unconfirmed (the database did not confirm a \
    hit).";
const BROKER_CONNECTED: &str = "1 while work messages can arrive, else 0. Worry when it stays 0: RabbitMQ is away, or the breaker is \
    open.";

impl GatewayMetrics {
    fn new(new: &Registrar) -> Result<GatewayMetrics> {
        Ok(GatewayMetrics {
            calls: new.counters("processor_calls_total", CALLS, "outcome")?,
            call_seconds: new.histogram("processor_call_seconds", "Seconds per gateway call.")?,
            calls_in_flight: new.gauge("processor_calls_in_flight", CALLS_IN_FLIGHT)?,
            breaker_state: new.gauge("processor_breaker_state", BREAKER_STATE)?,
            inquiries: new.counters("processor_inquiries_total", INQUIRIES, "finding")?,
            webhooks: new.counters("processor_webhooks_total", WEBHOOKS, "result")?,
        })
    }
}

const CALLS: &str = "Gateway calls, by outcome: succeeded, declined, not_sent or unknown. Worry when the share of `unknown` \
    grows.";
const CALLS_IN_FLIGHT: &str =
    "Gateway calls under way. Worry when it stays at the limit of concurrent calls.";
const BREAKER_STATE: &str = "State of the most restrictive circuit breaker: 0 closed, 1 half-open, 2 open. Worry at 2: the gateway \
    fails for a service, and no calls are made for it.";
const INQUIRIES: &str = "Inquiries, by finding: succeeded, declined, not_found, not_yet or unavailable.";
const WEBHOOKS: &str = "Webhooks, by result: hastened (an inquiry is due now), needless or refused. Worry when `refused` grows: \
    the secret is wrong, or somebody forges webhooks.";

impl SweepMetrics {
    fn new(new: &Registrar) -> Result<SweepMetrics> {
        Ok(SweepMetrics {
            due_queue_charges: new.gauge("processor_due_queue_charges", DUE_QUEUE_CHARGES)?,
            oldest_live_seconds: new.gauge("processor_oldest_live_seconds", OLDEST_LIVE_SECONDS)?,
            scans: new.counter("processor_scans_total", "Scans for charges that are not terminal.")?,
            walks: new
                .counter("processor_walks_total", "Completed walks through the whole table of charges.")?,
        })
    }
}

const DUE_QUEUE_CHARGES: &str =
    "Charges in the due queue of the sweeper. Worry above 50000: no more work is taken.";
const OLDEST_LIVE_SECONDS: &str = "Age in seconds of the oldest charge that is not terminal. Worry above the visibility delay: a charge gets \
    no outcome.";

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
