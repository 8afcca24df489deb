//! The lag that a consumer shows of its own group.

use std::time::{Duration, Instant};

use prometheus::Registry;
use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics, WAIT_TIMEOUT, numbers};

/// The values of the gauge, in the order of the partitions.
fn gauge(registry: &Registry, name: &str) -> Vec<f64> {
    let family = registry.gather().into_iter().find(|family| family.name() == name);
    let metrics = family.map(|family| family.get_metric().to_vec()).unwrap_or_default();
    metrics.iter().map(|metric| metric.get_gauge().get_value()).collect()
}

async fn until(registry: &Registry, lag: &[f64], committed: &[f64]) {
    let began = Instant::now();
    loop {
        let shown = (gauge(registry, "consumer_lag_records"), gauge(registry, "consumer_committed_offset"));
        if shown == (lag.to_vec(), committed.to_vec()) {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{shown:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_stands_still_shows_what_waits_and_one_that_has_ended_shows_nothing() {
    let topics = Topics::new(&[("t", 2)]).await;
    let reader = Reader::new(SubscriberState { away: true, ..SubscriberState::default() });
    topics.produce("t", 0, &numbers(0..50));
    let member = topics.member(&reader, Limits::default());
    until(&member.registry, &[50.0, 0.0], &[0.0, 0.0]).await;
    topics.produce("t", 1, &numbers(50..57));
    until(&member.registry, &[50.0, 7.0], &[0.0, 0.0]).await;
    reader.state().away = false;
    until(&member.registry, &[0.0, 0.0], &[50.0, 7.0]).await;
    let registry = member.registry.clone();
    member.stop().await;
    assert!(gauge(&registry, "consumer_lag_records").is_empty(), "an old figure looks like a standstill");
}
