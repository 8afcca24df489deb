//! The metrics of balance-svc, all in one registry.

use anyhow::Result;
use prometheus::{IntCounterVec, Opts, Registry};
use saga::consumer::ConsumerMetrics;
use saga::telemetry;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Ledger entries inserted, by kind.
    pub entries: IntCounterVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
        let consumer = ConsumerMetrics::register(&registry)?;
        let opts = Opts::new(
            "balance_ledger_entries_total",
            "Ledger entries inserted, by kind: hold, rejection, capture or release.",
        );
        let entries = telemetry::register(&registry, IntCounterVec::new(opts, &["kind"]))?;
        // From zero on, so that the first one is an increase.
        for kind in ["hold", "rejection", "capture", "release"] {
            entries.with_label_values(&[kind]);
        }
        Ok(Self { registry, consumer, entries })
    }
}
