//! The metrics of processor-svc.
//!
//! * All labels are fixed texts, never ids or texts of the gateway.
//! * Counters begin at zero for every label, so that the first event is an increase.

use std::time::Instant;

use ::saga::consumer::ConsumerMetrics;
use ::saga::telemetry;
use anyhow::Result;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::saga::{Finding, Outcome, Step, To};
use crate::store::sweep::ChargeAge;

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
    oldest_live_seconds: IntGauge,
    /// Charges that are not terminal, by status and age.
    live_charges: IntGaugeVec,
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

    /// `values`: those of the label.
    fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        for value in values {
            counters.with_label_values(&[value]);
        }
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
        for of in ["intents", "outcomes"] {
            histograms.with_label_values(&[of]);
        }
        self.0.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }
}

impl Metrics {
    /// # Errors
    /// When a name is registered twice.
    pub fn new() -> Result<Metrics> {
        let registry = telemetry::registry()?;
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
                &["waiting", "calling", "unknown", "succeeded", "declined", "expired", "cancelled"],
            )?,
            ignored: new.counters(
                "processor_ignored_total",
                "Decisions that changed nothing, by step.",
                "why",
                &["already", "too_late", "stale"],
            )?,
            alarms: new.counters(
                "processor_alarms_total",
                ALARMS,
                "what",
                &["mismatch", "refused", "contradiction", "illegal", "insert"],
            )?,
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
            failures: new.counters(
                "processor_failures_total",
                FAILURES,
                "of",
                &["database", "broker", "redis"],
            )?,
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
            jobs: new.counters(
                "processor_jobs_total",
                JOBS,
                "result",
                &["calling", "waiting", "expired", "already", "ended", "parked"],
            )?,
            cache: new.counters(
                "processor_cache_total",
                CACHE,
                "result",
                &["hit", "miss", "failed", "unconfirmed"],
            )?,
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
            calls: new.counters(
                "processor_calls_total",
                CALLS,
                "outcome",
                &["succeeded", "declined", "not_sent", "unknown"],
            )?,
            call_seconds: new.histogram("processor_call_seconds", "Seconds per gateway call.")?,
            calls_in_flight: new.gauge("processor_calls_in_flight", CALLS_IN_FLIGHT)?,
            breaker_state: new.gauge("processor_breaker_state", BREAKER_STATE)?,
            inquiries: new.counters(
                "processor_inquiries_total",
                INQUIRIES,
                "finding",
                &["succeeded", "declined", "not_found", "not_yet", "unavailable"],
            )?,
            webhooks: new.counters(
                "processor_webhooks_total",
                WEBHOOKS,
                "result",
                &["hastened", "needless", "refused"],
            )?,
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
        let live_charges =
            IntGaugeVec::new(Opts::new("processor_live_charges", LIVE_CHARGES), &["status", "older_than"])?;
        new.0.register(Box::new(live_charges.clone()))?;
        Ok(SweepMetrics {
            live_charges,
            due_queue_charges: new.gauge("processor_due_queue_charges", DUE_QUEUE_CHARGES)?,
            oldest_live_seconds: new.gauge("processor_oldest_live_seconds", OLDEST_LIVE_SECONDS)?,
            scans: new.counter("processor_scans_total", "Scans for charges that are not terminal.")?,
            walks: new
                .counter("processor_walks_total", "Completed walks through the whole table of charges.")?,
        })
    }

    /// Shows the oldest charges that are not terminal.
    pub fn show_live(&self, live: &[ChargeAge]) {
        for status in LIVE_STATUSES {
            for (name, seconds) in AGES {
                let counted =
                    |charge: &&ChargeAge| charge.status == status && charge.age.as_secs() >= seconds;
                let charges = live.iter().filter(counted).count();
                self.live_charges.with_label_values(&[status, name]).set(charges as i64);
            }
        }
        let oldest = live.iter().map(|charge| charge.age.as_secs()).max().unwrap_or(0);
        self.oldest_live_seconds.set(oldest as i64);
    }
}

const LIVE_STATUSES: [&str; 3] = ["waiting", "calling", "unknown"];
/// By which live charges are counted: the label, and seconds.
const AGES: [(&str, u64); 4] = [("1m", 60), ("10m", 600), ("1h", 3600), ("1d", 86_400)];
const LIVE_CHARGES: &str = "Charges that are not terminal and are older than that, by status; at most the 1000 oldest are counted. Worry at \
    unknown and 10m: the gateway gives no definite answer.";

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn live_charges_are_counted_by_status_and_age() {
        let metrics = Metrics::new().unwrap();
        let charge = |status: &str, seconds| ChargeAge {
            payment_id: uuid::Uuid::nil(),
            status: status.to_owned(),
            age: Duration::from_secs(seconds),
        };
        let sweep = &metrics.sweep;
        sweep.show_live(&[charge("unknown", 4000), charge("unknown", 61), charge("waiting", 600)]);
        let count = |status, age| sweep.live_charges.with_label_values(&[status, age]).get();
        assert_eq!([count("unknown", "1m"), count("unknown", "10m"), count("unknown", "1h")], [2, 1, 1]);
        assert_eq!([count("waiting", "10m"), count("waiting", "1h"), count("calling", "1m")], [1, 0, 0]);
        assert_eq!(sweep.oldest_live_seconds.get(), 4000);
        sweep.show_live(&[]);
        assert_eq!((count("unknown", "1m"), sweep.oldest_live_seconds.get()), (0, 0));
    }
}
