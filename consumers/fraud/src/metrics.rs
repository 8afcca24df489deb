//! The metrics of the fraud detector, all in one registry.

use anyhow::Result;
use prometheus::{IntCounterVec, Opts, Registry};
use saga::consumer::ConsumerMetrics;
use saga::telemetry;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    pub alerts: IntCounterVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
        let consumer = ConsumerMetrics::register(&registry)?;
        let opts = Opts::new(
            "fraud_alerts_total",
            "Alerts raised, by rule: payment_amount, payment_count or payment_sum. Worry when it jumps: users, or \
             a threshold.",
        );
        let alerts = telemetry::register(&registry, IntCounterVec::new(opts, &["rule"]))?;
        Ok(Self { registry, consumer, alerts })
    }
}
