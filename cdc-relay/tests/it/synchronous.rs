//! Tests a source that waits for synchronous standbys, with a primary and a standby of its own.
//!
//! * What only the primary has is not emitted, to no sink.
//! * So a promotion is followed without a command, and undoes nothing that was emitted.

use rustix::process::Signal;
use serde_json::Value;
use stack::servers::Server;

use crate::harness::{Harness, Relay, Servers, connect, eventually, with_database};
use crate::kafka::{self, distinct};
use crate::load::under_load;
use crate::servers::{PrivateServer, permits};

/// A primary, and a standby that its commits wait for.
async fn pair() -> (PrivateServer, PrivateServer) {
    let primary = PrivateServer::start(Server::Postgres).await;
    let standby = primary.standby("n2").await;
    waits_for(&primary, "n2").await;
    (primary, standby)
}

/// Makes the commits of a primary wait for this standby, which streams.
async fn waits_for(primary: &PrivateServer, standby: &str) {
    let sql = connect(&primary.address()).await;
    let names = format!("alter system set synchronous_standby_names = '{standby}'");
    sql.batch_execute(&names).await.expect("the setting");
    sql.batch_execute("select pg_reload_conf()").await.expect("reload");
    let query = "select from pg_stat_replication where application_name = $1 and sync_state = 'sync'";
    eventually("the standby to be synchronous", || async {
        sql.query_opt(query, &[&standby]).await.expect("pg_stat_replication")
    })
    .await;
}

/// A harness on the primary, whose URL leads to whichever of the two takes writes.
async fn harness_on((primary, standby): &(PrivateServer, PrivateServer), test: &str) -> Harness {
    let servers = Servers { postgres: primary.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, test).await;
    let required =
        harness.default_routes().replace("event_source", "synchronous = \"require\"\nevent_source");
    harness.routes(&required);
    let second = with_database(&standby.address(), &harness.name);
    let (_, second) = second.split_once('@').expect("a login");
    let (second, _) = second.split_once('/').expect("a database");
    let (before, database) = harness.url.rsplit_once('/').expect("a database");
    harness.url = format!("{before},{second}/{database}?target_session_attrs=read-write&connect_timeout=2");
    harness
}

/// Waits until the relay shows what it holds; returns the report.
async fn held(relay: &Relay) -> String {
    eventually("a transaction that waits for the standby", || async {
        relay.get("/health").filter(|report| report.contains("\"held\":"))
    })
    .await
}

/// Waits until the checkpoint is as `is` says.
async fn checkpoint(harness: &Harness, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    eventually(what, || async {
        let last = kafka::read(&topic).into_iter().rfind(|event| event.key == key)?.json();
        is(&last).then_some(last)
    })
    .await
}

/// Prevents an event whose transaction a promotion undoes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_emitted_before_the_synchronous_standby_has_it() {
    let _permits = permits(2).await;
    let mut servers = pair().await;
    let mut harness = harness_on(&servers, "held").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    servers.1.crash();
    // This client does not wait for the standby.
    harness.sql.batch_execute("set synchronous_commit = local").await.expect("the setting");
    harness.row("a", 2, 1, "made").await;
    // More than the relay's buffer holds.
    let many = "insert into items (owner, id, version, note)
                select 'large', n, 1, repeat('x', 1000) from generate_series(1, 2000) n";
    harness.sql.batch_execute(many).await.expect("a large transaction");
    let report = held(&relay).await;
    assert!(report.contains("\"state\":\"streaming\"") && report.contains("0 are connected"), "{report}");
    assert!(relay.metric("cdc_relay_held_since_timestamp_seconds").is_finite());
    assert_eq!(kafka::written(&harness.topic()).await, 1, "the row that the standby has");
    servers.1.run().await;
    let events = distinct(&harness.topic(), 2002).await;
    assert_eq!(kafka::chain(&events), 3);
    assert!(relay.metric("cdc_relay_held_since_timestamp_seconds").is_nan());
    assert!(relay.metric("cdc_relay_held_transactions_total") >= 1.0);
    assert!(!relay.get("/health").expect("health").contains("\"held\":"));
    assert!(relay.metric("cdc_relay_sessions_total") < 2.0, "the server gave the relay up meanwhile");
    checkpoint(&harness, "the checkpoint to say so", |saved| saved["synchronous"] == true).await;
    drop((relay, harness));
}

/// The primary has commits that no standby has when it dies, under a load that also has work for the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_without_a_command_and_undoes_nothing_that_was_emitted() {
    let _permits = permits(2).await;
    let mut servers = pair().await;
    let mut harness = harness_on(&servers, "followed").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    checkpoint(&harness, "the checkpoint to say that standbys had all", |saved| saved["synchronous"] == true)
        .await;
    servers.1.crash();
    harness.sql.batch_execute("set synchronous_commit = local").await.expect("the setting");
    harness.row("lost", 1, 1, "work").await;
    held(&relay).await;
    servers.0.crash();
    servers.1.take_slots(&servers.0);
    servers.1.run().await;
    let promoted = connect(&servers.1.address()).await;
    promoted.query_one("select pg_promote()", &[]).await.expect("a promotion");
    harness.servers.postgres = servers.1.address();
    harness.reconnect().await;
    let saved = checkpoint(&harness, "the relay to follow", |saved| saved["timeline"] == 2).await;
    assert_eq!(saved["synchronous"], false, "{saved}: of the new timeline nothing is known yet");
    // The promoted server has no standby yet, so nothing is emitted from it either.
    held(&relay).await;
    let third = servers.1.standby("n3").await;
    waits_for(&servers.1, "n3").await;
    load.more(100).await;
    load.stop().await;
    oracle.judge(&harness).await.expect(200);
    assert!(kafka::read(&harness.topic()).iter().all(|event| event.key != "lost"));
    let verify = harness.command("verify").output().expect("the program");
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    drop((relay, harness, third));
}

/// A former primary that nobody stopped answers while the promoted one is away. A relay that kept to it would be refused for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_takes_writes_is_left_for_the_promoted_one() {
    let _permits = permits(2).await;
    let mut servers = pair().await;
    let mut harness = harness_on(&servers, "former").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    checkpoint(&harness, "the checkpoint to say that standbys had all", |saved| saved["synchronous"] == true)
        .await;
    // Otherwise it might confirm WAL to the primary that the standby lacks, and the slot would be ahead of the promoted server.
    relay.signal(Signal::STOP);
    servers.1.crash();
    servers.0.crash();
    relay.signal(Signal::CONT);
    servers.1.take_slots(&servers.0);
    servers.1.run().await;
    let promoted = connect(&servers.1.address()).await;
    promoted.query_one("select pg_promote()", &[]).await.expect("a promotion");
    checkpoint(&harness, "the relay to follow", |saved| saved["timeline"] == 2).await;
    // The server sends the row again, and the relay skips it: nothing waits for a standby, and there is none.
    relay.streams().await;
    let third = servers.1.standby("n3").await;
    waits_for(&servers.1, "n3").await;
    servers.0.run().await;
    servers.1.crash();
    eventually("the relay to meet the former primary", || async {
        relay.get("/health").filter(|report| report.contains("takes writes on timeline 1"))
    })
    .await;
    servers.1.run().await;
    relay.streams().await;
    let saved = checkpoint(&harness, "a checkpoint", |_| true).await;
    assert_eq!(saved["timeline"], 2, "{saved}");
    // Not by the relay's connection string, whose first host is the former primary.
    harness.servers.postgres = servers.1.address();
    harness.sql = connect(&with_database(&servers.1.address(), &harness.name)).await;
    harness.row("b", 1, 1, "made").await;
    distinct(&harness.topic(), 2).await;
    drop((relay, harness, third));
}

/// An archive of the WAL flushes all of it and cannot be promoted. A list that names everybody makes the server count it; its name
/// does not say what it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_the_wal_is_no_standby() {
    let _permits = permits(2).await;
    let mut servers = pair().await;
    let mut harness = harness_on(&servers, "archive").await;
    let sql = connect(&servers.0.address()).await;
    sql.batch_execute("alter system set synchronous_standby_names = 'ANY 1 (*)'").await.expect("the setting");
    sql.batch_execute("select pg_reload_conf()").await.expect("reload");
    let mut archive = servers.0.archive("barman_receive_wal");
    eventually("the server to count the archive", || async {
        let query = "select from pg_stat_replication where application_name = 'barman_receive_wal'
                     and sync_state = 'quorum' and flush_lsn is not null";
        sql.query_opt(query, &[]).await.expect("pg_stat_replication")
    })
    .await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    servers.1.crash();
    harness.row("a", 2, 1, "made").await;
    let report = held(&relay).await;
    assert!(report.contains("0 are connected"), "{report}");
    assert_eq!(kafka::written(&harness.topic()).await, 1, "the row that the standby has");
    servers.1.run().await;
    distinct(&harness.topic(), 2).await;
    archive.kill().expect("signal");
    archive.wait().expect("wait");
    drop((relay, harness));
}

/// A role that sees no positions would hold everything for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_see_the_standbys_is_refused_and_goes_on_once_it_may() {
    let _permits = permits(2).await;
    let servers = pair().await;
    let mut harness = harness_on(&servers, "hidden").await;
    let role = harness.name.clone();
    let make = format!(
        "create role {role} login replication password 'p'; grant select on all tables in schema public to {role}"
    );
    harness.sql.batch_execute(&make).await.expect("the role");
    let (_, address) = harness.url.split_once('@').expect("a login");
    harness.url = format!("postgres://{role}:p@{address}");
    harness.row("a", 1, 1, "made").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains(&format!("grant pg_read_all_stats to {role}")), "{report}");
    // A resnapshot finds it out before it drops the slot.
    relay.stop().await;
    harness.slot_is_free().await;
    let output = harness.command("resnapshot").arg("--yes").output().expect("the program");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && stderr.contains("grant pg_read_all_stats"), "{stderr}");
    assert!(harness.positions().await.1.is_some(), "the slot is there");
    let relay = harness.start();
    let grant = format!("grant pg_read_all_stats to {role}");
    harness.sql.batch_execute(&grant).await.expect("the right");
    relay.streams().await;
    harness.row("a", 2, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    drop((relay, harness));
}
