//! Events of users who are being moved to another shard: they wait, and hold up nothing but what is behind them in their partition, and
//! that not for long.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics, WAIT_TIMEOUT};

/// However long it takes, none is parked: the user is somewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_waits_for_its_user_and_is_never_parked() {
    let topics = Topics::new(&[("t", 2)]).await;
    let reader = Reader::new(SubscriberState { moving: BTreeSet::from(["a"]), ..SubscriberState::default() });
    topics.produce("t", 0, &["first", "a", "behind"]);
    topics.produce("t", 1, &["b", "c"]);
    let missing = Duration::from_millis(100);
    let limits = Limits { missing, moving: WAIT_TIMEOUT, ..Limits::default() };
    let (began, member) = (Instant::now(), topics.member(&reader, limits));
    reader.until(|state| state.applied.len() == 3).await;
    let calls = reader.state().calls;
    // It is tried again, for longer than an event may wait for its row.
    reader.until(|state| state.calls > calls + 2 && began.elapsed() > 3 * limits.missing).await;
    topics.produce("t", 1, &["d"]);
    reader.until(|state| state.applied.contains(&"d".to_owned())).await;
    assert!(!reader.state().applied.contains(&"behind".to_owned()));

    reader.state().moving.clear();
    reader.until(|state| state.applied.len() == 6).await;
    topics.produce("t", 0, &["on"]);
    reader.until(|state| state.applied.len() == 7).await;
    member.stop().await;
    let state = reader.state();
    let applied: Vec<&str> =
        state.applied.iter().map(String::as_str).filter(|text| text.len() != 1 || *text == "a").collect();
    assert_eq!(applied, ["first", "a", "behind", "on"], "in order");
    assert_eq!(state.parked, []);
    assert_eq!((topics.committed("t", 0), topics.committed("t", 1)), (Some(4), Some(3)));
}

/// Nothing from it on is committed, so a process that dies meanwhile has not lost it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_a_process_ends_is_read_by_the_next() {
    let topics = Topics::new(&[("t", 1)]).await;
    let reader = Reader::new(SubscriberState { moving: BTreeSet::from(["a"]), ..SubscriberState::default() });
    topics.produce("t", 0, &["first", "a", "behind"]);
    let limits = Limits { moving: WAIT_TIMEOUT, ..Limits::default() };
    let member = topics.member(&reader, limits);
    reader.until(|state| state.applied == ["first"] && state.calls > 3).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(1));
    reader.state().moving.clear();
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 3).await;
    member.stop().await;
    assert_eq!(reader.state().applied, ["first", "a", "behind"]);
}

/// A move that stands still, or was given up, holds up the other users of the partition for a while only.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_user_nobody_owns_for_long_is_passed_over() {
    let topics = Topics::new(&[("t", 1)]).await;
    let reader =
        Reader::new(SubscriberState { moving: BTreeSet::from(["a1"]), ..SubscriberState::default() });
    topics.produce_keyed("t", 0, &[("u", "first"), ("moved", "a1"), ("moved", "a2"), ("u", "behind")]);
    let limits = Limits { moving: Duration::from_millis(100), ..Limits::default() };
    let member = topics.member(&reader, limits);
    reader.until(|state| state.applied == ["first", "behind"]).await;
    // It is tried again, and stays where it is.
    let calls = reader.state().calls;
    reader.until(|state| state.calls > calls + 2).await;
    topics.produce_keyed("t", 0, &[("u", "on")]);
    reader.until(|state| state.applied == ["first", "behind", "on"]).await;
    assert!(topics.committed("t", 0).is_none_or(|offset| offset <= 1), "{:?}", topics.committed("t", 0));

    reader.state().moving.clear();
    reader.until(|state| state.applied.contains(&"a2".to_owned())).await;
    topics.produce_keyed("t", 0, &[("u", "end")]);
    reader.until(|state| state.applied.contains(&"end".to_owned())).await;
    member.stop().await;
    // The first one was tried by itself, and what had been applied is not applied again.
    assert_eq!(reader.state().applied, ["first", "behind", "on", "a1", "a1", "a2", "end"]);
    assert_eq!((topics.committed("t", 0), reader.state().parked.len()), (Some(6), 0));
}
