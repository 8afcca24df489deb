//! Tests the commands as a person runs them: their output and their exit codes.

mod doctor;
mod tail;

use std::process::Command;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

pub use self::tail::Tail;
use crate::harness::Harness;
use crate::kafka::{self, distinct};

/// Runs a command to its end: exit code, standard output, standard error.
fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// As JSON, with the exit code.
fn json(command: &mut Command) -> (Option<i32>, Value) {
    let (code, out, error) = ran(command.arg("--json"));
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}{error}")))
}

/// Writes a record with this position in this chain, as if the relay had emitted it.
fn forge(topic: &str, chain: &str, position: &str) {
    let producer: BaseProducer = kafka::admin().create().expect("producer");
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_source", value: Some("/it") })
        .insert(Header { key: "pg_chain", value: Some(chain) })
        .insert(Header { key: "pg_position", value: Some(position) });
    producer.send(BaseRecord::to(topic).key("k").payload("{}").headers(headers)).expect("send");
    producer.flush(std::time::Duration::from_secs(10)).expect("flush");
}

#[tokio::test]
async fn verify_proves_a_chain_and_finds_the_transaction_that_is_missing() {
    let mut harness = Harness::new("verify").await;
    // A dead letter counts as a record of its transaction too.
    harness.routes(&harness.default_routes().replace("[relay]", "[relay]\nmax_record_bytes = 5000"));
    let relay = harness.streaming().await;
    for id in 0..20 {
        harness.row(&format!("o{}", id % 3), id, 1, "made").await;
    }
    let large =
        "insert into items (owner, id, version, note) values ('b', 1, 1, repeat('x', 9000)), ('c', 1, 1, '')";
    harness.sql.batch_execute(large).await.expect("a large row");
    distinct(&harness.topic(), 21).await;
    harness.confirmed().await;
    drop(relay);
    let (code, report) = json(&mut harness.command("verify"));
    assert_eq!(code, Some(0), "{report:#}");
    let found = &report["chains"][0];
    assert_eq!((&found["source"], &found["transactions"]), (&"/it".into(), &21.into()), "{report:#}");
    assert_eq!((&found["events"], &found["beginnings"]), (&22.into(), &1.into()), "{report:#}");
    let last = found["last"].as_str().expect("last").to_owned();
    let chain = found["chain"].as_str().expect("chain").to_owned();
    assert!(chain.starts_with("it/20"), "{chain}");

    // Another chain, as that of another database with the same event source: its positions are its own.
    forge(&harness.topic(), "gone/2026-11-29T12:15:02.123456Z", "0/10;0;0/0");
    let (code, report) = json(&mut harness.command("verify"));
    assert_eq!((code, report["chains"].as_array().map(Vec::len)), (Some(0), Some(2)), "{report:#}");
    // It is none of this source's.
    let (code, report) = json(harness.command("verify").args(["--source", "it"]));
    assert_eq!((code, report["chains"].as_array().map(Vec::len)), (Some(0), Some(1)), "{report:#}");

    // Without the dead-letter topic a record is missing, or at least a transaction's end.
    forge(&harness.topic(), &chain, "FFFF/20;0;FFFF/10");
    let (code, out, error) = ran(&mut harness.command("verify"));
    assert_eq!(code, Some(1), "{out}{error}");
    let message =
        format!("commit FFFF/20 names FFFF/10 before it, which is nowhere: the one before it here is {last}");
    assert!(out.contains(&message), "{message} is not in\n{out}");
    let (code, report) = json(harness.command("verify").args(["--topic", &harness.topic()]));
    assert_eq!((code, &report["whole"]), (Some(1), &false.into()), "{report:#}");
    let (code, _, error) = ran(harness.command("verify").env_remove("KAFKA_CONFIG").args([
        "--kafka-brokers",
        "127.0.0.1:1",
        "--topic",
        "x",
    ]));
    assert_eq!(code, Some(2), "{error}");
}

#[tokio::test]
async fn status_shows_a_source_that_streams_and_one_that_stands_still() {
    let mut harness = Harness::new("status").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    let admin = relay.admin.to_string();
    let (code, report) = json(harness.command("status").args(["--admin", &admin]));
    assert_eq!(code, Some(0), "{report:#}");
    let source = &report["sources"][0];
    assert_eq!((&source["source"], &source["state"]), (&"it".into(), &"streaming".into()), "{report:#}");
    assert_eq!(source["slot_status"]["wal_status"], "reserved");
    assert!(source["checkpoint"]["acknowledged"].as_str().is_some_and(|lsn| lsn.contains('/')));
    assert_eq!(report["topics"][harness.topic()]["end"], 1);
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let (code, out, _) = ran(harness.command("status").args(["--admin", &admin]));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("is not being read") && out.contains("the relay does not answer"), "{out}");
}
