//! Tests that the relay refuses where going on would lose rows, and says why.

use crate::harness::Harness;
use crate::kafka;
use crate::proxy::Gate;

/// A relay that has emitted a row and stopped.
pub async fn used(test: &str) -> Harness {
    let mut harness = Harness::new(test).await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    harness
}

/// Starts the relay again: it refuses for this reason, and emits nothing.
async fn refuses(mut harness: Harness, reason: &str) {
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains(reason), "{report}");
    assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
    harness.row("a", 2, 1, "made").await;
    let log = relay.log();
    assert!(log.contains("refusing to stream"), "{log}");
    assert_eq!(kafka::read(&harness.topic()).len(), 1);
    // A refused relay ends as quickly as any.
    assert_eq!(relay.stop().await, Some(0));
}

#[tokio::test]
async fn a_slot_that_was_dropped_is_not_made_again_with_a_gap() {
    let harness = used("dropped").await;
    harness.sql.execute("select pg_drop_replication_slot($1)", &[&harness.name]).await.expect("drop");
    harness.row("lost", 1, 1, "made").await;
    refuses(harness, "is gone").await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again_is_noticed() {
    let harness = used("remade").await;
    harness.sql.execute("select pg_drop_replication_slot($1)", &[&harness.name]).await.expect("drop");
    harness.row("lost", 1, 1, "made").await;
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    harness.sql.execute(make, &[&harness.name]).await.expect("make");
    refuses(harness, "advanced to").await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_advanced_is_noticed() {
    let harness = used("advanced").await;
    harness.row("lost", 1, 1, "made").await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    harness.sql.execute(advance, &[&harness.name]).await.expect("advance");
    refuses(harness, "advanced to").await;
}

/// The change comes after the relay checked the slot, and before it holds the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_advances_as_the_relay_takes_it_up_is_noticed() {
    let mut harness = used("taken_up").await;
    let gate = Gate::to(harness.host(), "START_REPLICATION").await;
    harness.overrides.push(("IT_URL", harness.url_by(gate.address)));
    let relay = harness.start();
    gate.held().await;
    harness.row("lost", 1, 1, "made").await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    harness.sql.execute(advance, &[&harness.name]).await.expect("advance");
    harness.row("a", 2, 1, "made").await;
    gate.open();
    let report = relay.state("refused").await;
    assert!(report.contains("advanced to"), "{report}");
    assert_eq!(kafka::read(&harness.topic()).len(), 1);
    drop(relay);
}

#[tokio::test]
async fn a_used_slot_without_a_checkpoint_is_not_trusted() {
    let harness = used("forgotten").await;
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    kafka::write(&topic, &key, None);
    refuses(harness, "knows nothing").await;
}

#[tokio::test]
async fn another_cluster_under_the_same_address_is_noticed() {
    let harness = used("cluster").await;
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    let checkpoint = kafka::read(&topic).last().expect("a checkpoint").value.clone();
    let mut checkpoint: serde_json::Value = serde_json::from_str(&checkpoint).expect("JSON");
    checkpoint["system_id"] = "1".into();
    kafka::write(&topic, &key, Some(&checkpoint.to_string()));
    refuses(harness, "another cluster").await;
}

#[tokio::test]
async fn a_published_table_without_routes_is_not_passed_over() {
    let harness = used("unrouted").await;
    harness
        .sql
        .batch_execute("create table other (id int primary key); alter publication events add table other")
        .await
        .expect("table");
    refuses(harness, "public.other is published").await;
}

#[tokio::test]
async fn a_routed_column_that_is_not_published_is_noticed_before_streaming() {
    let harness = used("column").await;
    harness.sql.batch_execute("alter table items rename column note to remark").await.expect("rename");
    refuses(harness, "column note of public.items is not published").await;
}

#[tokio::test]
async fn a_repaired_source_is_taken_up_without_a_restart() {
    let mut harness = Harness::new("healed").await;
    harness.sql.batch_execute("drop publication events").await.expect("drop");
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("publication events does not exist"), "{report}");
    let publish = "create publication events for table items with (publish = 'insert, update')";
    harness.sql.batch_execute(publish).await.expect("publication");
    relay.streams().await;
}

#[tokio::test]
async fn a_routes_file_that_cannot_be_used_ends_the_program_with_64() {
    let mut harness = Harness::new("usage").await;
    let bad = harness.default_routes().replace("slot = ", "slott = ");
    harness.routes(&bad);
    let mut relay = harness.start();
    assert_eq!(relay.exit_code().await, Some(64));
    let log = relay.log();
    assert!(log.contains("relay.toml:") && log.contains("slott: there is no such key"), "{log}");
}
