//! Tests servers that are not the one of the checkpoint: another cluster, a backup, another timeline, removed WAL.
//!
//! * The relay never passes over rows that were committed there and not emitted.

use stack::servers::Server;

use crate::harness::{Harness, SCHEMA, Servers, connect, with_database};
use crate::kafka;
use crate::servers::{PrivateServer, permits};

/// A relay on a Postgres of its own, which has emitted rows and was killed.
pub async fn used(postgres: &PrivateServer, test: &str) -> Harness {
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, test).await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    relay.kill();
    harness.slot_is_free().await;
    harness
}

/// The same; the server then removed the WAL of a row before it was emitted.
pub async fn cut_off(postgres: &PrivateServer, test: &str) -> Harness {
    let harness = used(postgres, test).await;
    harness.sql.batch_execute("alter system set max_slot_wal_keep_size = '16MB'").await.expect("set");
    harness.sql.batch_execute("select pg_reload_conf(); create table noise (t text)").await.expect("reload");
    harness.row("lost", 1, 1, "made").await;
    for _ in 0..4 {
        let noise = "insert into noise select repeat('x', 1000) from generate_series(1, 16000); select pg_switch_wal()";
        harness.sql.batch_execute(noise).await.expect("noise");
    }
    harness.sql.batch_execute("checkpoint").await.expect("checkpoint");
    harness
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_the_server_removed_is_noticed() {
    let _permits = permits(1).await;
    let postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness = cut_off(&postgres, "cut").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("is lost"), "{report}");
    assert_eq!(kafka::read(&harness.topic()).len(), 1);
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_behind_the_same_address_is_noticed() {
    let _permits = permits(2).await;
    let (first, second) =
        (PrivateServer::start(Server::Postgres).await, PrivateServer::start(Server::Postgres).await);
    let mut harness = used(&first, "another").await;
    // The same database, as far as a client can see.
    let create = format!("create database {}", harness.name);
    connect(&second.address()).await.batch_execute(&create).await.expect("database");
    harness.url = with_database(&second.address(), &harness.name);
    harness.sql = connect(&harness.url).await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    harness
        .sql
        .execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&harness.name])
        .await
        .expect("a slot");
    harness.row("a", 2, 1, "made").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("another cluster"), "{report}");
    assert_eq!(kafka::read(&harness.topic()).len(), 1);
    // Where the address is right, a resnapshot emits every row that is here, and the relay goes on.
    let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("the program");
    assert!(resnapshot.status.success(), "{}", String::from_utf8_lossy(&resnapshot.stderr));
    relay.streams().await;
    harness.row("a", 3, 1, "made").await;
    harness.confirmed().await;
    let ids: Vec<String> =
        kafka::read(&harness.topic()).iter().map(|event| event.header("ce_id").to_owned()).collect();
    assert_eq!(ids, ["it/items/a/1/1", "it/items/a/2/1", "it/items/a/3/1"]);
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_timeline_is_noticed() {
    let _permits = permits(1).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness = used(&postgres, "timeline").await;
    postgres.stop();
    postgres.promote_at_next_start();
    postgres.run().await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("timeline 2"), "{report}");
    harness.reconnect().await;
    drop((relay, harness));
}

/// A volume set back to an earlier snapshot: the same cluster, the same timeline, the slot as it was then. Its new
/// commits have positions that were emitted before, with other rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_is_noticed_also_when_its_wal_has_grown_past_the_emitted_position() {
    let _permits = permits(1).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness = used(&postgres, "backup").await;
    postgres.stop();
    let backup = postgres.back_up();
    postgres.run().await;
    harness.reconnect().await;
    let relay = harness.streaming().await;
    for id in 2..60 {
        harness.row("old", id, 1, "made").await;
    }
    harness.confirmed().await;
    relay.kill();
    harness.slot_is_free().await;
    let (emitted_until, _) = harness.positions().await;
    postgres.stop();
    postgres.restore(&backup);
    postgres.run().await;
    harness.reconnect().await;
    assert!(
        harness.positions().await.0 < emitted_until,
        "the backup does not end before the emitted position"
    );
    // A server behind the emitted position is refused by the position alone.
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("lost committed"), "{report}");
    // The database goes on, and its WAL grows past that position.
    for id in 100..400 {
        harness.row("new", id, 1, "made").await;
    }
    assert!(harness.positions().await.0 > emitted_until, "the WAL does not end after the emitted position");
    // The relay checks again by itself, and so does a new one.
    let other = harness.start();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(8);
    while std::time::Instant::now() < until {
        for relay in [&relay, &other] {
            let report = relay.get("/health").unwrap_or_default();
            assert!(
                !report.contains("\"state\":\"streaming\"") || all_new(&harness),
                "streams past rows: {report}"
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    relay.state("refused").await;
    other.state("refused").await;
    drop((relay, other, harness));
}

fn all_new(harness: &Harness) -> bool {
    kafka::read(&harness.topic()).iter().filter(|event| event.key == "new").count() == 300
}
