//! A standby that was promoted: gone on with where it has all that was told, and where that is not so, not.

use serde_json::Value;
use stack::servers::Server;

use crate::history::used;
use crate::kafka;
use crate::load::under_load;
use crate::outages::ALONE;
use crate::rig::{Rig, Servers};
use crate::servers::Private;

/// The exit code and the answer.
async fn failover(rig: &Rig, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = rig.command("failover");
    command.arg("--json").args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("the program"));
    let output = output.await.expect("failover");
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), answer)
}

/// Nothing was changed, for this reason.
async fn fails(rig: &Rig, reason: &str) {
    let before = memory(rig);
    let (code, answer) = failover(rig, &["--yes"]).await;
    assert_eq!((code, &answer["done"]), (Some(1), &false.into()), "{answer}");
    assert!(answer["obstacle"].as_str().is_some_and(|why| why.contains(reason)), "{answer}");
    assert_eq!(memory(rig), before);
}

fn memory(rig: &Rig) -> String {
    let (topic, key) = (format!("{}.state", rig.name), format!("it/{}", rig.name));
    kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("memory").value
}

async fn promote(postgres: &mut Private, rig: &mut Rig) {
    postgres.promote_at_next_start();
    postgres.run().await;
    rig.reconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_load_costs_nothing_where_all_that_was_told_is_there() {
    let _alone = ALONE.lock().await;
    let mut postgres = Private::start(Server::Postgres).await;
    let servers = Servers { postgres: postgres.address(), ..Servers::shared() };
    let mut rig = Rig::on(servers, "promoted").await;
    let (relay, oracle, load) = under_load(&mut rig, true).await;
    load.more(100).await;
    postgres.crash();
    promote(&mut postgres, &mut rig).await;
    load.more(50).await;
    let report = relay.state("refused").await;
    assert!(report.contains("cdc-relay failover"), "{report}");
    // A queue cannot be read back: somebody has to answer for it.
    let (code, answer) = failover(&rig, &[]).await;
    assert_eq!(code, Some(1), "{answer}");
    assert!(answer["caveats"][0].as_str().is_some_and(|what| what.contains("a queue")), "{answer}");
    assert_eq!((&answer["obstacle"], &answer["done"]), (&Value::Null, &false.into()), "{answer}");
    let (code, answer) = failover(&rig, &["--yes"]).await;
    assert_eq!((code, &answer["done"]), (Some(0), &true.into()), "{answer}");
    assert_eq!((&answer["told_timeline"], &answer["timeline"]), (&1.into(), &2.into()));
    relay.streams().await;
    load.more(100).await;
    load.stop().await;
    oracle.judge(&rig).await.expect(200);
    fails(&rig, "nothing was promoted").await;
    drop((relay, rig));
}

/// The server was promoted without the last transactions, which were told.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lacks_what_was_told_is_not_gone_on_with_even_if_the_memory_is_behind() {
    let _alone = ALONE.lock().await;
    let mut postgres = Private::start(Server::Postgres).await;
    let mut rig = used(&postgres, "behind").await;
    postgres.stop();
    let (backup, remembered) = (postgres.back_up(), memory(&rig));
    postgres.run().await;
    rig.reconnect().await;
    let relay = rig.streaming().await;
    for id in 2..30 {
        rig.row("a", id, 1, "made").await;
    }
    rig.confirmed().await;
    relay.kill();
    rig.slot_is_free().await;
    postgres.stop();
    postgres.restore(&backup);
    promote(&mut postgres, &mut rig).await;
    fails(&rig, "never was, here").await;
    // As after a crash of the relay right after it told them: only Kafka knows.
    let (topic, key) = (format!("{}.state", rig.name), format!("it/{}", rig.name));
    kafka::write(&topic, &key, None);
    kafka::write(&topic, &key, Some(&remembered));
    fails(&rig, "never was, here").await;
    let relay = rig.start();
    relay.state("refused").await;
    drop((relay, rig));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_without_the_slot_is_not_gone_on_with() {
    let _alone = ALONE.lock().await;
    let mut postgres = Private::start(Server::Postgres).await;
    let mut rig = used(&postgres, "no_slot").await;
    postgres.stop();
    promote(&mut postgres, &mut rig).await;
    rig.sql.execute("select pg_drop_replication_slot($1)", &[&rig.name]).await.expect("drop");
    fails(&rig, "did not come along").await;
    // Made by hand instead, it begins too late.
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    rig.sql.execute(make, &[&rig.name]).await.expect("make");
    fails(&rig, "made anew").await;
    drop(rig);
}
