//! Events of users whose database is away, while others are not: they are passed over, and read again once it answers.

use std::collections::BTreeSet;

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics};

fn away(events: &[&'static str]) -> Reader {
    let absent: BTreeSet<&'static str> = events.iter().copied().collect();
    Reader::new(SubscriberState { absent, ..SubscriberState::default() })
}

/// Those behind it in its partition go on, and nothing from it on is committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_over_holds_up_nobody_and_is_read_again() {
    let (topics, reader) = (Topics::new(&[("t", 2)]).await, away(&["x1", "x2"]));
    topics.produce("t", 0, &["a", "x1", "b", "x2", "c"]);
    topics.produce("t", 1, &["d"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 4).await;
    topics.produce("t", 0, &["e"]);
    reader.until(|state| state.applied.contains(&"e".to_owned())).await;
    assert!(topics.committed("t", 0).is_none_or(|offset| offset <= 1), "{:?}", topics.committed("t", 0));

    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x2".to_owned())).await;
    topics.produce("t", 0, &["f"]);
    reader.until(|state| state.applied.contains(&"f".to_owned())).await;
    member.stop().await;
    let state = reader.state();
    // Without what was applied before, and comes again.
    let first = |text: &str| state.applied.iter().position(|applied| applied == text).unwrap();
    assert!(first("x1") < first("x2") && first("x2") < first("f"), "{:?}", state.applied);
    assert_eq!(state.parked, []);
    assert_eq!((topics.committed("t", 0), topics.committed("t", 1)), (Some(7), Some(1)));
}

/// One of the two databases answers again: what the other one has to wait for stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn each_database_comes_back_by_itself() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x", "y"]));
    topics.produce("t", 0, &["x", "a", "y", "b"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 2).await;
    reader.state().absent.remove("x");
    reader.until(|state| state.applied.contains(&"x".to_owned())).await;
    assert!(!reader.state().applied.contains(&"y".to_owned()));
    reader.state().absent.remove("y");
    reader.until(|state| state.applied.contains(&"y".to_owned())).await;
    topics.produce("t", 0, &["c"]);
    reader.until(|state| state.applied.contains(&"c".to_owned())).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(5));
}

/// A process that dies meanwhile has not lost it: the next one reads from there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_when_a_process_ended_is_read_by_the_next() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x"]));
    topics.produce("t", 0, &["a", "x", "b"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied == ["a", "b"]).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(1));
    reader.state().absent.clear();
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 4).await;
    member.stop().await;
    assert_eq!(reader.state().applied, ["a", "b", "x", "b"]);
    assert_eq!(topics.committed("t", 0), Some(3));
}
