//! Events that one of several databases does not end in time, though it serves: fewer are applied at once, and one that does not end
//! alone holds up nobody.

use saga::consumer::Limits;

use crate::harness::{Reader, SubscriberState, Topics};

fn slow(slow_max: usize) -> Reader {
    Reader::new(SubscriberState { slow_max: Some(slow_max), ..SubscriberState::default() })
}

/// Otherwise the same events would be too many each time they come.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_much_at_once_is_applied_in_parts() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, slow(3));
    let records: Vec<String> = (0..40)
        .map(|number| format!("{} {number}", if number % 3 == 0 { "quick" } else { "slow" }))
        .collect();
    topics.produce("t", 0, &records);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 40).await;
    member.stop().await;
    assert_eq!(reader.state().applied, records, "in order, each once");
    assert_eq!((topics.committed("t", 0), reader.state().parked.len()), (Some(40), 0));
}

/// It is tried again, and read again with what is behind it of its user.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_does_not_end_alone_is_passed_over() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, slow(0));
    let records = [("there", "slow 1"), ("here", "a"), ("there", "slow 2"), ("there", "b"), ("here", "c")];
    topics.produce_keyed("t", 0, &records);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.contains(&"c".to_owned())).await;
    // It is tried by itself.
    let calls = reader.state().calls;
    reader.until(|state| state.calls > calls + 1).await;
    assert!(
        !reader.state().applied.iter().any(|text| text.starts_with("slow")),
        "{:?}",
        reader.state().applied
    );
    assert_eq!(topics.committed("t", 0).unwrap_or_default(), 0);
    reader.state().slow_max = None;
    reader.until(|state| state.applied.contains(&"slow 2".to_owned())).await;
    topics.produce("t", 0, &["end"]);
    reader.until(|state| state.applied.contains(&"end".to_owned())).await;
    member.stop().await;
    let first = |text: &str| reader.state().applied.iter().position(|applied| applied == text);
    assert!(first("slow 1") < first("slow 2"), "{:?}", reader.state().applied);
    assert_eq!((topics.committed("t", 0), reader.state().parked.len()), (Some(6), 0));
}
