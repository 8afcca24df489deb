//! The metrics of search-indexer, all in one registry.

use anyhow::Result;
use prometheus::Registry;
use saga::consumer::ConsumerMetrics;
use saga::telemetry;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// Its lag is what the index does not have yet. An instance that finds no index consumes nothing, and has none.
    pub consumer: ConsumerMetrics,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = telemetry::registry()?;
        let consumer = ConsumerMetrics::register(&registry)?;
        Ok(Self { registry, consumer })
    }
}
