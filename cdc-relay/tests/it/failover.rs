//! Tests `failover` to a promoted standby: the source goes on only where the standby has all that was emitted.

use serde_json::Value;
use stack::servers::Server;

use crate::continuity::used;
use crate::harness::{Harness, Servers};
use crate::kafka;
use crate::load::under_load;
use crate::servers::{PrivateServer, permits};

/// The exit code and the answer.
async fn failover(harness: &Harness, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = harness.command("failover");
    command.arg("--json").args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("the program"));
    let output = output.await.expect("failover");
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), answer)
}

/// Fails unless failover refuses for this reason and leaves the checkpoint alone.
async fn fails(harness: &Harness, reason: &str) {
    let before = checkpoint(harness);
    let (code, answer) = failover(harness, &["--yes"]).await;
    assert_eq!((code, &answer["done"]), (Some(1), &false.into()), "{answer}");
    assert!(answer["obstacle"].as_str().is_some_and(|why| why.contains(reason)), "{answer}");
    assert_eq!(checkpoint(harness), before);
}

fn checkpoint(harness: &Harness) -> String {
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("a checkpoint").value
}

async fn promote(postgres: &mut PrivateServer, harness: &mut Harness) {
    postgres.promote_at_next_start();
    postgres.run().await;
    harness.reconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_load_costs_nothing_where_the_standby_has_all_that_was_emitted() {
    let _permits = permits(1).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut harness = Harness::on(servers, "promoted").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    load.more(100).await;
    postgres.crash();
    promote(&mut postgres, &mut harness).await;
    load.more(50).await;
    let report = relay.state("refused").await;
    assert!(report.contains("cdc-relay failover"), "{report}");
    // The relay cannot read a queue back: an operator has to accept that.
    let (code, answer) = failover(&harness, &[]).await;
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer["caveats"][0].as_str().is_some_and(|what| what.contains("a queue")), "{answer}");
    assert_eq!((&answer["obstacle"], &answer["done"]), (&Value::Null, &false.into()), "{answer}");
    let (code, answer) = failover(&harness, &["--yes"]).await;
    assert_eq!((code, &answer["done"]), (Some(0), &true.into()), "{answer}");
    assert_eq!((&answer["checkpoint_timeline"], &answer["timeline"]), (&1.into(), &2.into()));
    relay.streams().await;
    load.more(100).await;
    load.stop().await;
    oracle.judge(&harness).await.expect(200);
    // A relay that runs saves its progress whenever the server's WAL grows, as at a checkpoint of Postgres.
    assert_eq!(relay.stop().await, Some(0));
    fails(&harness, "nothing was promoted").await;
}

/// The server was promoted without the last transactions, which were emitted.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lacks_emitted_transactions_is_refused_even_if_the_checkpoint_is_behind() {
    let _permits = permits(1).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness = used(&postgres, "behind").await;
    postgres.stop();
    let (backup, saved) = (postgres.back_up(), checkpoint(&harness));
    postgres.run().await;
    harness.reconnect().await;
    let relay = harness.streaming().await;
    for id in 2..30 {
        harness.row("a", id, 1, "made").await;
    }
    harness.confirmed().await;
    relay.kill();
    harness.slot_is_free().await;
    postgres.stop();
    postgres.restore(&backup);
    promote(&mut postgres, &mut harness).await;
    fails(&harness, "do not exist on this server").await;
    // The state after a crash of the relay right after it emitted them: only Kafka has them.
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}", harness.name));
    kafka::write(&topic, &key, None);
    kafka::write(&topic, &key, Some(&saved));
    fails(&harness, "do not exist on this server").await;
    let relay = harness.start();
    relay.state("refused").await;
    drop((relay, harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_without_the_slot_is_refused() {
    let _permits = permits(1).await;
    let mut postgres = PrivateServer::start(Server::Postgres).await;
    let mut harness = used(&postgres, "no_slot").await;
    postgres.stop();
    promote(&mut postgres, &mut harness).await;
    harness.sql.execute("select pg_drop_replication_slot($1)", &[&harness.name]).await.expect("drop");
    fails(&harness, "does not exist on this server").await;
    // A slot made by hand begins too late.
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    harness.sql.execute(make, &[&harness.name]).await.expect("make");
    fails(&harness, "made anew").await;
    drop(harness);
}
