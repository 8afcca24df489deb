//! Tests `remove`: nothing of the relay is left on the servers, and nothing else is touched.

use std::collections::BTreeMap;
use std::process::Output;

use serde_json::Value;

use crate::harness::{Harness, eventually};
use crate::kafka;
use crate::names::{arrived, routes};

fn output(harness: &Harness, arguments: &[&str]) -> Output {
    harness.command("remove").args(["--source", &harness.name]).args(arguments).output().expect("remove")
}

fn remove(harness: &Harness, arguments: &[&str]) -> (Option<i32>, String) {
    let output = output(harness, arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Slots and publications of the database.
async fn left(harness: &Harness) -> Vec<String> {
    let query = "select pubname::text from pg_publication union all
                 select slot_name::text from pg_replication_slots where database = current_database() order by 1";
    harness.sql.query(query, &[]).await.expect("catalog").iter().map(|row| row.get(0)).collect()
}

async fn used(test: &str, source: &str) -> Harness {
    let mut harness = Harness::bare(test).await;
    let tables = "create table orders (id int primary key, note text);
                  create publication theirs for table orders with (publish = 'insert, update')";
    harness.sql.batch_execute(tables).await.expect("tables");
    routes(&harness, &format!("tables = [{{ name = \"orders\", snapshot = true }}]\n{source}"));
    harness.sql.batch_execute("insert into orders values (1, 'before')").await.expect("a row");
    let relay = harness.streaming().await;
    arrived(&format!("{}.orders", harness.name), 1).await;
    let (code, text) = remove(&harness, &["--yes"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("is being read"), "{text}");
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    harness
}

#[tokio::test]
async fn a_relay_that_is_taken_out_leaves_nothing_behind() {
    let mut harness = used("leaving", "").await;
    let before = left(&harness).await;
    assert_eq!(before.len(), 3, "{before:?}");
    let (code, text) = remove(&harness, &["--topics"]);
    assert_eq!(code, Some(1), "{text}");
    let topic = format!("{}.orders", harness.name);
    for part in [&harness.name, &format!("cdc_relay_{}", harness.name), &topic, "--yes"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(left(&harness).await, before, "nothing was agreed to");
    let (code, text) = remove(&harness, &["--topics", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&harness).await, ["theirs"]);
    eventually("the topic to be gone", || async { kafka::read(&topic).is_empty().then_some(()) }).await;
    // A tombstone is the last record under each of its keys.
    let records = kafka::read(&format!("{}.state", harness.name));
    let last: BTreeMap<String, String> =
        records.into_iter().map(|record| (record.key, record.value)).collect();
    assert!(last.len() >= 3 && last.values().all(String::is_empty), "{last:?}");
    // Standard error may have a warning of librdkafka.
    let output = output(&harness, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let again: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&again["slot"], &again["publication"], &again["records"]),
        (&Value::Null, &Value::Null, &0.into())
    );
    // The relay may start again as if for the first time.
    let relay = harness.streaming().await;
    arrived(&topic, 1).await;
    drop(relay);
}

#[tokio::test]
async fn objects_that_the_relay_did_not_make_stay() {
    let harness = used("leaving_others", "publication = \"theirs\"").await;
    let (code, text) = remove(&harness, &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left(&harness).await, ["theirs"]);
    assert_eq!(
        kafka::read(&format!("{}.orders", harness.name)).len(),
        1,
        "topics stay unless they are asked for"
    );
    let make = "select pg_create_logical_replication_slot($1, 'test_decoding')";
    harness.sql.query(make, &[&harness.name]).await.expect("a slot");
    let (code, text) = remove(&harness, &["--yes"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("test_decoding"), "{text}");
    assert_eq!(left(&harness).await.len(), 2);
}

/// The WAL that an idle slot keeps fills the disk.
#[tokio::test]
async fn a_slot_that_nobody_reads_is_pointed_out() {
    let harness = used("idle", "").await;
    let output = harness.command("doctor").arg("--json").output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let all = |report: &Value| -> Vec<Value> {
        let sections = report["sections"].as_array().expect("sections").clone();
        sections
            .iter()
            .flat_map(|section| section["findings"].as_array().expect("findings").clone())
            .collect()
    };
    let found =
        all(&report).into_iter().find(|finding| finding["check"] == "slot.active").expect("slot.active");
    assert_eq!(found["severity"], "warning");
    assert!(found.to_string().contains(&format!("cdc-relay remove --source {}", harness.name)), "{found:#}");
    // Doctor names it without a routes file too, and does not know its owner there.
    let output = harness.command("doctor").args([&harness.url, "--json"]).output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let idle = all(&report).into_iter().find(|finding| finding["check"] == "slot.idle").expect("slot.idle");
    let drop = format!("select pg_drop_replication_slot('{}');", harness.name);
    assert!(idle["fix"].to_string().contains(&drop), "{idle:#}");
}

/// The relay knows the topics of a pattern's tables by the tables. Only Kafka knows the topic of a dropped table, and a
/// topic that merely looks like it may belong to somebody else.
#[tokio::test]
async fn topics_of_patterns_leave_with_the_source_and_similar_topics_are_named_first() {
    let mut harness = Harness::bare("leaving_patterns").await;
    let tables = "create schema audit; create table orders (id int primary key);
                  create table audit.log (id int primary key); create table audit.old (id int primary key);
                  create publication everything for all tables with (publish = 'insert, update')";
    harness.sql.batch_execute(tables).await.expect("tables");
    routes(
        &harness,
        "publication = \"everything\"\ntables = [{ name = \"orders\" }, { name = \"audit.*\" }]",
    );
    let relay = harness.streaming().await;
    harness.sql
        .batch_execute(
            "insert into orders values (1); insert into audit.log values (1); insert into audit.old values (1)",
        )
        .await
        .expect("rows");
    let topic = |name: &str| format!("{}.{name}", harness.name);
    for name in ["orders", "audit.log", "audit.old"] {
        arrived(&topic(name), 1).await;
    }
    let status = harness.command("status").arg("--json").output().expect("status");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["topics"][topic("audit.log")]["end"], 1, "{status:#}");
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    harness.sql.batch_execute("drop table audit.old").await.expect("drop");
    for name in ["audit.theirs", "other"] {
        kafka::make(&topic(name)).await;
    }

    let (code, text) = remove(&harness, &["--topics"]);
    assert_eq!(code, Some(1), "{text}");
    for name in ["orders", "audit.log"] {
        assert!(text.contains(&format!("{}, with all its records", topic(name))), "{name}: {text}");
    }
    for name in ["audit.old", "audit.theirs"] {
        assert!(text.contains(&format!("--topic {}", topic(name))), "{name}: {text}");
        assert!(!text.contains(&format!("{}, with all its records", topic(name))), "{name}: {text}");
    }
    assert!(!text.contains(&topic("other")), "{text}");
    let (code, text) = remove(&harness, &["--topics", "--topic", &topic("other"), "--yes"]);
    assert_eq!(code, Some(64), "{text}");
    let (code, text) = remove(&harness, &["--topics", "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    for name in ["orders", "audit.log"] {
        let topic = topic(name);
        eventually("the topic to be gone", || async { (!kafka::exists(&topic)).then_some(()) }).await;
    }
    for name in ["audit.old", "audit.theirs", "other"] {
        assert!(kafka::exists(&topic(name)), "{name}");
    }
    let (code, text) = remove(&harness, &["--topics", "--topic", &topic("audit.old"), "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    let old = topic("audit.old");
    eventually("the topic to be gone", || async { (!kafka::exists(&old)).then_some(()) }).await;
    assert!(kafka::exists(&topic("audit.theirs")));
}
