//! The metrics of a consumer.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::BatchCounts;
use super::lag::PartitionProgress;

/// Counters of one consumer; `outcome` is applied, already, ignored or parked.
#[derive(Clone)]
pub struct ConsumerMetrics {
    records: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) waiting: IntGauge,
    pub(super) batch_records: Histogram,
    pub(super) batch_seconds: Histogram,
    /// Messages that contradict themselves or a row of this service, from wherever they came.
    pub contradictions: IntCounter,
    /// By topic and partition. There is no value before the first measurement, since 0 would say that all is applied.
    lag: IntGaugeVec,
    committed: IntGaugeVec,
}

const LAG: &str = "Records that the consumer's group has not applied yet, by topic and partition; every instance reports the same, \
    and one that cannot ask Kafka reports nothing. Worry when it keeps growing.";
const COMMITTED: &str = "The next offset that the consumer's group applies, by topic and partition. Worry when it does not move \
    while there is a lag.";
const CONTRADICTIONS: &str = "Messages parked because they contradict themselves or this service's own row of the \
    payment: amount, service, user, client number, meaning. Worry at the first one: it was forged or misrouted, or a \
    database is not the one it was. No money moves by it; the hold stays. The table `parked`, or the index of parked messages, has the message.";

impl ConsumerMetrics {
    pub fn register(registry: &Registry) -> anyhow::Result<Self> {
        let records = Opts::new(
            "consumer_records_total",
            "Records read, by outcome: applied, already (duplicates), ignored or parked. Worry when `parked` grows: see the table parked, or the index of parked messages.",
        );
        let retries = Opts::new(
            "consumer_retries_total",
            "Batches tried again, by reason: transient (the database or the search index failed), missing (a row is not there yet, or the user is being moved), absent (the first event that was passed over, since the shard of its user is away or nobody owns the user) or client (the Kafka client could not recover, and a new one reads again). Worry when it keeps growing.",
        );
        let sizes = HistogramOpts::new("consumer_batch_records", "Records per batch.")
            .buckets(vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        let seconds =
            HistogramOpts::new("consumer_batch_seconds", "Seconds to apply a batch, retries included.")
                .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]);
        let metrics = Self {
            records: IntCounterVec::new(records, &["outcome"])?,
            retries: IntCounterVec::new(retries, &["reason"])?,
            waiting: IntGauge::new(
                "consumer_waiting_records",
                "Records that wait for a missing row or for a user who is being moved, and the records behind them in their partitions. What is passed over, since its shard is away, is not counted: the lag has it. Worry when it stays above 0.",
            )?,
            batch_records: Histogram::with_opts(sizes)?,
            batch_seconds: Histogram::with_opts(seconds)?,
            contradictions: IntCounter::new("saga_contradictions_total", CONTRADICTIONS)?,
            lag: IntGaugeVec::new(Opts::new("consumer_lag_records", LAG), &["topic", "partition"])?,
            committed: IntGaugeVec::new(
                Opts::new("consumer_committed_offset", COMMITTED),
                &["topic", "partition"],
            )?,
        };
        // From zero on, so that the first one is an increase.
        for outcome in ["applied", "already", "ignored", "parked"] {
            metrics.records.with_label_values(&[outcome]);
        }
        for reason in ["transient", "missing", "absent", "client"] {
            metrics.retries.with_label_values(&[reason]);
        }
        registry.register(Box::new(metrics.records.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        registry.register(Box::new(metrics.batch_records.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        registry.register(Box::new(metrics.contradictions.clone()))?;
        registry.register(Box::new(metrics.lag.clone()))?;
        registry.register(Box::new(metrics.committed.clone()))?;
        Ok(metrics)
    }

    pub(super) fn show_lag(&self, progress: &[PartitionProgress]) {
        for PartitionProgress { topic, partition, committed, behind } in progress {
            let labels = [topic.as_str(), &partition.to_string()];
            self.lag.with_label_values(&labels).set(*behind);
            self.committed.with_label_values(&labels).set(*committed);
        }
    }

    /// The group that was measured is not measured any more.
    pub(super) fn forget_lag(&self) {
        self.lag.reset();
        self.committed.reset();
    }

    pub(super) fn count(&self, applied: BatchCounts, ignored: usize, unreadable: usize) {
        self.records.with_label_values(&["applied"]).inc_by(applied.applied as u64);
        self.records.with_label_values(&["already"]).inc_by(applied.already as u64);
        self.records.with_label_values(&["ignored"]).inc_by(ignored as u64);
        self.records.with_label_values(&["parked"]).inc_by((applied.parked + unreadable) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_was_not_measured_is_no_lag_of_zero() {
        let registry = Registry::new();
        let metrics = ConsumerMetrics::register(&registry).unwrap();
        let measured = |name: &str| {
            let found = registry.gather().into_iter().find(|family| family.name() == name);
            found.map(|family| family.get_metric()[0].get_gauge().get_value())
        };
        assert_eq!(measured("consumer_lag_records"), None);
        let topic = "T".to_owned();
        metrics.show_lag(&[PartitionProgress { topic, partition: 3, committed: 40, behind: 5_000 }]);
        assert_eq!(measured("consumer_lag_records"), Some(5_000.0));
        assert_eq!(measured("consumer_committed_offset"), Some(40.0));
        metrics.forget_lag();
        assert_eq!(measured("consumer_lag_records"), None);
        assert_eq!(measured("consumer_committed_offset"), None);
    }
}
