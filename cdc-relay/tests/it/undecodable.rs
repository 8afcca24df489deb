//! Changes that the server cannot decode: its error ends every session at the same place.

use std::time::{Duration, Instant};

use crate::kafka;
use crate::proxy::Lump;
use crate::rig::{Rig, SCHEMA, Servers, with_database};

/// In a database whose encoding has bytes that are no character: a text of such a byte can be kept and never sent.
const WIN1252: &str = "template template0 encoding 'WIN1252' lc_collate 'C' lc_ctype 'C'";

async fn win1252(test: &str) -> Rig {
    let rig = Rig::like(Servers::shared(), test, WIN1252).await;
    rig.sql.batch_execute(SCHEMA).await.expect("schema");
    rig.routes(&rig.default_routes());
    rig
}

/// A row that cannot be decoded.
async fn undecodable(rig: &Rig) {
    let insert = "insert into items (owner, id, version, note) values ('a', 2, 1, chr(129))";
    rig.sql.batch_execute(insert).await.expect("a row");
}

/// The standstill it prevents: the error is in our own buffer, and the socket is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_comes_in_one_piece_with_the_start_is_noticed_at_once() {
    let mut rig = win1252("one_piece").await;
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    rig.slot_is_free().await;
    undecodable(&rig).await;
    let lump = Lump::to(rig.host(), "START_REPLICATION").await;
    rig.overrides.push(("IT_URL", rig.url_by(lump.address)));
    let relay = rig.start();
    let began = Instant::now();
    while !relay.get("/health").unwrap_or_default().contains("22P05") {
        let (report, log) = (relay.get("/health").unwrap_or_default(), relay.log());
        assert!(began.elapsed() < Duration::from_secs(15), "not noticed: {report}\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sessions without end, each a moment of green.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_server_cannot_decode_is_refused_after_a_few_sessions() {
    let mut rig = win1252("stuck").await;
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.confirmed().await;
    undecodable(&rig).await;
    let report = relay.state("refused").await;
    for part in ["22P05", "cannot decode the change at ", "cdc-relay reconcile"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let sessions = relay.metric("cdc_relay_sessions_total");
    assert!(sessions < 8.0, "{sessions} sessions");
    // It is not asked again and again, nor called ready.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(relay.metric("cdc_relay_sessions_total") <= sessions);
    rig.row("a", 3, 1, "made").await;
    rig.sql.batch_execute("update items set note = 'mended' where id = 2").await.expect("mended");
    let reconcile = rig.command("reconcile").arg("--yes").output().expect("the program");
    assert!(reconcile.status.success(), "{}", String::from_utf8_lossy(&reconcile.stderr));
    relay.streams().await;
    rig.row("a", 4, 1, "made").await;
    rig.confirmed().await;
    let mut ids: Vec<i64> =
        kafka::read(&rig.topic()).iter().map(|event| event.json()["id"].as_i64().expect("id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, [1, 2, 3, 4]);
}

/// The wrong way out that it prevents: every row emitted again, where one grant was missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_missing_is_said_and_is_no_change_that_cannot_be_decoded() {
    let mut rig = Rig::new("permission").await;
    let role = rig.name.clone();
    rig.sql.batch_execute(&format!("create role {role} login replication password 'p'")).await.expect("role");
    let (_, server) = rig.servers.postgres.rsplit_once('@').expect("a login");
    let url = with_database(&format!("postgres://{role}:p@{server}"), &rig.name);
    rig.overrides.push(("IT_URL", url));
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.confirmed().await;
    rig.sql.batch_execute(&format!("alter role {role} noreplication")).await.expect("role");
    rig.kill_walsender().await;
    let report = relay.state("refused").await;
    for part in ["42501", "is not permitted", &format!("alter role {role} replication"), "Nothing is lost"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(!report.contains("decode"), "{report}");
    rig.row("a", 2, 1, "made").await;
    rig.sql.batch_execute(&format!("alter role {role} replication")).await.expect("role");
    relay.streams().await;
    rig.confirmed().await;
    assert_eq!(kafka::read(&rig.topic()).len(), 2);
    relay.stop().await;
    rig.slot_is_free().await;
    let drop_role = format!("drop role {role}");
    crate::rig::eventually("the role to be dropped", || async {
        rig.sql.batch_execute(&drop_role).await.ok()
    })
    .await;
}
