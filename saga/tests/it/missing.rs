//! Events whose row is not there: they wait, and hold up nothing but what is behind them in their partition.

use std::time::Duration;

use saga::consumer::Limits;

use crate::world::{Diary, Reader, Topics};

fn needs_rows() -> Reader {
    Reader::new(Diary { needs_rows: true, ..Diary::default() })
}

fn patience(missing: Duration) -> Limits {
    Limits { missing, ..Limits::default() }
}

/// What makes the row comes later, on another topic: told again after the event that it led to. Were the other topic
/// not read on, both would wait for each other until the event is parked.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_for_the_one_that_makes_its_row_on_another_topic() {
    let (topics, reader) = (Topics::new(&[("causes", 1), ("effects", 1)]).await, needs_rows());
    topics.tell("effects", 0, &["a", "b", "a"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|diary| diary.calls >= 3).await;
    assert_eq!(topics.committed("effects", 0), None);
    topics.tell("causes", 0, &["make x", "make b", "make a"]);
    reader.until(|diary| diary.applied.len() == 6).await;
    // Read on again.
    topics.tell("effects", 0, &["x"]);
    reader.until(|diary| diary.applied.len() == 7).await;
    member.stop().await;
    assert_eq!(reader.diary().applied, ["make x", "make b", "make a", "a", "b", "a", "x"]);
    assert_eq!(reader.diary().parked, []);
    assert_eq!((topics.committed("causes", 0), topics.committed("effects", 0)), (Some(3), Some(4)));
}

/// Of one batch: what is behind it in its partition waits with it, the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_row_holds_up_its_own_partition_and_no_other() {
    let topics = Topics::new(&[("t", 2)]).await;
    let reader = needs_rows();
    topics.tell("t", 0, &["make a", "a", "later", "a"]);
    topics.tell("t", 1, &["make b", "b", "b"]);
    let member = topics.member(&reader, Limits::default());
    let on_its_way = |diary: &Diary| diary.applied.iter().filter(|text| *text == "b").count() == 2;
    reader.until(|diary| on_its_way(diary) && diary.applied.contains(&"a".to_owned())).await;
    topics.tell("t", 1, &["make later"]);
    reader.until(|diary| diary.applied.len() == 8).await;
    member.stop().await;
    let diary = reader.diary();
    let place = |text: &str| diary.applied.iter().position(|applied| applied == text).unwrap();
    assert!(place("make later") < place("later"));
    assert_eq!(diary.applied.last().unwrap(), "a", "behind it, in order: {:?}", diary.applied);
    assert_eq!((topics.committed("t", 0), topics.committed("t", 1)), (Some(4), Some(4)));
}

/// Each of them after its own patience, not one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_is_parked_and_what_is_behind_it_applied() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, needs_rows());
    let mut told = vec!["make a".to_owned()];
    told.extend((0..50).map(|number| format!("nowhere {number}")));
    told.push("a".to_owned());
    topics.tell("t", 0, &told);
    let began = std::time::Instant::now();
    let member = topics.member(&reader, patience(Duration::from_secs(2)));
    reader.until(|diary| diary.applied == ["make a", "a"]).await;
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    member.stop().await;
    let diary = reader.diary();
    assert_eq!(diary.parked.len(), 50);
    assert!(diary.parked[0].reason.starts_with("missing: row nowhere 0"), "{}", diary.parked[0].reason);
    assert_eq!(topics.committed("t", 0), Some(52));
}

/// Nothing behind a waiting record is committed, so a process that dies meanwhile has not lost it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_a_process_ends_is_told_to_the_next() {
    let (topics, reader) = (Topics::new(&[("causes", 1), ("effects", 1)]).await, needs_rows());
    topics.tell("causes", 0, &["make a"]);
    topics.tell("effects", 0, &["a", "b", "a"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|diary| diary.applied.contains(&"a".to_owned()) && diary.calls >= 4).await;
    member.stop().await;
    assert_eq!(topics.committed("effects", 0), Some(1));
    topics.tell("causes", 0, &["make b"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|diary| diary.applied.len() == 5).await;
    member.stop().await;
    assert_eq!(reader.diary().applied, ["make a", "a", "make b", "b", "a"]);
}
