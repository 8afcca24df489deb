//! Prometheus scrapes every process that has metrics, and an exporter beside each server that has none.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::Value;

use crate::harness::{Harness, WAIT_TIMEOUT, get};

const TARGETS: [&str; 19] = [
    "auditor",
    "balance-svc",
    "cdc-relay",
    "fraud",
    "fraud-relay",
    "gateway-sim",
    "haproxy",
    "kafka",
    "node",
    "notifier",
    "payments-svc",
    "payments-svc-2",
    "postgres",
    "processor-svc",
    "prometheus",
    "rabbitmq",
    "redis",
    "search-indexer",
    "search-indexer-2",
];

/// The instances of which the last scrape went as `up` says.
async fn scraped(harness: &Harness, up: &str) -> BTreeSet<String> {
    let url = format!("{}/api/v1/query?query=up=={up}", harness.stack.prometheus_url);
    let answer: Value = get(url).await.unwrap().json().await.unwrap();
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

/// A login that reads statistics only is enough for every question that is asked.
#[tokio::test]
async fn each_exporter_is_let_in() {
    let harness = Harness::shared().await;
    let began = Instant::now();
    for (query, value) in [("pg_up", "1"), ("pg_exporter_last_scrape_error", "0"), ("redis_up", "1")] {
        loop {
            let url = format!("{}/api/v1/query?query={query}", harness.stack.prometheus_url);
            let answer: Value = get(url).await.unwrap().json().await.unwrap();
            if answer["data"]["result"][0]["value"][1] == value {
                break;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{query}: {answer}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}
