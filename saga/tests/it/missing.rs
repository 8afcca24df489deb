//! Events whose row is not there: they wait, and hold up nothing but what is behind them in their partition.

use std::time::Duration;

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics};

fn needs_rows() -> Reader {
    Reader::new(SubscriberState { needs_rows: true, ..SubscriberState::default() })
}

fn missing_timeout(missing: Duration) -> Limits {
    Limits { missing, ..Limits::default() }
}

/// The event that makes the row comes later, on another topic, published again after its effect. Were the other topic
/// not read on, both would wait for each other until the event is parked.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_for_the_one_that_makes_its_row_on_another_topic() {
    let (topics, reader) = (Topics::new(&[("causes", 1), ("effects", 1)]).await, needs_rows());
    topics.produce("effects", 0, &["a", "b", "a"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.calls >= 3).await;
    assert_eq!(topics.committed("effects", 0), None);
    topics.produce("causes", 0, &["make x", "make b", "make a"]);
    reader.until(|state| state.applied.len() == 6).await;
    // Read on again.
    topics.produce("effects", 0, &["x"]);
    reader.until(|state| state.applied.len() == 7).await;
    member.stop().await;
    assert_eq!(reader.state().applied, ["make x", "make b", "make a", "a", "b", "a", "x"]);
    assert_eq!(reader.state().parked, []);
    assert_eq!((topics.committed("causes", 0), topics.committed("effects", 0)), (Some(3), Some(4)));
}

/// In one batch, the records behind it in its partition wait with it. The others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_row_holds_up_its_own_partition_and_no_other() {
    let topics = Topics::new(&[("t", 2)]).await;
    let reader = needs_rows();
    topics.produce("t", 0, &["make a", "a", "later", "a"]);
    topics.produce("t", 1, &["make b", "b", "b"]);
    let member = topics.member(&reader, Limits::default());
    let on_its_way = |state: &SubscriberState| state.applied.iter().filter(|text| *text == "b").count() == 2;
    reader.until(|state| on_its_way(state) && state.applied.contains(&"a".to_owned())).await;
    topics.produce("t", 1, &["make later"]);
    reader.until(|state| state.applied.len() == 8).await;
    member.stop().await;
    let state = reader.state();
    let place = |text: &str| state.applied.iter().position(|applied| applied == text).unwrap();
    assert!(place("make later") < place("later"));
    assert_eq!(state.applied.last().unwrap(), "a", "behind it, in order: {:?}", state.applied);
    assert_eq!((topics.committed("t", 0), topics.committed("t", 1)), (Some(4), Some(4)));
}

/// Each of them after its own time-out, not one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_is_parked_and_what_is_behind_it_applied() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, needs_rows());
    let mut records = vec!["make a".to_owned()];
    records.extend((0..50).map(|number| format!("nowhere {number}")));
    records.push("a".to_owned());
    topics.produce("t", 0, &records);
    let began = std::time::Instant::now();
    let member = topics.member(&reader, missing_timeout(Duration::from_secs(2)));
    reader.until(|state| state.applied == ["make a", "a"]).await;
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    member.stop().await;
    let state = reader.state();
    assert_eq!(state.parked.len(), 50);
    assert!(state.parked[0].reason.starts_with("missing: row nowhere 0"), "{}", state.parked[0].reason);
    assert_eq!(topics.committed("t", 0), Some(52));
}

/// Nothing behind a waiting record is committed, so a process that dies meanwhile has not lost it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_a_process_ends_is_read_by_the_next() {
    let (topics, reader) = (Topics::new(&[("causes", 1), ("effects", 1)]).await, needs_rows());
    topics.produce("causes", 0, &["make a"]);
    topics.produce("effects", 0, &["a", "b", "a"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.contains(&"a".to_owned()) && state.calls >= 4).await;
    member.stop().await;
    assert_eq!(topics.committed("effects", 0), Some(1));
    topics.produce("causes", 0, &["make b"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 5).await;
    member.stop().await;
    assert_eq!(reader.state().applied, ["make a", "a", "make b", "b", "a"]);
}
