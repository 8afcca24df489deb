//! The metrics of search-indexer, all in one registry.

use anyhow::Result;
use prometheus::{IntGaugeVec, Opts, Registry};
use saga::consumer::ConsumerMetrics;

#[derive(Clone)]
pub struct Metrics {
    pub registry: Registry,
    pub consumer: ConsumerMetrics,
    /// Without labels. There is no value before the first measurement, since 0 would say that the index has everything.
    lag: IntGaugeVec,
}

impl Metrics {
    pub fn register() -> Result<Self> {
        let registry = Registry::new();
        let consumer = ConsumerMetrics::register(&registry)?;
        let lag = Opts::new(
            "search_lag_records",
            "Records on Kafka that the index does not have yet, all partitions together; every instance that fills it reports the same, and one that finds no index reports nothing. Worry when it keeps growing: the index is away, or too slow.",
        );
        let lag = IntGaugeVec::new(lag, &[])?;
        registry.register(Box::new(lag.clone()))?;
        Ok(Self { registry, consumer, lag })
    }

    pub fn set_lag(&self, records: i64) {
        self.lag.with_label_values::<&str>(&[]).set(records);
    }

    /// The index that was measured is not filled any more.
    pub fn forget_lag(&self) {
        self.lag.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_was_not_measured_is_no_lag_of_zero() {
        let metrics = Metrics::register().unwrap();
        let measured = || {
            let found =
                metrics.registry.gather().into_iter().find(|family| family.name() == "search_lag_records");
            found.map(|family| family.get_metric()[0].get_gauge().get_value())
        };
        assert_eq!(measured(), None);
        metrics.set_lag(5_000);
        assert_eq!(measured(), Some(5_000.0));
        metrics.forget_lag();
        assert_eq!(measured(), None);
    }
}
