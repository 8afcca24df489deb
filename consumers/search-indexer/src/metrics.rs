//! The metrics of search-indexer, all in one registry.

use anyhow::Result;
use prometheus::{IntGauge, Registry};
use saga::consumer::ConsumerMetrics;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Records that the group has not indexed.
    pub lag: IntGauge,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = Registry::new();
        let consumer = ConsumerMetrics::register(&registry)?;
        let lag = IntGauge::new(
            "search_lag_records",
            "Records on Kafka that the index does not have yet, all partitions together; every instance reports the same. Worry when it keeps growing: the index is away, or too slow.",
        )?;
        registry.register(Box::new(lag.clone()))?;
        Ok(Self { registry, consumer, lag })
    }
}
