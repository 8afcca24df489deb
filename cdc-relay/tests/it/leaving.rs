//! A relay is taken out: nothing of it is left on the servers, and nothing that is not its own is touched.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kafka;
use crate::names::{arrived, routes};
use crate::rig::{Rig, eventually};

fn remove(rig: &Rig, arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        rig.command("remove").args(["--source", &rig.name]).args(arguments).output().expect("remove");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Slots and publications of the database.
async fn left(rig: &Rig) -> Vec<String> {
    let query = "select pubname::text from pg_publication union all
                 select slot_name::text from pg_replication_slots where database = current_database() order by 1";
    rig.sql.query(query, &[]).await.expect("catalog").iter().map(|row| row.get(0)).collect()
}

async fn used(test: &str, source: &str) -> Rig {
    let mut rig = Rig::bare(test).await;
    let tables = "create table orders (id int primary key, note text);
                  create publication theirs for table orders with (publish = 'insert, update')";
    rig.sql.batch_execute(tables).await.expect("tables");
    routes(&rig, &format!("tables = [{{ name = \"orders\", snapshot = true }}]\n{source}"));
    rig.sql.batch_execute("insert into orders values (1, 'before')").await.expect("a row");
    let relay = rig.streaming().await;
    arrived(&format!("{}.orders", rig.name), 1).await;
    let (code, said) = remove(&rig, &["--yes"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is being read"), "{said}");
    assert_eq!(relay.stop().await, Some(0));
    rig.slot_is_free().await;
    rig
}

#[tokio::test]
async fn a_relay_that_is_taken_out_leaves_nothing_behind() {
    let mut rig = used("leaving", "").await;
    let before = left(&rig).await;
    assert_eq!(before.len(), 3, "{before:?}");
    let (code, said) = remove(&rig, &["--topics"]);
    assert_eq!(code, Some(1), "{said}");
    let topic = format!("{}.orders", rig.name);
    for part in [&rig.name, &format!("cdc_relay_{}", rig.name), &topic, "--yes"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(left(&rig).await, before, "nothing was agreed to");
    let (code, said) = remove(&rig, &["--topics", "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(left(&rig).await, ["theirs"]);
    eventually("the topic to be gone", || async { kafka::read(&topic).is_empty().then_some(()) }).await;
    // A tombstone is the last word under each of its keys.
    let records = kafka::read(&format!("{}.state", rig.name));
    let last: BTreeMap<String, String> =
        records.into_iter().map(|record| (record.key, record.value)).collect();
    assert!(last.len() >= 3 && last.values().all(String::is_empty), "{last:?}");
    let (code, said) = remove(&rig, &["--json"]);
    assert_eq!(code, Some(0), "{said}");
    let again: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&again["slot"], &again["publication"], &again["records"]),
        (&Value::Null, &Value::Null, &0.into())
    );
    // It may come back, as if it had never been there.
    let relay = rig.streaming().await;
    arrived(&topic, 1).await;
    drop(relay);
}

#[tokio::test]
async fn what_the_relay_did_not_make_stays() {
    let rig = used("leaving_others", "publication = \"theirs\"").await;
    let (code, said) = remove(&rig, &["--yes"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(left(&rig).await, ["theirs"]);
    assert_eq!(
        kafka::read(&format!("{}.orders", rig.name)).len(),
        1,
        "topics stay unless they are asked for"
    );
    let make = "select pg_create_logical_replication_slot($1, 'test_decoding')";
    rig.sql.query(make, &[&rig.name]).await.expect("a slot");
    let (code, said) = remove(&rig, &["--yes"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("test_decoding"), "{said}");
    assert_eq!(left(&rig).await.len(), 2);
}

/// The log that it keeps fills the disk, whoever forgot it.
#[tokio::test]
async fn a_slot_that_nobody_reads_is_pointed_out() {
    let rig = used("idle", "").await;
    let output = rig.command("doctor").arg("--json").output().expect("doctor");
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
    assert!(found.to_string().contains(&format!("cdc-relay remove --source {}", rig.name)), "{found:#}");
    // Without a routes file too: whose it is, is not known there.
    let output = rig.command("doctor").args([&rig.url, "--json"]).output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let idle = all(&report).into_iter().find(|finding| finding["check"] == "slot.idle").expect("slot.idle");
    let drop = format!("select pg_drop_replication_slot('{}');", rig.name);
    assert!(idle["fix"].to_string().contains(&drop), "{idle:#}");
}

/// The topics of a pattern's tables are known by the tables; of a table that is gone only Kafka knows the topic, and what
/// merely looks like it may be somebody else's.
#[tokio::test]
async fn topics_of_patterns_leave_with_the_source_and_what_only_looks_like_them_is_named_first() {
    let mut rig = Rig::bare("leaving_patterns").await;
    let tables = "create schema audit; create table orders (id int primary key);
                  create table audit.log (id int primary key); create table audit.old (id int primary key);
                  create publication everything for all tables with (publish = 'insert, update')";
    rig.sql.batch_execute(tables).await.expect("tables");
    routes(&rig, "publication = \"everything\"\ntables = [{ name = \"orders\" }, { name = \"audit.*\" }]");
    let relay = rig.streaming().await;
    rig.sql
        .batch_execute(
            "insert into orders values (1); insert into audit.log values (1); insert into audit.old values (1)",
        )
        .await
        .expect("rows");
    let topic = |name: &str| format!("{}.{name}", rig.name);
    for name in ["orders", "audit.log", "audit.old"] {
        arrived(&topic(name), 1).await;
    }
    let status = rig.command("status").arg("--json").output().expect("status");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["topics"][topic("audit.log")]["end"], 1, "{status:#}");
    assert_eq!(relay.stop().await, Some(0));
    rig.slot_is_free().await;
    rig.sql.batch_execute("drop table audit.old").await.expect("drop");
    for name in ["audit.theirs", "other"] {
        kafka::make(&topic(name)).await;
    }

    let (code, said) = remove(&rig, &["--topics"]);
    assert_eq!(code, Some(1), "{said}");
    for name in ["orders", "audit.log"] {
        assert!(said.contains(&format!("{}, with all its records", topic(name))), "{name}: {said}");
    }
    for name in ["audit.old", "audit.theirs"] {
        assert!(said.contains(&format!("--topic {}", topic(name))), "{name}: {said}");
        assert!(!said.contains(&format!("{}, with all its records", topic(name))), "{name}: {said}");
    }
    assert!(!said.contains(&topic("other")), "{said}");
    let (code, said) = remove(&rig, &["--topics", "--topic", &topic("other"), "--yes"]);
    assert_eq!(code, Some(64), "{said}");
    let (code, said) = remove(&rig, &["--topics", "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    for name in ["orders", "audit.log"] {
        let topic = topic(name);
        eventually("the topic to be gone", || async { (!kafka::exists(&topic)).then_some(()) }).await;
    }
    for name in ["audit.old", "audit.theirs", "other"] {
        assert!(kafka::exists(&topic(name)), "{name}");
    }
    let (code, said) = remove(&rig, &["--topics", "--topic", &topic("audit.old"), "--yes"]);
    assert_eq!(code, Some(0), "{said}");
    let old = topic("audit.old");
    eventually("the topic to be gone", || async { (!kafka::exists(&old)).then_some(()) }).await;
    assert!(kafka::exists(&topic("audit.theirs")));
}
