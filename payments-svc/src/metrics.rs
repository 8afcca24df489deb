//! The metrics of payments-svc, all in one registry.

use anyhow::Result;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};
use saga::consumer::ConsumerMetrics;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Requests to pay, by outcome: created, replayed, reused_key, refused, shed, failed.
    pub requests: IntCounterVec,
    /// Requests committed together.
    pub accept_batch: Histogram,
    /// From the request's arrival in the service to its commit, in seconds.
    pub accept_seconds: Histogram,
    /// Transitions committed, by event.
    pub transitions: IntCounterVec,
    /// Requests that wait for a change of a payment.
    pub waiting: IntGauge,
    /// From the acceptance of a payment to its hold, in seconds, of samples.
    pub hold_seconds: Histogram,
    /// 1 while new payments are refused.
    pub shedding: IntGauge,
    /// Searches, by outcome: answered, busy, unavailable, not_configured.
    pub searches: IntCounterVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = Registry::new();
        let consumer = ConsumerMetrics::register(&registry)?;
        let requests = Opts::new(
            "payments_requests_total",
            "POST /payments requests, by outcome: created, replayed, reused_key, refused, shed or failed. Worry when `failed` grows: the database does not commit.",
        );
        let transitions = Opts::new(
            "payments_transitions_total",
            "Payment transitions committed, by the event that they publish.",
        );
        let searches = Opts::new(
            "payments_searches_total",
            "GET /payments/search requests, by outcome: answered, busy (too many at once), unavailable or not_configured. Worry when `unavailable` grows: the search index does not answer.",
        );
        let batch = HistogramOpts::new("payments_accept_batch_requests", "Requests committed together.")
            .buckets(vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        let seconds = HistogramOpts::new(
            "payments_accept_seconds",
            "Seconds from the arrival of a request to its commit. Worry above 0.5: clients time out.",
        )
        .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]);
        let holds = HistogramOpts::new(
            "payments_hold_seconds",
            "Seconds from the acceptance of a payment to its hold or rejection, of one payment a second at most. Worry when it nears HOLD_DELAY_MAX_SECONDS: new payments are refused beyond it.",
        )
        .buckets(vec![0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0]);
        let metrics = Self {
            consumer,
            requests: IntCounterVec::new(requests, &["outcome"])?,
            accept_batch: Histogram::with_opts(batch)?,
            accept_seconds: Histogram::with_opts(seconds)?,
            transitions: IntCounterVec::new(transitions, &["event"])?,
            waiting: IntGauge::new(
                "payments_waiting_requests",
                "Requests that wait for a change of a payment: streams of events, and reads with `wait`. Worry near the limit of connections.",
            )?,
            hold_seconds: Histogram::with_opts(holds)?,
            shedding: IntGauge::new(
                "payments_shedding",
                "1 while new payments are refused, since those before them wait too long for their holds. Worry when it is 1: balance-svc, the relay or Kafka does not keep up.",
            )?,
            searches: IntCounterVec::new(searches, &["outcome"])?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.accept_batch.clone()))?;
        metrics.registry.register(Box::new(metrics.accept_seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.transitions.clone()))?;
        metrics.registry.register(Box::new(metrics.waiting.clone()))?;
        metrics.registry.register(Box::new(metrics.hold_seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.shedding.clone()))?;
        metrics.registry.register(Box::new(metrics.searches.clone()))?;
        Ok(metrics)
    }
}
