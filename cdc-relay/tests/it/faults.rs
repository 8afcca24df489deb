//! Ends sessions and relays under load: nothing is lost, nothing overtakes, nothing is invented.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Harness, connect, eventually};
use crate::kafka::distinct;
use crate::load::under_load;

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_walsender_under_load_loses_and_reorders_nothing() {
    let mut harness = Harness::new("walsender").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for _ in 0..10 {
        load.more(60).await;
        eventually("a session to end", || async { harness.kill_walsender().await.then_some(()) }).await;
    }
    load.stop().await;
    oracle.judge(&harness).await.expect(200);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_relay_under_load_loses_and_reorders_nothing() {
    let mut harness = Harness::new("kill9").await;
    let (first, oracle, load) = under_load(&mut harness, true).await;
    first.kill();
    for round in 0..8u64 {
        let relay = harness.streaming().await;
        // Another moment each time: before, during and after the writes of the checkpoint and of the slot.
        tokio::time::sleep(Duration::from_millis(60 + 47 * round)).await;
        relay.kill();
    }
    load.stop().await;
    let relay = harness.streaming().await;
    oracle.judge(&harness).await.expect(200);
    drop(relay);
}

/// The relay loses its session while it is suspended. When it wakes, the other has emitted what it still holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_suspended_cannot_spoil_what_its_successor_emitted() {
    let mut harness = Harness::new("asleep").await;
    let (mut sleeper, oracle, load) = under_load(&mut harness, true).await;
    for _ in 0..3 {
        let other = harness.start();
        other.state("standby").await;
        sleeper.signal(Signal::STOP);
        other.streams().await;
        load.more(100).await;
        sleeper.signal(Signal::CONT);
        sleeper.state("standby").await;
        // At once: perhaps the suspended relay has just saved a checkpoint.
        other.kill();
        sleeper.streams().await;
        load.more(50).await;
        sleeper = {
            sleeper.kill();
            harness.streaming().await
        };
    }
    load.stop().await;
    oracle.judge(&harness).await.expect(400);
    drop(sleeper);
}

/// Two relays die one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_under_load_loses_and_reorders_nothing() {
    let mut harness = Harness::new("relief").await;
    let (mut relay, oracle, load) = under_load(&mut harness, true).await;
    for _ in 0..4 {
        let standby = harness.start();
        standby.state("standby").await;
        load.more(60).await;
        relay.kill();
        relay = standby;
        relay.streams().await;
    }
    load.stop().await;
    oracle.judge(&harness).await.expect(300);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_the_first_start_neither_wedges_nor_loses() {
    let mut harness = Harness::new("first").await;
    // An open transaction keeps the server from making the slot: the crash is between checkpoint and slot.
    let mut other = connect(&harness.url).await;
    let open = other.transaction().await.expect("begin");
    open.batch_execute("insert into items (owner, id, version) values ('x', 1, 1)").await.expect("insert");
    let relay = harness.start();
    let making =
        "select 1 from pg_stat_activity where query ilike 'create_replication_slot%' and datname = $1";
    eventually("the slot to be in the making", || async {
        (!harness.sql.query(making, &[&harness.name]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    relay.kill();
    open.commit().await.expect("commit");
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    drop(relay);
}
