//! The metrics of the notifier, all in one registry.

use anyhow::Result;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use saga::consumer::ConsumerMetrics;
use saga::telemetry::{self, register};

const ATTEMPTS: &str = "Attempts to deliver, by kind (email or webhook) and outcome: delivered, retried, given_up or \
    disabled. Worry when `given_up` grows: see `failed_at` in the table notifications, and replay.";
const UNDER_WAY: &str =
    "Deliveries under way. Worry when it stays at DELIVERIES_MAX: receivers are slow, and others wait.";
const DISABLED: &str = "Endpoints disabled, by a 410 or after days of failures. Worry at each: its notifications wait \
    until an operator enables it.";
const OLDEST_DUE: &str = "Seconds that the oldest due notification has waited for an attempt, by kind (email or \
    webhook). Worry when it grows: the notifier does not keep up, or an endpoint hangs. What waits for a disabled \
    endpoint, or where no SMTP server is set, does not count.";

const KINDS: [&str; 2] = ["email", "webhook"];
/// The names of [`crate::saga::Step`].
const OUTCOMES: [&str; 4] = ["delivered", "retried", "given_up", "disabled"];

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    pub attempts: IntCounterVec,
    pub under_way: IntGauge,
    pub disabled: IntCounter,
    pub oldest_due: GaugeVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
        let attempts = Opts::new("notifier_attempts_total", ATTEMPTS);
        let oldest_due = Opts::new("notifier_oldest_due_seconds", OLDEST_DUE);
        let metrics = Self {
            consumer: ConsumerMetrics::register(&registry)?,
            attempts: register(&registry, IntCounterVec::new(attempts, &["kind", "outcome"]))?,
            under_way: register(&registry, IntGauge::new("notifier_deliveries_under_way", UNDER_WAY))?,
            disabled: register(&registry, IntCounter::new("notifier_endpoints_disabled_total", DISABLED))?,
            oldest_due: register(&registry, GaugeVec::new(oldest_due, &["kind"]))?,
            registry,
        };
        // From zero on, so that the first one is an increase.
        for kind in KINDS {
            for outcome in OUTCOMES {
                metrics.attempts.with_label_values(&[kind, outcome]);
            }
        }
        Ok(metrics)
    }
}
