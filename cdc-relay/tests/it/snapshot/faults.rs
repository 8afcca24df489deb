//! Tests a snapshot that is killed, that waits, or that cannot read a chunk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use stack::servers::Server;

use super::{ROWS, changes, done, fill, filled, held_up, position, versions, whole, with_snapshot};
use crate::harness::{Harness, Relay, Servers, connect, eventually};
use crate::kafka::{self, first_emissions};
use crate::servers::{PrivateServer, permits};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_killed_goes_on_where_it_stood() {
    let mut harness = filled("resumed", ROWS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(changes(harness.url.clone(), "items".to_owned(), Arc::clone(&stop)));
    let (mut kills, mut stood) = (0u64, BTreeSet::new());
    let passed = |relay: &Relay| relay.metric("cdc_relay_snapshot_passed_rows");
    let is_done = |at: &Option<Value>| at.as_ref().is_some_and(|at| at["done"] == true);
    let mut at = position(&harness, "items");
    while !is_done(&at) {
        let before = at.as_ref().map_or(0.0, |at| at["rows"].as_f64().expect("rows"));
        let relay = harness.streaming().await;
        // Sometimes before the first chunk; else after some chunks, at another moment each time: before their acknowledgement,
        // before the checkpoint, and after.
        if kills % 4 > 0 {
            eventually("a chunk to be emitted", || async {
                // No row may be left.
                (passed(&relay) > before || is_done(&position(&harness, "items"))).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(37 * (kills % 7))).await;
        }
        relay.kill();
        kills += 1;
        at = position(&harness, "items");
        stood.extend(at.as_ref().and_then(|at| at["rows"].as_u64()));
        assert!(kills < 100, "it never ends: {stood:?}");
    }
    stop.store(true, Ordering::Relaxed);
    load.await.expect("load");
    let relay = harness.streaming().await;
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    whole(&harness, &versions(&events)).await;
    for (owner, events) in first_emissions(&events) {
        let versions = versions(&events);
        assert!(versions.values().all(|versions| versions.is_sorted()), "{owner}");
    }
    assert!(stood.len() > 2, "it was never killed in the middle: {stood:?}");
    // The snapshot went on: had it begun again each time, every kill would have emitted the first chunk again.
    let snapshot = events.iter().filter(|event| event.header("pg_position").is_empty()).count() as u64;
    assert!(snapshot <= ROWS as u64 + 2000 * (kills + 1), "{snapshot} emitted with {kills} kills");
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_in_the_wal_and_not_yet_visible_does_not_go_back() {
    let _permits = permits(1).await;
    let postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness =
        Harness::on(Servers { postgres: postgres.address(), ..Servers::shared() }, "invisible").await;
    let rows = 4 * ROWS;
    fill(&harness, rows).await;
    harness.routes(&with_snapshot(&harness));
    // This commit waits for a standby that never comes: it is in the WAL, and invisible to everybody.
    for setting in ["synchronous_commit = 'local'", "synchronous_standby_names = 'nobody'"] {
        harness.sql.batch_execute(&format!("alter system set {setting}")).await.expect("set");
    }
    harness.sql.batch_execute("select pg_reload_conf()").await.expect("reload");
    let relay = harness.streaming().await;
    let metric = |name: &str| relay.metric(&format!("cdc_relay_snapshot_{name}{{source=\"it\""));
    eventually("the first chunk", || async { (metric("passed_rows") > 0.0).then_some(()) }).await;
    let waiting = connect(&harness.url).await;
    let last = rows - 1;
    tokio::spawn(async move {
        let update = format!("set synchronous_commit = on; update items set version = 50 where id = {last}");
        // This session ends with the database.
        let _ = waiting.batch_execute(&update).await;
    });
    assert_eq!(done(&harness, "items").await["rows"], rows);
    let now =
        harness.sql.query_one("select version from items where id = $1", &[&last]).await.expect("the row");
    assert_eq!(now.get::<_, i32>(0), 1, "the change is visible: the test shows nothing");
    let events = kafka::read(&harness.topic());
    assert_eq!(versions(&events)[&("o'\"4".to_owned(), last)], [50]);
    assert_eq!(metric("rows_total") as i64, rows - 1);
    drop((relay, harness));
}

#[tokio::test]
async fn the_stream_goes_on_while_the_snapshot_waits() {
    let mut harness = Harness::new("waits").await;
    harness.streaming().await.stop().await;
    harness.slot_is_free().await;
    let mut other = connect(&harness.url).await;
    let open = other.transaction().await.expect("begin");
    open.batch_execute("insert into items (owner, id, version) values ('open', 1, 1)").await.expect("insert");
    fill(&harness, 10).await;
    harness.routes(&with_snapshot(&harness));
    let relay = harness.streaming().await;
    // The first chunk cannot distinguish a committed invisible row from an uncommitted one. It waits; the stream does not.
    harness.row("streamed", 1, 1, "made").await;
    kafka::distinct(&harness.topic(), 11).await;
    assert!(position(&harness, "items").is_none());
    open.commit().await.expect("commit");
    assert_eq!(done(&harness, "items").await["rows"], 12);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_cannot_be_read_is_read_again() {
    let mut harness = Harness::new("failing").await;
    fill(&harness, ROWS).await;
    let routes = with_snapshot(&harness);
    let open = held_up(&mut harness, &routes).await;
    let relay = harness.streaming().await;
    let failures = "cdc_relay_snapshot_failures_total{source=\"it\",table=\"public.items\"}";
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                where application_name = 'cdc-relay snapshot' and datname = $1";
    eventually("a chunk to fail", || async {
        harness.sql.query(kill, &[&harness.name]).await.expect("kill");
        (relay.metric(failures) > 0.0).then_some(())
    })
    .await;
    open.batch_execute("commit").await.expect("commit");
    harness.row("streamed", 1, 1, "made").await;
    assert!(done(&harness, "items").await["rows"].as_i64() >= Some(ROWS));
    harness.confirmed().await;
    whole(&harness, &versions(&kafka::read(&harness.topic()))).await;
    drop(relay);
}
