//! The consumer loop on a real Kafka: nothing is skipped, poison is found, order is kept.
//!
//! Each test has topics and a group of its own.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod group;
mod missing;
mod poison;
mod world;

use saga::consumer::Limits;

use crate::world::{Diary, Reader, Topics, numbers};

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_applied_once_in_order_over_a_restart() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    let member = topics.member(&reader, Limits::default());
    let told = numbers(0..500);
    topics.tell("t", 0, &told);
    reader.until(|diary| diary.applied.len() == 500).await;
    topics.tell("t", 0, &["ignore"]);
    member.stop().await;
    let member = topics.member(&reader, Limits::default());
    // Offsets were stored: only what is new is told.
    topics.tell("t", 0, &["new"]);
    reader.until(|diary| diary.applied.last().is_some_and(|last| last == "new")).await;
    member.stop().await;
    let applied = &reader.diary().applied;
    assert_eq!((&applied[..500], applied.len()), (told.as_slice(), 501));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_waited_for_and_nothing_is_skipped() {
    let topics = Topics::new(&[("t", 1)]).await;
    let reader = Reader::new(Diary { outages: 4, ..Diary::default() });
    let member = topics.member(&reader, Limits::default());
    let told = numbers(0..100);
    topics.tell("t", 0, &told[..50]);
    // More comes while the loop waits with its partitions paused.
    reader.until(|diary| diary.calls >= 2).await;
    topics.tell("t", 0, &told[50..]);
    reader.until(|diary| diary.applied.len() == 100).await;
    member.stop().await;
    let diary = reader.diary();
    assert_eq!(diary.applied, told);
    assert!(diary.calls >= 5, "four failures and a success: {}", diary.calls);
    assert_eq!(diary.parked, []);
}

/// Deadlock, serialization failure, lock time-out, shutdown, out of connections: the same batch may succeed later.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_succeed_later_is_tried_again() {
    let topics = Topics::new(&[("t", 1)]).await;
    let refusals = vec!["40P01", "40001", "55P03", "57P01", "53300"];
    let reader = Reader::new(Diary { refusals, ..Diary::default() });
    let told = numbers(0..10);
    topics.tell("t", 0, &told);
    let member = topics.member(&reader, Limits::default());
    reader.until(|diary| diary.applied.len() == 10).await;
    member.stop().await;
    let diary = reader.diary();
    assert_eq!((&diary.applied, diary.parked.as_slice()), (&told, [].as_slice()));
    assert!(diary.refusals.is_empty() && diary.calls >= 6, "{} calls", diary.calls);
}
