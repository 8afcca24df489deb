//! The consumer loop on a real Kafka: nothing is skipped, poison is found, order is kept. A password that changes (`login`). A database that
//! is closed (`closed`). And tokens of an issuer (`identity`), which need no server.
//!
//! Each test has topics and a group of its own.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod absent;
mod closed;
mod group;
mod harness;
mod identity;
mod issuer;
mod issuer_keys;
mod lag;
mod late;
mod login;
mod missing;
mod moving;
mod poison;

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics, numbers};

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_applied_once_in_order_over_a_restart() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    let member = topics.member(&reader, Limits::default());
    let records = numbers(0..500);
    topics.produce("t", 0, &records);
    reader.until(|state| state.applied.len() == 500).await;
    topics.produce("t", 0, &["ignore"]);
    member.stop().await;
    let member = topics.member(&reader, Limits::default());
    // Offsets were stored: only new records are read.
    topics.produce("t", 0, &["new"]);
    reader.until(|state| state.applied.last().is_some_and(|last| last == "new")).await;
    member.stop().await;
    let applied = &reader.state().applied;
    assert_eq!((&applied[..500], applied.len()), (records.as_slice(), 501));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_for_and_nothing_is_skipped() {
    let topics = Topics::new(&[("t", 1)]).await;
    let reader = Reader::new(SubscriberState { outages: 4, ..SubscriberState::default() });
    let member = topics.member(&reader, Limits::default());
    let records = numbers(0..100);
    topics.produce("t", 0, &records[..50]);
    // More comes while the loop waits with its partitions paused.
    reader.until(|state| state.calls >= 2).await;
    topics.produce("t", 0, &records[50..]);
    reader.until(|state| state.applied.len() == 100).await;
    member.stop().await;
    let state = reader.state();
    assert_eq!(state.applied, records);
    assert!(state.calls >= 5, "four failures and a success: {}", state.calls);
    assert_eq!(state.parked, []);
}

/// Deadlock, serialization failure, lock time-out, shutdown, out of connections: the same batch may succeed later.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_succeed_later_is_tried_again() {
    let topics = Topics::new(&[("t", 1)]).await;
    let refusals = vec!["40P01", "40001", "55P03", "57P01", "53300"];
    let reader = Reader::new(SubscriberState { refusals, ..SubscriberState::default() });
    let records = numbers(0..10);
    topics.produce("t", 0, &records);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 10).await;
    member.stop().await;
    let state = reader.state();
    assert_eq!((&state.applied, state.parked.as_slice()), (&records, [].as_slice()));
    assert!(state.refusals.is_empty() && state.calls >= 6, "{} calls", state.calls);
}
