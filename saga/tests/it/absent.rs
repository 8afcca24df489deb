//! Events of users whose database is away, while others are not: they are passed over, and read again once it answers.

use std::collections::BTreeSet;

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics, WAIT_TIMEOUT};

fn away(events: &[&'static str]) -> Reader {
    let absent: BTreeSet<&'static str> = events.iter().copied().collect();
    Reader::new(SubscriberState { absent, ..SubscriberState::default() })
}

/// Those behind it in its partition go on, and nothing from it on is committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_over_holds_up_nobody_and_is_read_again() {
    let (topics, reader) = (Topics::new(&[("t", 2)]).await, away(&["x1", "x2"]));
    let records = [("here", "a"), ("there", "x1"), ("here", "b"), ("there", "x2"), ("here", "c")];
    topics.produce_keyed("t", 0, &records);
    topics.produce("t", 1, &["d"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 4).await;
    topics.produce_keyed("t", 0, &[("here", "e")]);
    reader.until(|state| state.applied.contains(&"e".to_owned())).await;
    assert!(topics.committed("t", 0).is_none_or(|offset| offset <= 1), "{:?}", topics.committed("t", 0));

    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x2".to_owned())).await;
    topics.produce_keyed("t", 0, &[("here", "f")]);
    reader.until(|state| state.applied.contains(&"f".to_owned())).await;
    member.stop().await;
    let state = reader.state();
    let first = |text: &str| state.applied.iter().position(|applied| applied == text).unwrap();
    assert!(first("x1") < first("x2") && first("x2") < first("f"), "{:?}", state.applied);
    let times = |text: &str| state.applied.iter().filter(|applied| *applied == text).count();
    assert_eq!(["a", "b", "c", "d", "e", "x2"].map(times), [1; 6], "what was applied is not applied again");
    assert_eq!(state.parked, []);
    assert_eq!((topics.committed("t", 0), topics.committed("t", 1)), (Some(7), Some(1)));
}

/// One of the two databases answers again: what the other one has to wait for stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn each_database_comes_back_by_itself() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x", "y"]));
    topics.produce_keyed("t", 0, &[("there", "x"), ("here", "a"), ("elsewhere", "y"), ("here", "b")]);
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

/// The one that has the first event stays away, and the events of the other one do not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_back_first_does_not_wait_for_the_other() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x", "y1"]));
    let records = [("there", "x"), ("here", "a"), ("elsewhere", "y1"), ("elsewhere", "y2"), ("here", "b")];
    topics.produce_keyed("t", 0, &records);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied == ["a", "b"]).await;
    reader.state().absent.remove("y1");
    reader.until(|state| state.applied.contains(&"y2".to_owned())).await;
    topics.produce_keyed("t", 0, &[("elsewhere", "y3"), ("here", "c")]);
    reader.until(|state| state.applied.contains(&"c".to_owned())).await;
    assert_eq!(reader.state().applied, ["a", "b", "y1", "y1", "y2", "y3", "c"]);
    assert_eq!(topics.committed("t", 0).unwrap_or_default(), 0);

    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x".to_owned())).await;
    topics.produce("t", 0, &["end"]);
    reader.until(|state| state.applied.contains(&"end".to_owned())).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(8));
}

/// The database answers again before the first event was tried again: a later one of the user does not overtake it.
#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_user_stay_in_order() {
    // Only the first is refused.
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x1"]));
    topics.produce_keyed("t", 0, &[("there", "x1"), ("there", "x2"), ("here", "a")]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.contains(&"a".to_owned())).await;
    topics.produce_keyed("t", 0, &[("there", "x3"), ("here", "b")]);
    reader.until(|state| state.applied.contains(&"b".to_owned())).await;
    assert!(!reader.state().applied.iter().any(|text| text.starts_with('x')), "{:?}", reader.state().applied);
    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x3".to_owned())).await;
    member.stop().await;
    let state = reader.state();
    let of_the_user: Vec<&String> = state.applied.iter().filter(|text| text.starts_with('x')).collect();
    // The first one was tried by itself.
    assert_eq!(of_the_user, ["x1", "x1", "x2", "x3"]);
}

/// A record before it in the same batch, perhaps of another user in the same slot, is not behind it: nobody would read it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_before_it_in_its_slot_is_applied() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x1"]));
    topics.produce_keyed("t", 0, &[("slot", "a"), ("slot", "x1"), ("slot", "x2"), ("other", "b")]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied == ["a", "b"]).await;
    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x2".to_owned())).await;
    member.stop().await;
    assert!(reader.state().applied.starts_with(&["a".to_owned()]), "{:?}", reader.state().applied);
}

/// What waits and is before it is not read again with it, so it goes on waiting.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_before_it_is_not_dropped_when_it_is_read_again() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x"]));
    reader.state().moving.insert("waits");
    topics.produce_keyed("t", 0, &[("moved", "waits"), ("there", "x"), ("here", "b")]);
    let member = topics.member(&reader, Limits { moving: WAIT_TIMEOUT, ..Limits::default() });
    // Each of them was tried.
    reader.until(|state| state.calls > 4).await;
    assert_eq!(reader.state().applied, [] as [&str; 0]);
    reader.state().absent.clear();
    reader.until(|state| state.applied.contains(&"x".to_owned())).await;
    // It was read again, and tried behind what waits.
    let calls = reader.state().calls;
    reader.until(|state| state.calls > calls + 1).await;
    reader.state().moving.clear();
    reader.until(|state| ["waits", "b"].iter().all(|text| state.applied.contains(&(*text).to_owned()))).await;
    topics.produce("t", 0, &["c"]);
    reader.until(|state| state.applied.contains(&"c".to_owned())).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(4));
}

/// A part that would come again as it is comes again after a pause, and the process can end in between.
#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_not_said_what_has_to_wait_the_loop_pauses_and_can_end() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    reader.state().names_nothing = true;
    topics.produce("t", 0, &["a", "b"]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.calls > 2).await;
    reader.state().names_nothing = false;
    reader.until(|state| state.applied == ["a", "b"]).await;
    reader.state().names_nothing = true;
    topics.produce("t", 0, &["c"]);
    let calls = reader.state().calls;
    reader.until(|state| state.calls > calls).await;
    tokio::time::timeout(WAIT_TIMEOUT, member.stop()).await.unwrap();
    assert_eq!(topics.committed("t", 0), Some(2));
}

/// A process that dies meanwhile has not lost it: the next one reads from there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_when_a_process_ended_is_read_by_the_next() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, away(&["x"]));
    topics.produce_keyed("t", 0, &[("here", "a"), ("there", "x"), ("here", "b")]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied == ["a", "b"]).await;
    member.stop().await;
    assert_eq!(topics.committed("t", 0), Some(1));
    reader.state().absent.clear();
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 4).await;
    member.stop().await;
    // The first one of the partition is not tried by itself: nothing was passed over by this process.
    assert_eq!(reader.state().applied, ["a", "b", "x", "b"]);
    assert_eq!(topics.committed("t", 0), Some(3));
}
