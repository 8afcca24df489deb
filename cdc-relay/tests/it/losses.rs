//! Takes the slot from the relay under load.
//!
//! * The relay refuses.
//! * After a resnapshot only intermediate states of rows are missing.

use cdc_relay::postgres::lsn::Lsn;
use rustix::process::Signal;
use stack::servers::Server;

use crate::harness::{Harness, Relay, Servers, eventually};
use crate::load::{Workload, under_load};
use crate::oracle::Oracle;
use crate::servers::{PrivateServer, permits};

/// Resnapshots the refused source under load. Returns where the new slot begins.
async fn resnapshot(harness: &Harness, relay: &Relay, reason: &str) -> Lsn {
    let report = relay.state("refused").await;
    assert!(report.contains(reason), "{report}");
    let mut command = harness.command("resnapshot");
    command.args(["--yes", "--json"]);
    let output = tokio::task::spawn_blocking(move || command.output().expect("the program"));
    let output = output.await.expect("resnapshot");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    report["begins_at"].as_str().and_then(|lsn| lsn.parse().ok()).expect("begins_at")
}

/// Resnapshots the refused source and lets the oracle judge.
async fn nothing_is_missing(
    harness: &Harness,
    relay: Relay,
    (oracle, load): (Oracle, Workload),
    reason: &str,
) {
    let begins_at = resnapshot(harness, &relay, reason).await;
    relay.streams().await;
    load.more(100).await;
    // Samples of the new slot, which is confirmed further than its beginning now.
    harness.confirmed().await;
    oracle.sampled().await;
    load.stop().await;
    oracle.judge_across(harness, begins_at).await.expect(20);
    drop(relay);
}

/// Suspends the relay in the middle of its stream, and ends its session.
async fn suspend(harness: &Harness, relay: &Relay) {
    relay.signal(Signal::STOP);
    harness.kill_walsender().await;
    harness.slot_is_free().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_under_load_costs_no_row() {
    let mut harness = Harness::new("l_dropped").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    oracle.disturb_slot();
    // The relay reconnects within moments, until the slot is dropped before that.
    eventually("the slot to be dropped", || async {
        harness.kill_walsender().await;
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots
                    where slot_name = $1 and active_pid is null";
        harness.sql.query(drop, &[&harness.name]).await.ok().filter(|rows| !rows.is_empty())
    })
    .await;
    load.more(50).await;
    nothing_is_missing(&harness, relay, (oracle, load), "is gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_advanced_under_load_costs_no_row() {
    let mut harness = Harness::new("l_advanced").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    suspend(&harness, &relay).await;
    load.more(50).await;
    oracle.disturb_slot();
    let advance = "select pg_replication_slot_advance($1, pg_current_wal_lsn())";
    harness.sql.execute(advance, &[&harness.name]).await.expect("advance");
    relay.signal(Signal::CONT);
    nothing_is_missing(&harness, relay, (oracle, load), "advanced to").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_dropped_and_made_again_under_load_costs_no_row() {
    let mut harness = Harness::new("l_remade").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    suspend(&harness, &relay).await;
    oracle.disturb_slot();
    harness.sql.execute("select pg_drop_replication_slot($1)", &[&harness.name]).await.expect("drop");
    load.more(50).await;
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    harness.sql.execute(make, &[&harness.name]).await.expect("make");
    relay.signal(Signal::CONT);
    nothing_is_missing(&harness, relay, (oracle, load), "advanced to").await;
}

/// The server ends the session of a relay that reads nothing, and removes the WAL it had yet to send.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_invalidated_under_load_costs_no_row() {
    let _permits = permits(1).await;
    let postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "l_lost").await;
    harness.sql.batch_execute("alter system set max_slot_wal_keep_size = '96MB'").await.expect("set");
    harness.sql.batch_execute("select pg_reload_conf(); create table filler (t text)").await.expect("reload");
    let (relay, mut oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    relay.signal(Signal::STOP);
    let status = "select wal_status from pg_replication_slots where slot_name = $1";
    let mut lost = false;
    for _ in 0..20 {
        // Fills a WAL segment of 16 MB.
        let fill = "insert into filler values (''); select pg_switch_wal()";
        harness.sql.batch_execute(fill).await.expect("fill");
        oracle.release_wal(&harness).await;
        let row = harness.sql.query_one(status, &[&harness.name]).await.expect("status");
        lost = row.get::<_, Option<&str>>(0) == Some("lost");
        if lost {
            break;
        }
    }
    assert!(lost, "the slot is not lost");
    // The relay may still receive the earlier transactions.
    load.more(50).await;
    oracle.disturb_slot();
    relay.signal(Signal::CONT);
    nothing_is_missing(&harness, relay, (oracle, load), "is lost").await;
    drop(harness);
}
