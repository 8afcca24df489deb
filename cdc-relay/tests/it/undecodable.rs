//! Tests changes that the server cannot decode: its error ends every session at the same place.

use std::time::{Duration, Instant};

use crate::harness::{Harness, SCHEMA, Servers, with_database};
use crate::kafka;
use crate::proxy::Coalescer;

/// The encoding has bytes that are no character: the server stores a text of such a byte and cannot send it.
const WIN1252: &str = "template template0 encoding 'WIN1252' lc_collate 'C' lc_ctype 'C'";

async fn win1252(test: &str) -> Harness {
    let harness = Harness::like(Servers::shared(), test, WIN1252).await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    harness.routes(&harness.default_routes());
    harness
}

/// A row that cannot be decoded.
async fn undecodable(harness: &Harness) {
    let insert = "insert into items (owner, id, version, note) values ('a', 2, 1, chr(129))";
    harness.sql.batch_execute(insert).await.expect("a row");
}

/// The standstill it prevents: the error is in the relay's buffer, and the relay waits for the socket.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_comes_in_one_piece_with_the_start_is_noticed_at_once() {
    let mut harness = win1252("one_piece").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    undecodable(&harness).await;
    let coalescer = Coalescer::to(harness.host(), "START_REPLICATION").await;
    harness.overrides.push(("IT_URL", harness.url_by(coalescer.address)));
    let relay = harness.start();
    let began = Instant::now();
    while !relay.get("/health").unwrap_or_default().contains("22P05") {
        let (report, log) = (relay.get("/health").unwrap_or_default(), relay.log());
        assert!(began.elapsed() < Duration::from_secs(15), "not noticed: {report}\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The loop it prevents: sessions without end, each green for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_server_cannot_decode_is_refused_after_a_few_sessions() {
    let mut harness = win1252("stuck").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    undecodable(&harness).await;
    let report = relay.state("refused").await;
    for part in ["22P05", "cannot decode the change at ", "cdc-relay resnapshot"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let sessions = relay.metric("cdc_relay_sessions_total");
    assert!(sessions < 8.0, "{sessions} sessions");
    // The relay opens no further sessions, and is not ready.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(relay.metric("cdc_relay_sessions_total") <= sessions);
    harness.row("a", 3, 1, "made").await;
    harness.sql.batch_execute("update items set note = 'mended' where id = 2").await.expect("mended");
    let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("the program");
    assert!(resnapshot.status.success(), "{}", String::from_utf8_lossy(&resnapshot.stderr));
    relay.streams().await;
    harness.row("a", 4, 1, "made").await;
    harness.confirmed().await;
    let mut ids: Vec<i64> =
        kafka::read(&harness.topic()).iter().map(|event| event.json()["id"].as_i64().expect("id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, [1, 2, 3, 4]);
}

/// The wrong way out that it prevents: every row emitted again, where one grant was missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_missing_is_said_and_is_no_change_that_cannot_be_decoded() {
    let mut harness = Harness::new("permission").await;
    let role = harness.name.clone();
    harness
        .sql
        .batch_execute(&format!("create role {role} login replication password 'p'"))
        .await
        .expect("role");
    let (_, server) = harness.servers.postgres.rsplit_once('@').expect("a login");
    let url = with_database(&format!("postgres://{role}:p@{server}"), &harness.name);
    harness.overrides.push(("IT_URL", url));
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    harness.sql.batch_execute(&format!("alter role {role} noreplication")).await.expect("role");
    harness.kill_walsender().await;
    let report = relay.state("refused").await;
    for part in ["42501", "is not permitted", &format!("alter role {role} replication"), "Nothing is lost"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!report.contains("decode"), "{report}");
    harness.row("a", 2, 1, "made").await;
    harness.sql.batch_execute(&format!("alter role {role} replication")).await.expect("role");
    relay.streams().await;
    harness.confirmed().await;
    assert_eq!(kafka::read(&harness.topic()).len(), 2);
    relay.stop().await;
    harness.slot_is_free().await;
    let drop_role = format!("drop role {role}");
    crate::harness::eventually("the role to be dropped", || async {
        harness.sql.batch_execute(&drop_role).await.ok()
    })
    .await;
}
