//! Several instances: they share the work, and take over what one leaves behind.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::{Behaviour, Receiver};

const PAYMENTS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_the_work_and_a_kill_in_mid_delivery_loses_nothing() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let flags = [
        // Long enough for each delivery that does not hang: what the first phase counts is delivered once.
        "--attempt-s=6",
        "--lease-grace-s=3",
        "--deliveries-max=4",
        "--channel-max=4",
        "--retries-s=1,1,1,1,1,1",
    ];
    let (first, second) = (harness.process(&flags).await, harness.process(&flags).await);
    let secret = first.endpoint("billing", receiver.url("/")).await;
    let delivered = "notifier_attempts_total{kind=\"webhook\",outcome=\"delivered\"}";
    let mut published = 0;
    // The second joins the group when it can.
    while first.metric(delivered).await == 0.0 || second.metric(delivered).await == 0.0 {
        assert!(published < 20 * PAYMENTS, "only one of them delivers");
        for _ in 0..PAYMENTS {
            harness.end_payment(Uuid::now_v7(), "completed");
        }
        published += PAYMENTS;
        harness.until("delivered_at is not null", i64::try_from(published).unwrap()).await;
    }
    assert_eq!(receiver.received("/").len(), published, "and none was delivered twice");

    // Deliveries of the first hang when it is killed.
    receiver.set("/", Behaviour::Hang);
    for _ in 0..PAYMENTS {
        harness.end_payment(Uuid::now_v7(), "failed");
    }
    let under_way = "notifier_deliveries_under_way";
    eventually("the first is delivering", async || (first.metric(under_way).await > 0.0).then_some(())).await;
    first.kill().await;
    receiver.set("/", Behaviour::status("200 OK"));
    harness.until("delivered_at is not null", i64::try_from(published + PAYMENTS).unwrap()).await;

    let mut by_id: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for received in receiver.received("/") {
        received.verify(&secret);
        by_id.entry(received.id().to_owned()).or_default().push(received.body);
    }
    assert_eq!(by_id.len(), published + PAYMENTS, "one id per payment");
    assert!(by_id.values().any(|bodies| bodies.len() > 1), "some were repeated");
    for bodies in by_id.values() {
        assert!(bodies.iter().all(|body| *body == bodies[0]), "a repeat says the same");
    }
    second.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_claimed_before_a_kill_is_delivered_by_the_next_instance() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::Hang);
    let flags = ["--attempt-s=1", "--lease-grace-s=1", "--retries-s=1,1,1,1,1,1,1,1"];
    let first = harness.process(&flags).await;
    first.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    eventually("it is delivering", async || receiver.received("/").first().cloned()).await;
    first.kill().await;
    receiver.set("/", Behaviour::status("200 OK"));
    let second = harness.notifier(&flags).await;
    harness.until("delivered_at is not null", 1).await;
    let received = receiver.received("/");
    assert!(received.len() >= 2 && received[0].id() == received[1].id());
    second.stop().await;
    harness.finish().await;
}
