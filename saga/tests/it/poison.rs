//! Poison records: each is found, parked alone, and does not hold up the others.

use std::collections::HashMap;

use rdkafka::producer::{BaseRecord, Producer};
use saga::consumer::Limits;
use saga::parked::Parked;

use crate::harness::{Reader, Topics, WAIT_TIMEOUT, numbers};

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_found_among_hundreds_and_parked_alone() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    let mut records = numbers(0..200);
    // The first and the last of a batch are as good a place as any.
    let poisoned = [0, 77, 150, 151, 199];
    for index in poisoned {
        records[index] = "poison".into();
    }
    let mut all: Vec<&[u8]> = records.iter().map(String::as_bytes).collect();
    all[120] = b"\xff\xfe";
    topics.produce("t", 0, &all);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.applied.len() == 194 && state.parked.len() == 6).await;
    member.stop().await;
    let state = reader.state();
    let fine: Vec<&String> = records
        .iter()
        .enumerate()
        .filter(|(i, text)| *i != 120 && *text != "poison")
        .map(|(_, text)| text)
        .collect();
    assert_eq!(state.applied.iter().collect::<Vec<_>>(), fine, "in order, each once");
    let by_id: HashMap<&str, &Parked> = state.parked.iter().map(|p| (p.parked_id.as_str(), p)).collect();
    let reasons = poisoned.map(|index| (index, b"poison".as_slice(), "refused as 23514"));
    for (offset, body, reason) in reasons.into_iter().chain([(120, b"\xff\xfe".as_slice(), "utf-8")]) {
        let parked = by_id[format!("{}/0/{offset}", topics.full_name("t")).as_str()];
        assert_eq!((parked.body.as_slice(), parked.message_key.as_deref()), (body, Some("key")));
        assert!(parked.reason.contains(reason), "{}", parked.reason);
    }
    assert_eq!(topics.committed("t", 0), Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_nothing_but_poison_is_parked_and_the_next_one_applied() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    topics.produce("t", 0, &["poison"; 20]);
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.parked.len() == 20).await;
    topics.produce("t", 0, &["good"]);
    reader.until(|state| state.applied == ["good"]).await;
    member.stop().await;
    assert_eq!((reader.state().parked.len(), topics.committed("t", 0)), (20, Some(21)));
}

/// Otherwise it could not be parked, and would hold up its partition for ever.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_in_a_message_it_can_be_stored() {
    let (topics, reader) = (Topics::new(&[("t", 1)]).await, Reader::default());
    let name = topics.full_name("t");
    let headers = rdkafka::message::OwnedHeaders::new()
        .insert(rdkafka::message::Header { key: "a\u{1}", value: Some(b"b\0\xff".as_slice()) })
        .insert(rdkafka::message::Header { key: "ce_type", value: Some(b"c\0".as_slice()) });
    let record = BaseRecord::to(&name).key("k\0").payload(b"\xff\0".as_slice()).headers(headers);
    topics.producer.send(record).map_err(|(error, _)| error).unwrap();
    tokio::task::block_in_place(|| topics.producer.flush(WAIT_TIMEOUT)).unwrap();
    let member = topics.member(&reader, Limits::default());
    reader.until(|state| state.parked.len() == 1).await;
    member.stop().await;
    let parked = &reader.state().parked[0];
    assert_eq!(parked.body, b"\xff\0");
    assert_eq!(
        (parked.message_key.as_deref(), parked.event_type.as_deref()),
        (Some("k\u{fffd}"), Some("c\u{fffd}"))
    );
    assert_eq!(parked.headers, serde_json::json!({"a\u{1}": "b\u{fffd}\u{fffd}", "ce_type": "c\u{fffd}"}));
}
