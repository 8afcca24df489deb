//! Where going on would lose something, the relay stands still and says so.

use crate::kafka;
use crate::proxy::Gate;
use crate::rig::Rig;

/// A relay that has told a row and stopped.
pub async fn used(test: &str) -> Rig {
    let mut rig = Rig::new(test).await;
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    rig.slot_is_free().await;
    rig
}

/// Starts it again: it refuses with this, and tells nothing.
async fn refuses(mut rig: Rig, reason: &str) {
    let relay = rig.start();
    let report = relay.state("refused").await;
    assert!(report.contains(reason), "{report}");
    assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
    rig.row("a", 2, 1, "made").await;
    let log = relay.log();
    assert!(log.contains("refusing to stream"), "{log}");
    assert_eq!(kafka::read(&rig.topic()).len(), 1);
    // A refused relay ends as quickly as any.
    assert_eq!(relay.stop().await, Some(0));
}

#[tokio::test]
async fn a_slot_that_was_dropped_is_not_made_again_with_a_gap() {
    let rig = used("dropped").await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.name]).await.expect("drop");
    rig.row("lost", 1, 1, "made").await;
    refuses(rig, "is gone").await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again_is_noticed() {
    let rig = used("remade").await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.name]).await.expect("drop");
    rig.row("lost", 1, 1, "made").await;
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    rig.sql.execute(make, &[&rig.name]).await.expect("make");
    refuses(rig, "advanced to").await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_advanced_is_noticed() {
    let rig = used("advanced").await;
    rig.row("lost", 1, 1, "made").await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    rig.sql.execute(advance, &[&rig.name]).await.expect("advance");
    refuses(rig, "advanced to").await;
}

/// After the relay looked, and before the slot was its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_advances_as_the_relay_takes_it_up_is_noticed() {
    let mut rig = used("taken_up").await;
    let gate = Gate::to(rig.host(), "START_REPLICATION").await;
    rig.overrides.push(("IT_URL", rig.url_by(gate.address)));
    let relay = rig.start();
    gate.held().await;
    rig.row("lost", 1, 1, "made").await;
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    rig.sql.execute(advance, &[&rig.name]).await.expect("advance");
    rig.row("a", 2, 1, "made").await;
    gate.open();
    let report = relay.state("refused").await;
    assert!(report.contains("advanced to"), "{report}");
    assert_eq!(kafka::read(&rig.topic()).len(), 1);
    drop(relay);
}

#[tokio::test]
async fn a_used_slot_without_memory_is_not_trusted() {
    let rig = used("forgotten").await;
    let (topic, key) = (format!("{}.state", rig.name), format!("it/{}", rig.name));
    kafka::write(&topic, &key, None);
    refuses(rig, "knows nothing").await;
}

#[tokio::test]
async fn another_cluster_under_the_same_address_is_noticed() {
    let rig = used("cluster").await;
    let (topic, key) = (format!("{}.state", rig.name), format!("it/{}", rig.name));
    let memory = kafka::read(&topic).last().expect("memory").value.clone();
    let mut memory: serde_json::Value = serde_json::from_str(&memory).expect("JSON");
    memory["system_id"] = "1".into();
    kafka::write(&topic, &key, Some(&memory.to_string()));
    refuses(rig, "another cluster").await;
}

#[tokio::test]
async fn a_published_table_without_routes_is_not_passed_over() {
    let rig = used("unrouted").await;
    rig.sql
        .batch_execute("create table other (id int primary key); alter publication events add table other")
        .await
        .expect("table");
    refuses(rig, "public.other is published").await;
}

#[tokio::test]
async fn a_routed_column_that_is_not_published_is_noticed_before_streaming() {
    let rig = used("column").await;
    rig.sql.batch_execute("alter table items rename column note to remark").await.expect("rename");
    refuses(rig, "column note of public.items is not published").await;
}

#[tokio::test]
async fn what_was_put_right_is_taken_up_without_a_restart() {
    let mut rig = Rig::new("healed").await;
    rig.sql.batch_execute("drop publication events").await.expect("drop");
    let relay = rig.start();
    let report = relay.state("refused").await;
    assert!(report.contains("publication events does not exist"), "{report}");
    let publish = "create publication events for table items with (publish = 'insert, update')";
    rig.sql.batch_execute(publish).await.expect("publication");
    relay.streams().await;
}

#[tokio::test]
async fn a_routes_file_that_cannot_be_used_ends_the_program_with_64() {
    let mut rig = Rig::new("usage").await;
    let bad = rig.default_routes().replace("slot = ", "slott = ");
    rig.routes(&bad);
    let mut relay = rig.start();
    assert_eq!(relay.exit_code().await, Some(64));
    let log = relay.log();
    assert!(log.contains("relay.toml:") && log.contains("slott: there is no such key"), "{log}");
}
