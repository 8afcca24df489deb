//! An index that is made anew: on command, or because it is gone.

use std::sync::atomic::{AtomicBool, Ordering};

use saga::CancellationToken;
use saga::search_index::{Body, Method};
use search_indexer::rebuild::rebuild;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Event, Harness, payment, service, until};

/// Payments that are there before.
const BEFORE: usize = 1_000;

fn payments(count: usize) -> Vec<Event> {
    let user = Uuid::now_v7();
    (0..count).map(|_| payment("initiated", user, Uuid::now_v7(), 1)).collect()
}

async fn indexed(harness: &Harness) -> u64 {
    // There may be no index yet.
    let _ = harness.index.send(Method::POST, &format!("/{}/_refresh", harness.alias), Body::None).await;
    harness.count(json!({"term": {"kind": "payment"}})).await
}

#[tokio::test]
async fn a_rebuild_under_load_leaves_no_moment_without_what_was_there() {
    let harness = Harness::new().await;
    harness.emit(&payments(BEFORE)).await;
    harness.emit(&[service("gas", "Gas", 1)]).await;
    let (first, second) = (harness.start().await, harness.start().await);
    until(&(BEFORE as u64), || indexed(&harness)).await;
    let old = harness.live().await;

    let (rebuilt, mut emitted) = (AtomicBool::new(false), BEFORE);
    let rebuilding = async {
        rebuild(&harness.config(), &CancellationToken::new()).await.unwrap();
        rebuilt.store(true, Ordering::Relaxed);
    };
    let loading = async {
        while !rebuilt.load(Ordering::Relaxed) {
            harness.emit(&payments(5)).await;
            emitted += 5;
        }
        // Beyond the switch too.
        for _ in 0..20 {
            harness.emit(&payments(5)).await;
            emitted += 5;
        }
    };
    let searching = async {
        while !rebuilt.load(Ordering::Relaxed) {
            let found = harness.count(json!({"term": {"kind": "payment"}})).await;
            assert!(found >= BEFORE as u64, "a search found {found} of {BEFORE}");
        }
    };
    tokio::join!(rebuilding, loading, searching);

    let new = harness.live().await;
    assert_eq!((old.ends_with("-1"), new.ends_with("-2")), (true, true), "{old} {new}");
    until(&(emitted as u64), || indexed(&harness)).await;
    assert_eq!(harness.document("service/gas", "services").await["version"], 1);
    let gone = harness.index.send(Method::GET, &format!("/{old}"), Body::None).await;
    assert!(gone.is_err_and(|error| error.is_not_found()), "the old index is deleted");
    first.stop().await;
    // One is enough, and has the partitions of the other.
    harness.emit(&payments(10)).await;
    until(&(emitted as u64 + 10), || indexed(&harness)).await;
    second.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn a_rebuild_that_was_interrupted_leaves_searches_as_they_were_and_goes_on() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    until(&50, || async { if harness.live().await.is_empty() { 0 } else { indexed(&harness).await } }).await;
    let stop = CancellationToken::new();
    stop.cancel();
    rebuild(&harness.config(), &stop).await.unwrap_err();
    assert!(harness.live().await.ends_with("-1"));
    assert_eq!(indexed(&harness).await, 50);
    rebuild(&harness.config(), &CancellationToken::new()).await.unwrap();
    assert!(harness.live().await.ends_with("-2"));
    assert_eq!(indexed(&harness).await, 50);
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn an_index_that_is_gone_is_made_anew_from_the_first_event() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    let all = || async { if harness.live().await.is_empty() { 0 } else { indexed(&harness).await } };
    until(&50, all).await;
    harness.index.send(Method::DELETE, &format!("/{}", harness.live().await), Body::None).await.unwrap();
    harness.emit(&payments(5)).await;
    until(&55, all).await;
    indexer.stop().await;
    harness.finish().await;
}
