//! Prometheus scrapes every process that has metrics.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::Value;

use crate::harness::{Harness, WAIT_TIMEOUT};

const TARGETS: [&str; 15] = [
    "auditor",
    "balance-svc",
    "cdc-relay",
    "fraud",
    "fraud-relay",
    "gateway-sim",
    "haproxy",
    "notifier",
    "payments-svc",
    "payments-svc-2",
    "processor-svc",
    "prometheus",
    "rabbitmq",
    "search-indexer",
    "search-indexer-2",
];

/// The instances of which the last scrape went as `up` says.
async fn scraped(harness: &Harness, up: &str) -> BTreeSet<String> {
    let url = format!("{}/api/v1/query?query=up=={up}", harness.stack.prometheus_url);
    let answer: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    let series = answer["data"]["result"].as_array().unwrap();
    series.iter().map(|series| series["metric"]["instance"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_target_is_up() {
    let harness = Harness::shared().await;
    let wanted = BTreeSet::from(TARGETS.map(str::to_owned));
    let began = Instant::now();
    // The last scrape of one that was restarted just now may have found nobody.
    while scraped(&harness, "1").await != wanted {
        let (up, down) = (scraped(&harness, "1").await, scraped(&harness, "0").await);
        assert!(began.elapsed() < WAIT_TIMEOUT, "up: {up:?}, down: {down:?}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(scraped(&harness, "0").await, BTreeSet::new());
}
