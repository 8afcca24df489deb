//! Tests rows that cannot be emitted: each becomes a dead letter with its reason, and its key is halted.

use crate::harness::{Harness, eventually};
use crate::kafka::{self, distinct};

async fn dead_letters(harness: &Harness, count: usize) -> Vec<serde_json::Value> {
    let topic = harness.dead_letter_topic();
    eventually(&format!("{count} dead letters"), || async {
        let dead_letters = kafka::read(&topic);
        (dead_letters.len() >= count).then(|| dead_letters.iter().map(kafka::Event::json).collect())
    })
    .await
}

#[tokio::test]
async fn a_row_too_large_becomes_a_dead_letter_and_its_key_follows_in_order() {
    let mut harness = Harness::new("dead").await;
    harness.routes(&harness.default_routes().replace("[relay]", "[relay]\nmax_record_bytes = 5000"));
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness
        .sql
        .batch_execute("insert into items (owner, id, version, note) values ('a', 2, 1, repeat('x', 9000))")
        .await
        .expect("a large row");
    harness.row("a", 3, 1, "made").await;
    harness.row("b", 4, 1, "made").await;
    let emitted = distinct(&harness.topic(), 2).await;
    let mut ids: Vec<&str> = emitted.iter().map(|event| event.header("ce_id")).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["it/items/a/1/1", "it/items/b/4/1"]);
    let dead = dead_letters(&harness, 2).await;
    assert!(
        dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("5000 are allowed")),
        "{}",
        dead[0]
    );
    assert_eq!(dead[0]["row"]["id"], "2");
    assert_eq!(dead[0]["key"], "a");
    assert_eq!(dead[0]["table"], "public.items");
    assert!(dead[0]["position"].as_str().is_some_and(|position| position.contains('/')));
    assert_eq!(dead[1]["row"]["id"], "3");
    assert!(dead[1]["reason"].as_str().is_some_and(|reason| reason.contains("follows")), "{}", dead[1]);
    assert_eq!(relay.metric("cdc_relay_dead_letters_total"), 2.0);
    harness.confirmed().await;
    // The dead letters are part of the chain.
    let mut all = kafka::read(&harness.topic());
    all.extend(kafka::read(&harness.dead_letter_topic()));
    assert_eq!(kafka::chain(&all), 4);

    // A restarted relay knows the halted key from the topic alone.
    relay.kill();
    let relay = harness.streaming().await;
    harness.row("a", 5, 1, "made").await;
    harness.row("b", 6, 1, "made").await;
    distinct(&harness.topic(), 3).await;
    let dead = dead_letters(&harness, 3).await;
    assert_eq!(dead.last().expect("a dead letter")["row"]["id"], "5");
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);
    drop(relay);
}

#[tokio::test]
async fn a_routed_column_that_goes_while_streaming_loses_no_row() {
    let mut harness = Harness::new("gone").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    harness.sql.batch_execute("alter table items rename column note to remark").await.expect("rename");
    harness.row("b", 2, 1, "made").await;
    let dead = dead_letters(&harness, 1).await;
    assert!(dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("note")), "{}", dead[0]);
    harness.sql.batch_execute("alter table items rename column remark to note").await.expect("rename");
    // Other keys go on; no later row of the halted key overtakes its dead letter.
    harness.row("c", 3, 1, "made").await;
    harness.row("b", 4, 1, "made").await;
    let emitted = distinct(&harness.topic(), 2).await;
    assert!(emitted.iter().all(|event| event.key != "b"));
    let dead = dead_letters(&harness, 2).await;
    assert_eq!(dead[1]["row"]["id"], "4");
    harness.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn an_unchanged_large_value_is_never_emitted_as_null() {
    let mut harness = Harness::new("toast").await;
    let relay = harness.streaming().await;
    let large = "insert into items (owner, id, version, note)
                 select 'a', 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
    harness.sql.batch_execute(large).await.expect("a large row");
    harness.sql.batch_execute("update items set version = 2").await.expect("update");
    let dead = dead_letters(&harness, 1).await;
    assert!(
        dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("replica identity full")),
        "{}",
        dead[0]
    );
    assert_eq!(distinct(&harness.topic(), 1).await.len(), 1);
    harness.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn with_replica_identity_full_an_unchanged_large_value_is_emitted() {
    let mut harness = Harness::new("full").await;
    harness.sql.batch_execute("alter table items replica identity full").await.expect("identity");
    let relay = harness.streaming().await;
    let large = "insert into items (owner, id, version, note)
                 select 'a', 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
    harness.sql.batch_execute(large).await.expect("a large row");
    harness.sql.batch_execute("update items set version = 2").await.expect("update");
    let emitted = distinct(&harness.topic(), 2).await;
    assert_eq!(emitted[0].json()["note"], emitted[1].json()["note"]);
    drop(relay);
}
