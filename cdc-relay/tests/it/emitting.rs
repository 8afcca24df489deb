//! Tests the events of committed rows, byte for byte, and that nothing else is emitted.

use crate::harness::Harness;
use crate::kafka::{self, chain, distinct, first_emissions};

#[tokio::test]
async fn a_committed_row_reaches_kafka_byte_for_byte() {
    let mut harness = Harness::new("bytes").await;
    let relay = harness.streaming().await;
    harness
        .sql
        .batch_execute(
            r#"insert into items values ('o"1', 7, 1, 'made', E'caf\u00e9 "x"\n', 9007199254740991,
               '2026-11-23 01:02:03.4+02', '\x00ff10', '{"a": [1, null]}', true, 1.50)"#,
        )
        .await
        .expect("insert");
    let events = distinct(&harness.topic(), 1).await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(event.key, "o\"1");
    assert_eq!(
        event.value,
        concat!(
            r#"{"owner":"o\"1","id":7,"version":1,"kind":"made","note":"café \"x\"\n","amount":9007199254740991,"#,
            r#""at":"2026-11-22T23:02:03.400000Z","raw":"AP8Q","doc":{"a": [1, null]},"ok":true,"price":1.50}"#
        )
    );
    let names: Vec<&str> = event.headers.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_subject",
        "content-type",
        "note",
        "pg_chain",
        "pg_position",
    ];
    assert_eq!(names, expected);
    assert_eq!(event.header("ce_specversion"), "1.0");
    assert_eq!(event.header("ce_id"), "it/items/o\"1/7/1");
    assert_eq!(event.header("ce_source"), "/it");
    assert_eq!(event.header("ce_type"), "item.made.v1");
    assert_eq!(event.header("ce_subject"), "7");
    assert_eq!(event.header("content-type"), "application/json");
    assert_eq!(event.header("note"), "café \"x\"\n");
    let time: jiff::Timestamp = event.header("ce_time").parse().expect("RFC 3339");
    assert!(jiff::Timestamp::now().duration_since(time).as_secs() < 60);
    assert!(event.header("ce_time").len() == 27 && event.header("ce_time").ends_with('Z'));
    assert!(event.header("pg_position").ends_with(";0;0/0"), "{}", event.header("pg_position"));
    drop(relay);
}

#[tokio::test]
async fn a_transaction_that_was_rolled_back_is_never_emitted() {
    let mut harness = Harness::new("rollback").await;
    let relay = harness.streaming().await;
    harness
        .sql
        .batch_execute(
            "begin; insert into items (owner, id, version) values ('a', 1, 1); rollback;
             begin; insert into items (owner, id, version) values ('a', 2, 1);
             savepoint s; insert into items (owner, id, version) values ('a', 3, 1); rollback to s;
             insert into items (owner, id, version) values ('a', 4, 1); commit;",
        )
        .await
        .expect("transactions");
    harness.confirmed().await;
    let ids: Vec<String> =
        kafka::read(&harness.topic()).iter().map(|event| event.header("ce_id").to_owned()).collect();
    assert_eq!(ids, ["it/items/a/2/1", "it/items/a/4/1"]);
    drop(relay);
}

#[tokio::test]
async fn rows_of_one_transaction_keep_their_order_and_their_chain() {
    let mut harness = Harness::new("order").await;
    let relay = harness.streaming().await;
    for round in 0..5 {
        let insert = format!(
            "insert into items (owner, id, version) select 'o' || (n % 7), {round} * 1000 + n, 1
             from generate_series(1, 200) n"
        );
        harness.sql.batch_execute(&insert).await.expect("rows");
    }
    let events = distinct(&harness.topic(), 1000).await;
    assert_eq!(chain(&events), 5);
    for (owner, events) in first_emissions(&events) {
        let ids: Vec<i64> = events.iter().map(|event| event.json()["id"].as_i64().expect("id")).collect();
        assert!(ids.is_sorted(), "{owner}: {ids:?}");
    }
    // Ordinals count without gaps within a transaction.
    let mut ordinals: Vec<u32> = events
        .iter()
        .filter(|event| event.header("pg_position").ends_with(";0/0"))
        .filter_map(|event| event.header("pg_position").split(';').nth(1)?.parse().ok())
        .collect();
    ordinals.sort_unstable();
    assert!(ordinals.iter().copied().eq(0..200), "{ordinals:?}");
    drop(relay);
}

#[tokio::test]
async fn an_idle_database_does_not_hold_back_the_wal() {
    let mut harness = Harness::new("idle").await;
    harness.sql.batch_execute("create table noise (n int)").await.expect("table");
    let relay = harness.streaming().await;
    for _ in 0..5 {
        harness.sql.batch_execute("insert into noise select generate_series(1, 1000)").await.expect("noise");
    }
    harness.confirmed().await;
    assert!(kafka::read(&harness.topic()).is_empty());
    drop(relay);
}

#[tokio::test]
async fn a_change_of_columns_while_streaming_loses_nothing() {
    let mut harness = Harness::new("columns").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.sql
        .batch_execute(
            "begin; insert into items (owner, id, version) values ('a', 2, 1);
             alter table items add column extra text; insert into items (owner, id, version, extra) values ('a', 3, 1, 'x');
             alter table items rename column price to cost; insert into items (owner, id, version) values ('a', 4, 1);
             commit;",
        )
        .await
        .expect("transaction");
    let events = distinct(&harness.topic(), 4).await;
    let bodies: Vec<serde_json::Value> = events.iter().map(kafka::Event::json).collect();
    assert!(bodies[1].get("extra").is_none());
    assert_eq!(bodies[2]["extra"], "x");
    assert!(bodies[3].get("cost").is_some() && bodies[3].get("price").is_none());
    drop(relay);
}

#[tokio::test]
async fn a_stop_confirms_all_that_was_emitted() {
    let mut harness = Harness::new("stop").await;
    let relay = harness.streaming().await;
    for id in 0..200 {
        harness.row("a", id, 1, "made").await;
    }
    let (end, _) = harness.positions().await;
    distinct(&harness.topic(), 200).await;
    assert_eq!(relay.stop().await, Some(0));
    assert!(
        harness.positions().await.1 >= Some(end),
        "the slot is not confirmed up to the acknowledged position"
    );
    // Therefore the next start repeats nothing.
    let relay = harness.streaming().await;
    harness.row("a", 1000, 1, "made").await;
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    assert_eq!(events.len(), 201);
    assert_eq!(chain(&events), 201);
    drop(relay);
}
