//! Rows that cannot be told: set aside with their reason, and their key with them.

use crate::kafka::{self, distinct};
use crate::rig::{Rig, eventually};

async fn letters(rig: &Rig, count: usize) -> Vec<serde_json::Value> {
    let topic = rig.dead_letters();
    eventually(&format!("{count} dead letters"), || async {
        let letters = kafka::read(&topic);
        (letters.len() >= count).then(|| letters.iter().map(kafka::Event::json).collect())
    })
    .await
}

#[tokio::test]
async fn a_row_too_large_is_set_aside_and_its_key_follows_in_order() {
    let mut rig = Rig::new("dead").await;
    rig.routes(&rig.default_routes().replace("[relay]", "[relay]\nmax_record_bytes = 5000"));
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.sql
        .batch_execute("insert into items (owner, id, version, note) values ('a', 2, 1, repeat('x', 9000))")
        .await
        .expect("a large row");
    rig.row("a", 3, 1, "made").await;
    rig.row("b", 4, 1, "made").await;
    let told = distinct(&rig.topic(), 2).await;
    let mut ids: Vec<&str> = told.iter().map(|event| event.header("ce_id")).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["it/items/a/1/1", "it/items/b/4/1"]);
    let dead = letters(&rig, 2).await;
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
    rig.confirmed().await;
    // The dead letters are part of the chain.
    let mut all = kafka::read(&rig.topic());
    all.extend(kafka::read(&rig.dead_letters()));
    assert_eq!(kafka::chain(&all), 4);

    // A restart remembers the key, from the topic alone.
    relay.kill();
    let relay = rig.streaming().await;
    rig.row("a", 5, 1, "made").await;
    rig.row("b", 6, 1, "made").await;
    distinct(&rig.topic(), 3).await;
    let dead = letters(&rig, 3).await;
    assert_eq!(dead.last().expect("a letter")["row"]["id"], "5");
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);
    drop(relay);
}

#[tokio::test]
async fn a_routed_column_that_goes_while_streaming_loses_no_row() {
    let mut rig = Rig::new("gone").await;
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    distinct(&rig.topic(), 1).await;
    rig.sql.batch_execute("alter table items rename column note to remark").await.expect("rename");
    rig.row("b", 2, 1, "made").await;
    let dead = letters(&rig, 1).await;
    assert!(dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("note")), "{}", dead[0]);
    rig.sql.batch_execute("alter table items rename column remark to note").await.expect("rename");
    // Other keys go on; the key whose row was set aside does not overtake it.
    rig.row("c", 3, 1, "made").await;
    rig.row("b", 4, 1, "made").await;
    let told = distinct(&rig.topic(), 2).await;
    assert!(told.iter().all(|event| event.key != "b"));
    let dead = letters(&rig, 2).await;
    assert_eq!(dead[1]["row"]["id"], "4");
    rig.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn an_unchanged_large_value_is_never_told_as_null() {
    let mut rig = Rig::new("toast").await;
    let relay = rig.streaming().await;
    let large = "insert into items (owner, id, version, note)
                 select 'a', 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
    rig.sql.batch_execute(large).await.expect("a large row");
    rig.sql.batch_execute("update items set version = 2").await.expect("update");
    let dead = letters(&rig, 1).await;
    assert!(
        dead[0]["reason"].as_str().is_some_and(|reason| reason.contains("replica identity full")),
        "{}",
        dead[0]
    );
    assert_eq!(distinct(&rig.topic(), 1).await.len(), 1);
    rig.confirmed().await;
    drop(relay);
}

#[tokio::test]
async fn with_replica_identity_full_an_unchanged_large_value_is_told() {
    let mut rig = Rig::new("full").await;
    rig.sql.batch_execute("alter table items replica identity full").await.expect("identity");
    let relay = rig.streaming().await;
    let large = "insert into items (owner, id, version, note)
                 select 'a', 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
    rig.sql.batch_execute(large).await.expect("a large row");
    rig.sql.batch_execute("update items set version = 2").await.expect("update");
    let told = distinct(&rig.topic(), 2).await;
    assert_eq!(told[0].json()["note"], told[1].json()["note"]);
    drop(relay);
}
