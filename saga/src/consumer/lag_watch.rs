//! Measures the lag of a consumer's group while the consumer runs, on a client and a thread of its own.
//!
//! * So a consumer that stands still is seen by its own process.
//! * Each instance measures the whole group: all report the same.
//! * One that cannot ask Kafka, or that has ended, reports nothing: an old figure would look like a standstill, or hide one.
//! * It costs a few requests to Kafka per interval, one for each topic and partition and one for the group.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::lag::{GroupOffsets, PartitionProgress};
use super::metrics::ConsumerMetrics;
use crate::telemetry::log_text;

const INTERVAL: Duration = Duration::from_secs(5);

/// Measures for as long as it is polled.
pub(super) async fn watch(offsets: GroupOffsets, metrics: &ConsumerMetrics) -> Infallible {
    let offsets = Arc::new(offsets);
    loop {
        match measured(offsets.clone()).await {
            Ok(progress) => metrics.show_lag(&progress),
            Err(error) => {
                metrics.forget_lag();
                tracing::debug!(error = log_text(&error), "the lag of the group cannot be measured");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn measured(offsets: Arc<GroupOffsets>) -> anyhow::Result<Vec<PartitionProgress>> {
    // Every call of it blocks.
    tokio::task::spawn_blocking(move || offsets.progress(&offsets.ends()?)).await?
}
