//! Tests that doctor names limits of a role, a database or a server, which no session can set for itself, with their fix.

use serde_json::Value;
use stack::servers::Server;

use crate::harness::{Harness, Servers, eventually, with_database};
use crate::servers::PrivateServer;

async fn run(harness: &Harness, sql: &str) {
    for statement in sql.split(';') {
        harness.sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// A harness whose relay signs in as a role of its own.
async fn limited(servers: Servers, test: &str) -> Harness {
    let mut harness = Harness::on(servers, test).await;
    let role = harness.name.clone();
    run(&harness, &format!("create role {role} login replication password 'p'")).await;
    let (_, server) = harness.servers.postgres.rsplit_once('@').expect("a login");
    let url = with_database(&format!("postgres://{role}:p@{server}"), &harness.name);
    harness.overrides.push(("IT_URL", url));
    harness
}

/// Doctor's findings that are not fine, as severity, check and fixes.
fn found(harness: &Harness) -> Vec<(String, String, String)> {
    let output = harness.command("doctor").arg("--json").output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let sections = report["sections"].as_array().expect("sections");
    let findings = sections.iter().flat_map(|section| section["findings"].as_array().expect("findings"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .filter(|finding| finding["severity"] != "ok")
        .map(|finding| (text(&finding["severity"]), text(&finding["check"]), finding["fix"].to_string()))
        .collect()
}

fn expect(harness: &Harness, severity: &str, check: &str, fix: &str) {
    let found = found(harness);
    let finding = found.iter().find(|(_, found, _)| found == check);
    let (found_severity, _, fixes) = finding.unwrap_or_else(|| panic!("{check} is not in {found:#?}"));
    assert_eq!(found_severity, severity, "{check}");
    assert!(fixes.contains(fix), "{check}: {fix} is not in {fixes}");
}

async fn drop_role(harness: Harness) {
    run(&harness, &format!("drop owned by {0}", harness.name)).await;
    eventually("the role to be dropped", || async {
        harness.sql.batch_execute(&format!("drop role {}", harness.name)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn limits_of_role_and_database_are_named_with_their_fix() {
    let harness = limited(Servers::shared(), "limits").await;
    let name = harness.name.clone();
    let checks = found(&harness);
    for check in ["role.connections", "database.connections", "role.valid_until", "server.max_connections"] {
        assert!(!checks.iter().any(|(_, found, _)| found == check), "{checks:#?}");
    }
    run(&harness, &format!("alter role {name} connection limit 3")).await;
    expect(
        &harness,
        "would_not_work",
        "role.connections",
        &format!("alter role {name} connection limit -1;"),
    );
    run(
        &harness,
        &format!("alter role {name} connection limit -1; alter database {name} connection limit 4"),
    )
    .await;
    let fix = format!("alter database {name} connection limit -1;");
    expect(&harness, "would_not_work", "database.connections", &fix);
    run(
        &harness,
        &format!("alter database {name} connection limit -1; alter role {name} valid until 'tomorrow'"),
    )
    .await;
    expect(&harness, "warning", "role.valid_until", &format!("alter role {name} valid until 'infinity';"));
    drop_role(harness).await;
}

#[tokio::test]
async fn limits_of_the_server_are_named_with_their_fix() {
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = limited(servers, "serverlimits").await;
    let set = "alter system set max_slot_wal_keep_size = '64MB'; alter system set max_wal_senders = 0;
               alter system set max_replication_slots = 0; alter system set wal_level = 'replica';
               alter system set max_connections = 6; alter system set superuser_reserved_connections = 3";
    run(&harness, set).await;
    postgres.stop();
    postgres.run().await;
    harness.reconnect().await;
    for (severity, check, fix) in [
        ("warning", "retention.max_slot_wal_keep_size", "alter system set max_slot_wal_keep_size = "),
        ("would_not_work", "server.max_wal_senders", "alter system set max_wal_senders = 10;"),
        ("would_not_work", "server.max_replication_slots", "alter system set max_replication_slots = 10;"),
        ("would_not_work", "server.wal_level", "alter system set wal_level = logical;"),
        ("would_not_work", "server.max_connections", "alter system set max_connections = "),
    ] {
        expect(&harness, severity, check, fix);
    }
}

/// An existing slot needs a walsender as well.
#[tokio::test]
async fn a_walsender_is_needed_as_long_as_nobody_reads_the_slot() {
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = limited(servers, "senders").await;
    let relay = harness.streaming().await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    run(&harness, "alter system set max_wal_senders = 0").await;
    // A server that archives nothing may have none.
    postgres.stop();
    postgres.run().await;
    harness.reconnect().await;
    expect(&harness, "would_not_work", "server.max_wal_senders", "alter system set max_wal_senders = 10;");
}

/// The setting exists from 18 on.
#[tokio::test]
async fn a_server_that_gives_idle_slots_up_is_named() {
    let postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let harness = limited(servers, "idletimeout").await;
    let version = "select current_setting('server_version_num')::int / 10000";
    let version: i32 = harness.sql.query_one(version, &[]).await.expect("version").get(0);
    if version >= 18 {
        run(&harness, "alter system set idle_replication_slot_timeout = '6h'; select pg_reload_conf()").await;
        let setting = "select current_setting('idle_replication_slot_timeout')";
        eventually("the setting", || async {
            (harness.sql.query_one(setting, &[]).await.expect("setting").get::<_, String>(0) == "6h")
                .then_some(())
        })
        .await;
        let check = "retention.idle_replication_slot_timeout";
        expect(&harness, "would_lose_data", check, "alter system set idle_replication_slot_timeout = 0;");
    }
}
