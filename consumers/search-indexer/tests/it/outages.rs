//! OpenSearch refuses to write for a while, or does not answer any more.

use std::time::{Duration, Instant};

use saga::search_index::{Body, Method};
use serde_json::json;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::hanging::Hanging;
use crate::harness::{Harness, payment, until, variable};

/// An instance has ended by then: a request that is under way has ten seconds, and the group is left.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Nothing is under way that has to end. Less than the ten seconds of a request.
const STOP_AT_ONCE: Duration = Duration::from_secs(8);

async fn block_writes(harness: &Harness, blocked: bool) {
    let path = format!("/{}/_settings", harness.alias);
    let settings = Body::Json(json!({"index.blocks.write": blocked}));
    harness.index.send(Method::PUT, &path, settings).await.unwrap();
}

async fn indexed(harness: &Harness) -> u64 {
    // There may be no index yet.
    let _ = harness.index.send(Method::POST, &format!("/{}/_refresh", harness.alias), Body::None).await;
    harness.count(json!({"term": {"kind": "payment"}})).await
}

#[tokio::test]
async fn offsets_wait_for_the_documents() {
    let harness = Harness::new().await;
    let user = Uuid::now_v7();
    harness.emit(&[payment("initiated", user, Uuid::now_v7(), 1)]).await;
    let indexer = harness.start().await;
    until(&1, || indexed(&harness)).await;
    block_writes(&harness, true).await;
    for _ in 0..20 {
        harness.emit(&[payment("initiated", user, Uuid::now_v7(), 1)]).await;
    }
    let retries = "consumer_retries_total{reason=\"transient\"}";
    until(&true, || async { indexer.metric(retries).await >= 2.0 }).await;
    indexer.stop().await;
    assert_eq!(indexed(&harness).await, 1);
    let indexer = harness.start().await;
    until(&true, || async { indexer.metric(retries).await >= 1.0 }).await;
    block_writes(&harness, false).await;
    until(&21, || indexed(&harness)).await;
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn an_instance_ends_though_a_bulk_request_hangs_and_another_goes_on_where_it_was() {
    let harness = Harness::new().await;
    harness.emit(&[payment("initiated", Uuid::now_v7(), Uuid::now_v7(), 1)]).await;
    let hanging = Hanging::at(&variable("SEARCH_URL"), format!("/{}-1-write/_bulk", harness.alias), 1).await;
    let indexer = harness.start_with(harness.config_at(hanging.address)).await;
    hanging.hung().await;
    let began = Instant::now();
    assert_eq!(indexer.readiness().await, 503);
    assert!(began.elapsed() < STOP_AT_ONCE, "/ready took {:?}", began.elapsed());
    let began = Instant::now();
    indexer.stop().await;
    assert!(began.elapsed() < STOP_TIMEOUT, "stopping took {:?}", began.elapsed());
    assert_eq!(indexed(&harness).await, 0);
    let indexer = harness.start().await;
    until(&1, || indexed(&harness)).await;
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn an_instance_that_finds_no_index_ends_at_once() {
    let harness = Harness::new().await;
    // Nobody accepts: the kernel does, and no answer comes.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let indexer = harness.start_with(harness.config_at(silent.local_addr().unwrap())).await;
    assert_eq!(indexer.readiness().await, 503);
    let began = Instant::now();
    indexer.stop().await;
    assert!(began.elapsed() < STOP_AT_ONCE, "stopping took {:?}", began.elapsed());
    harness.finish().await;
}
