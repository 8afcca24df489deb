//! Ends relays at each failpoint under load: the next relay loses, reorders and invents nothing.
//!
//! * Each failpoint ends several relays: one at once, others after a number of passes.

use cdc_relay::failpoints::Failpoint;
use rustix::process::Signal;

use crate::harness::{Harness, Relay, eventually};
use crate::kafka;
use crate::load::under_load;
use crate::rabbit::cuttable;

/// Ends one relay after another at the failpoint, each after another number of passes, then judges.
async fn ends(failpoint: Failpoint, passes: [u32; 3]) {
    let mut harness = Harness::new(failpoint.name()).await;
    let (first, oracle, load) = under_load(&mut harness, true).await;
    first.kill();
    for passed in passes {
        end(&mut harness, failpoint, passed).await;
        load.more(20).await;
    }
    load.stop().await;
    let relay = harness.streaming().await;
    oracle.judge(&harness).await.expect(100);
    drop(relay);
}

async fn end(harness: &mut Harness, failpoint: Failpoint, passed: u32) {
    let failpoints = format!("{}={passed}*off->return", failpoint.name());
    let mut relay = harness.start_with(&[], &[("FAILPOINTS", &failpoints)]);
    aborted(&mut relay, failpoint).await;
}

async fn aborted(relay: &mut Relay, failpoint: Failpoint) {
    let mut last = None;
    eventually(&format!("the end at {failpoint:?}"), || {
        last = last.or(relay.ended());
        std::future::ready(last)
    })
    .await;
    assert_eq!(last, Some(Some(Signal::ABORT.as_raw())), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn rows_that_were_read_and_not_produced_are_not_lost() {
    ends(Failpoint::BeforeProduce, [0, 1, 500]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn rows_that_were_produced_and_not_acknowledged_are_not_lost() {
    ends(Failpoint::AfterProduce, [0, 1, 500]).await;
}

/// RabbitMQ is away meanwhile, so that it has none of the transactions that Kafka acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn work_of_transactions_that_only_kafka_has_is_not_lost() {
    let mut harness = Harness::new("only_kafka").await;
    let proxy = cuttable(&mut harness).await;
    let (first, oracle, load) = under_load(&mut harness, true).await;
    first.kill();
    proxy.cut();
    for passed in [0, 1, 200] {
        end(&mut harness, Failpoint::AfterKafka, passed).await;
        load.more(20).await;
    }
    proxy.mend();
    load.stop().await;
    let relay = harness.streaming().await;
    oracle.judge(&harness).await.expect(100);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn events_of_transactions_that_perhaps_only_rabbitmq_has_are_not_lost() {
    ends(Failpoint::AfterRabbit, [0, 1, 50]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn acknowledged_transactions_without_a_checkpoint_are_neither_lost_nor_skipped() {
    ends(Failpoint::BeforeCheckpoint, [0, 1, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn a_slot_that_is_behind_the_checkpoint_loses_nothing_and_starts_again() {
    ends(Failpoint::AfterCheckpoint, [0, 1, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn a_slot_that_was_just_confirmed_is_not_ahead_of_the_checkpoint() {
    ends(Failpoint::AfterConfirm, [0, 1, 5]).await;
}

/// The loss it prevents: a checkpoint has the table as read, and does not have that the stream passed an older change of
/// a row. The next session would emit the older change last.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a program with failpoints: CONTRIBUTING.md"]
async fn a_table_that_is_healed_does_not_end_with_an_older_state() {
    let mut harness = Harness::new("heals_saved").await;
    let relay = harness.streaming().await;
    harness.row("a", 2, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let changes = "update items set version = 2;
                   alter publication events drop table items;
                   update items set version = 3;
                   alter publication events add table items";
    for change in changes.split(';') {
        harness.sql.batch_execute(change).await.expect("a change");
    }
    let relay = harness.start();
    relay.state("refused").await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let healed = harness.command("resnapshot").args(["--table", "items"]).output().expect("the program");
    assert!(healed.status.success(), "{}", String::from_utf8_lossy(&healed.stderr));
    for passed in [0, 1, 2] {
        end(&mut harness, Failpoint::BeforeCheckpoint, passed).await;
    }
    let relay = harness.streaming().await;
    harness.confirmed().await;
    eventually("the newest state last", || async {
        let events = kafka::read(&harness.topic());
        (events.last()?.header("ce_id") == "it/items/a/2/3").then_some(())
    })
    .await;
    drop(relay);
}

#[test]
fn no_failpoint_is_without_its_test() {
    use Failpoint::{
        AfterCheckpoint, AfterConfirm, AfterKafka, AfterProduce, AfterRabbit, BeforeCheckpoint, BeforeProduce,
    };
    let tested = [
        BeforeProduce,
        AfterProduce,
        AfterKafka,
        AfterRabbit,
        BeforeCheckpoint,
        AfterCheckpoint,
        AfterConfirm,
    ];
    assert_eq!(Failpoint::ALL, tested);
}
