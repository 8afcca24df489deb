//! The metrics of balance-svc, all in one registry.

use anyhow::Result;
use prometheus::{IntCounterVec, Opts, Registry};
use saga::consumer::ConsumerMetrics;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Ledger entries inserted, by kind.
    pub entries: IntCounterVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = Registry::new();
        let consumer = ConsumerMetrics::register(&registry)?;
        let opts = Opts::new(
            "balance_ledger_entries_total",
            "Ledger entries inserted, by kind: hold, rejection, capture or release.",
        );
        let entries = IntCounterVec::new(opts, &["kind"])?;
        registry.register(Box::new(entries.clone()))?;
        Ok(Self { registry, consumer, entries })
    }
}
