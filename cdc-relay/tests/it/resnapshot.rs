//! Tests the resnapshot of a source.
//!
//! * Afterwards every row is emitted and the relay streams again, whatever it had refused.
//! * After an interrupted resnapshot the relay refuses until one completes.

mod under_way;

use std::collections::BTreeMap;
use std::process::Output;

use stack::servers::Server;

use crate::continuity::cut_off;
use crate::harness::Harness;
use crate::kafka::{self, Event, chain};
use crate::refusals::used;
use crate::servers::{PrivateServer, permits};

fn resnapshot(harness: &Harness, arguments: &[&str]) -> Output {
    harness.command("resnapshot").args(arguments).output().expect("the program")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn succeeds(harness: &Harness, arguments: &[&str]) {
    let output = resnapshot(harness, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
}

async fn sql(harness: &Harness, statement: &str) {
    harness
        .sql
        .execute(statement, &[&harness.name])
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Edits the checkpoint of the source.
fn edit_checkpoint(harness: &Harness, change: impl FnOnce(&mut serde_json::Value)) {
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    let last = kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("a checkpoint");
    let mut checkpoint = last.json();
    change(&mut checkpoint);
    kafka::write(&topic, &key, Some(&checkpoint.to_string()));
}

/// The last emitted version of each row.
fn versions(events: &[Event]) -> BTreeMap<(String, i64), i64> {
    let mut versions = BTreeMap::new();
    for event in events {
        let (id, version) = (event.json()["id"].as_i64(), event.json()["version"].as_i64());
        let (id, version) = (id.expect("id"), version.expect("version"));
        assert_eq!(event.header("ce_id"), format!("it/items/{}/{id}/{version}", event.key));
        versions.insert((event.key.clone(), id), version);
    }
    versions
}

/// Checks that every row of the table was emitted, last in its present state.
async fn whole(harness: &Harness) -> Vec<Event> {
    let events = kafka::read(&harness.topic());
    let emitted = versions(&events);
    for row in harness.sql.query("select owner, id, version from items", &[]).await.expect("rows") {
        let key = (row.get::<_, String>(0), row.get::<_, i64>(1));
        assert_eq!(emitted.get(&key), Some(&i64::from(row.get::<_, i32>(2))), "{key:?}");
    }
    events
}

/// Checks that a source refused for this reason is emitted whole and streams again after a resnapshot.
async fn heals(mut harness: Harness, reason: &str, arguments: &[&str]) {
    harness.row("lost", 7, 3, "made").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains(reason) && report.contains("cdc-relay resnapshot"), "{report}");
    // The refused relay keeps running: it takes the repaired source up.
    succeeds(&harness, arguments);
    relay.streams().await;
    let emitted = kafka::read(&harness.topic());
    harness.row("after", 1, 1, "made").await;
    harness.confirmed().await;
    let events = whole(&harness).await;
    let ids = |events: &[Event], id: &str| events.iter().filter(|event| event.header("ce_id") == id).count();
    assert_eq!(ids(&events, "it/items/lost/7/3"), 1);
    assert_eq!(ids(&events, "it/items/a/1/1"), 2, "streamed, and re-emitted with the same id");
    // Re-emitted rows are no links of the chain; the streamed ones begin a new chain.
    assert!(emitted.last().is_some_and(|event| event.header("pg_position").is_empty()));
    let streamed = events.iter().find(|event| event.key == "after").expect("the row after");
    assert!(streamed.header("pg_position").ends_with(";0;0/0"));
    // Another slot sends another chain, which its rows name too. Both are whole.
    let chain = |event: Option<&Event>| event.expect("an event").header("pg_chain").to_owned();
    let (before, since) = (chain(emitted.first()), chain(emitted.last()));
    assert!(before.starts_with("it/") && since.starts_with("it/") && before < since, "{before}, {since}");
    assert_eq!(since, streamed.header("pg_chain"));
    drop(relay);
}

const DROP: &str = "select pg_drop_replication_slot($1)";

#[tokio::test]
async fn a_slot_that_was_dropped() {
    let harness = used("re_dropped").await;
    sql(&harness, DROP).await;
    heals(harness, "is gone", &[]).await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_and_made_again() {
    let harness = used("re_remade").await;
    sql(&harness, DROP).await;
    sql(&harness, "select pg_create_logical_replication_slot($1, 'pgoutput')").await;
    heals(harness, "advanced to", &["--yes"]).await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_advanced() {
    let harness = used("re_advanced").await;
    harness.row("lost", 7, 3, "made").await;
    sql(&harness, "select pg_replication_slot_advance($1, pg_current_wal_lsn())").await;
    heals(harness, "advanced to", &["--yes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_lost() {
    let _permits = permits(1).await;
    let postgres = PrivateServer::start(Server::Postgres).await;
    let harness = cut_off(&postgres, "re_lost").await;
    heals(harness, "is lost", &["--yes"]).await;
}

#[tokio::test]
async fn a_checkpoint_that_is_gone() {
    let harness = used("re_forgotten").await;
    kafka::write(&format!("{}.state", harness.name), &format!("it/{}", harness.name), None);
    heals(harness, "knows nothing", &["--yes"]).await;
}

#[tokio::test]
async fn another_timeline() {
    let harness = used("re_timeline").await;
    edit_checkpoint(&harness, |checkpoint| checkpoint["timeline"] = 99.into());
    heals(harness, "on timeline", &["--yes"]).await;
}

#[tokio::test]
async fn a_server_that_lost_emitted_transactions() {
    let harness = used("re_behind").await;
    edit_checkpoint(&harness, |checkpoint| checkpoint["told"] = "FFFFFF/0".into());
    heals(harness, "it lost committed", &["--yes"]).await;
}

#[tokio::test]
async fn without_agreement_nothing_is_changed_and_it_says_what_would_be() {
    let mut harness = used("re_plan").await;
    let slot = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1";
    let before = harness.sql.query_one(slot, &[&harness.name]).await.expect("slot").get::<_, String>(0);
    let records = kafka::read(&format!("{}.state", harness.name)).len();
    let output = resnapshot(&harness, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    let text = out(&output);
    for part in ["Nothing was changed", &harness.name, &before, "public.items", "It is not necessary"] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    let plan = resnapshot(&harness, &["--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!(plan["drops"]["confirmed"], before);
    assert_eq!(
        harness.sql.query_one(slot, &[&harness.name]).await.expect("slot").get::<_, String>(0),
        before
    );
    assert_eq!(kafka::read(&format!("{}.state", harness.name)).len(), records);
    let relay = harness.streaming().await;
    drop(relay);
}

#[tokio::test]
async fn a_slot_that_is_read_is_left_alone() {
    let mut harness = Harness::new("re_read").await;
    let relay = harness.streaming().await;
    let output = resnapshot(&harness, &["--yes"]);
    assert_eq!(output.status.code(), Some(2), "{}", out(&output));
    assert!(out(&output).contains("is being read"), "{}", out(&output));
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(kafka::read(&harness.topic()).len(), 1);
    drop(relay);
}

#[tokio::test]
async fn a_slot_of_somebody_else_is_not_dropped() {
    let harness = Harness::new("re_foreign").await;
    sql(&harness, "select pg_create_logical_replication_slot($1, 'test_decoding')").await;
    let output = resnapshot(&harness, &["--yes"]);
    assert_eq!(output.status.code(), Some(2), "{}", out(&output));
    assert!(out(&output).contains("is not ours"), "{}", out(&output));
    sql(&harness, "select 1 / count(*) from pg_replication_slots where slot_name = $1").await;
}

#[tokio::test]
async fn rows_without_an_id_of_their_own_get_one_that_no_streamed_row_has() {
    let mut harness = Harness::new("re_ids").await;
    let routes = harness.default_routes();
    let routes: Vec<&str> = routes.lines().filter(|line| !line.starts_with("id = ")).collect();
    harness.routes(&routes.join("\n"));
    for id in 0..50 {
        harness.row("a", id, 1, "made").await;
    }
    succeeds(&harness, &[]);
    let relay = harness.streaming().await;
    for id in 50..60 {
        harness.row("a", id, 1, "made").await;
    }
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    assert_eq!(events.len(), 60);
    kafka::distinct(&harness.topic(), 60).await;
    assert_eq!(chain(&events[50..]), 10);
    drop(relay);
}

#[tokio::test]
async fn a_row_that_cannot_be_emitted_is_counted_and_becomes_a_dead_letter() {
    let harness = used("re_dead").await;
    sql(&harness, DROP).await;
    let large = "insert into items (owner, id, version, note) values ('big', 1, 1, repeat('x', 2000000))";
    harness.sql.batch_execute(large).await.expect("a large row");
    harness.row("w", 1, 1, "work").await;
    let output = resnapshot(&harness, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let table = &report["tables"][0];
    assert_eq!(table["rows"], 3, "{report}");
    assert_eq!(
        (&table["kafka"], &table["rabbitmq"], &table["dead_letters"]),
        (&2.into(), &1.into(), &1.into())
    );
    let dead_letters = kafka::read(&harness.dead_letter_topic());
    assert_eq!(dead_letters.len(), 1);
    let headers: Vec<&str> = dead_letters[0].headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(headers, ["pg_chain"], "a re-emitted row has no position");
}

#[tokio::test]
async fn rows_that_a_resnapshot_emitted_are_not_emitted_by_the_snapshot_too() {
    let mut harness = Harness::new("re_snapshot").await;
    harness.routes(
        &harness.default_routes().replace("subject = \"{id}\"", "subject = \"{id}\"\nsnapshot = true"),
    );
    for id in 0..20 {
        harness.row("a", id, 1, "made").await;
    }
    succeeds(&harness, &[]);
    let relay = harness.streaming().await;
    harness.row("a", 20, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(kafka::read(&harness.topic()).len(), 21);
    drop(relay);
}

#[tokio::test]
async fn a_table_that_was_emptied_after_the_slot_began_is_not_taken_for_empty() {
    let harness = Harness::new("re_emptied").await;
    harness.row("a", 1, 1, "made").await;
    let url = harness.url.clone();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (emptied, empties) = std::sync::mpsc::channel();
    let reader = tokio::task::spawn_blocking(move || {
        let config = url.parse().expect("url");
        let mut session = cdc_relay::postgres::session::Session::connect(&config).expect("session");
        let tables = cdc_relay::source::backfill::rows::tables(&mut session, "events").expect("tables");
        let (mut found, mut begun) = (Vec::new(), Some(begun));
        for round in 0..2 {
            session.query("begin isolation level repeatable read").expect("begin");
            session.query("select 1").expect("sight");
            if let Some(begun) = begun.take_if(|_| round > 0) {
                begun.send(()).expect("the test");
                empties.recv().expect("the test");
            }
            session.query(&format!("lock table {} in access share mode", tables[0].target())).expect("lock");
            found.push(cdc_relay::source::backfill::rows::rewritten(&mut session, &tables).expect("a check"));
            session.query("commit").expect("commit");
        }
        found
    });
    begins.await.expect("the reader");
    harness.sql.batch_execute("alter table items alter column amount type numeric").await.expect("rewrite");
    emptied.send(()).expect("the reader");
    assert_eq!(reader.await.expect("reader"), [None, Some("public.items".to_owned())]);
}
