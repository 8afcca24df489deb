//! The metrics of payments-svc, all in one registry.

use anyhow::Result;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use saga::consumer::ConsumerMetrics;
use saga::telemetry;
use saga::weight::Weight;

use crate::saga::RowEvent;

/// The outcomes of a request to pay.
const OUTCOMES: [&str; 6] = ["created", "replayed", "reused_key", "refused", "shed", "failed"];
/// The outcomes of a search.
const SEARCH_OUTCOMES: [&str; 4] = ["answered", "busy", "unavailable", "not_configured"];

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Requests to pay, by outcome: created, replayed, reused_key, refused, shed, failed.
    pub requests: IntCounterVec,
    /// What this instance can take beside the others.
    pub weight: Weight,
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
    /// From the acceptance of a payment to its end.
    pub settling: SettlingMetrics,
}

/// The metrics of what was accepted and has to end.
#[derive(Clone)]
pub struct SettlingMetrics {
    /// Payments accepted: their rows are committed.
    pub accepted: IntCounter,
    /// Settle time: from the acceptance to the terminal state, in seconds.
    pub settle_seconds: Histogram,
    /// Payments without an end, by age.
    unsettled: IntGaugeVec,
    /// Without labels. Neither gauge has a value before the first measurement, since 0 would say that all is settled.
    oldest_unsettled: IntGaugeVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
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
            weight: Weight::register(&registry)?,
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
            settling: SettlingMetrics::register(&registry)?,
            registry,
        };
        // From zero on, so that the first one is an increase.
        for outcome in OUTCOMES {
            metrics.requests.with_label_values(&[outcome]);
        }
        for outcome in SEARCH_OUTCOMES {
            metrics.searches.with_label_values(&[outcome]);
        }
        for event in RowEvent::ALL {
            metrics.transitions.with_label_values(&[event.as_str()]);
        }
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

const ACCEPTED: &str = "Payments accepted: their rows are committed. Less those that settled within ten seconds, ten seconds \
    later, it is what misses the objective.";
const SETTLE_SECONDS: &str = "Settle time: seconds from the acceptance of a payment to its terminal state, by the database's \
    clock. A payment without an end is not in it. Worry when less than 99 % are below 10.";
const UNSETTLED: &str = "Payments that are not terminal and are older than that; at most 1000 are counted. Worry at 10m: it \
    waits for the gateway, or is stuck.";
const OLDEST_UNSETTLED: &str = "Age in seconds of the oldest payment that is not terminal and older than 30 s; 0 without one. After a start \
    it may be less than the truth until the table was read. Worry above 3600.";

impl SettlingMetrics {
    fn register(registry: &Registry) -> Result<Self> {
        let seconds = HistogramOpts::new("payments_settle_seconds", SETTLE_SECONDS).buckets(vec![
            0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 86_400.0,
        ]);
        let metrics = Self {
            accepted: IntCounter::new("payments_accepted_total", ACCEPTED)?,
            settle_seconds: Histogram::with_opts(seconds)?,
            unsettled: IntGaugeVec::new(Opts::new("payments_unsettled", UNSETTLED), &["older_than"])?,
            oldest_unsettled: IntGaugeVec::new(
                Opts::new("payments_oldest_unsettled_seconds", OLDEST_UNSETTLED),
                &[],
            )?,
        };
        registry.register(Box::new(metrics.accepted.clone()))?;
        registry.register(Box::new(metrics.settle_seconds.clone()))?;
        registry.register(Box::new(metrics.unsettled.clone()))?;
        registry.register(Box::new(metrics.oldest_unsettled.clone()))?;
        Ok(metrics)
    }

    /// Shows the ages, in seconds, of all payments that are known to have no end.
    pub fn show_unsettled(&self, ages: &[i64]) {
        for (name, seconds) in AGES {
            let older = ages.iter().filter(|age| **age >= seconds).count();
            self.unsettled.with_label_values(&[name]).set(older as i64);
        }
        self.oldest_unsettled.with_label_values::<&str>(&[]).set(ages.iter().copied().max().unwrap_or(0));
    }

    /// What was measured before is not known any more.
    pub fn forget_unsettled(&self) {
        self.unsettled.reset();
        self.oldest_unsettled.reset();
    }
}

/// By which payments without an end are counted: the label, and seconds.
const AGES: [(&str, i64); 4] = [("1m", 60), ("10m", 600), ("1h", 3600), ("1d", 86_400)];

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(registry: &Registry, name: &str) -> Vec<f64> {
        let found = registry.gather().into_iter().find(|family| family.name() == name);
        let metrics = found.map(|family| family.get_metric().to_vec()).unwrap_or_default();
        metrics.iter().map(|metric| metric.get_gauge().get_value()).collect()
    }

    #[test]
    fn payments_without_an_end_are_counted_by_age_and_not_before_they_were_looked_for() {
        let metrics = Metrics::register().unwrap();
        let counts = || measured(&metrics.registry, "payments_unsettled");
        let oldest = || measured(&metrics.registry, "payments_oldest_unsettled_seconds");
        assert!(counts().is_empty() && oldest().is_empty(), "zero would say that there are none");
        metrics.settling.show_unsettled(&[59, 60, 599, 4000]);
        // In the order of the labels: 10m, 1d, 1h, 1m.
        assert_eq!((counts(), oldest()), (vec![1.0, 0.0, 1.0, 3.0], vec![4000.0]));
        metrics.settling.show_unsettled(&[]);
        assert_eq!((counts(), oldest()), (vec![0.0; 4], vec![0.0]));
        metrics.settling.forget_unsettled();
        assert!(counts().is_empty() && oldest().is_empty());
    }
}
