//! Cancelling: recorded at once, decided by the processor, which alone knows whether a call was made.

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};
use crate::payments::statuses;

const CANCELLED: [&str; 4] = ["initiated", "authorized", "cancel_requested", "cancelled"];

#[tokio::test]
async fn a_payment_cancelled_before_its_hold_is_never_charged() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    // Without Kafka nothing is held, so the cancel is certain to come first.
    harness.cargo_stack("stop", "kafka").await;
    let payment_id = harness.client.pay(user, "0812", 400).await.unwrap();
    for _ in 0..2 {
        let response = harness.client.cancel(user, payment_id).await.unwrap();
        assert_eq!(response.status(), 202);
        let payment: Value = response.json().await.unwrap();
        assert_eq!((&payment["status"], payment["version"].as_i64()), (&"initiated".into(), Some(2)));
        assert_eq!(payment["cancel"], "requested");
    }
    harness.cargo_stack("start", "kafka").await;
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!((&payment["status"], &payment["cancel"]), (&"cancelled".into(), &"honoured".into()));
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000, 0));
    assert_eq!(harness.client.gateway_charge(payment_id).await.unwrap(), None);
    harness.adds_up().await;
}

#[tokio::test]
async fn a_payment_cancelled_between_its_hold_and_its_call_is_never_charged() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    // Without the queue there is no work, so the cancel is certain to come first.
    harness.cargo_stack("stop", "rabbitmq").await;
    let payment_id = harness.client.pay(user, "0812", 400).await.unwrap();
    harness.client.wait_for_status(user, payment_id, "authorized", WAIT_TIMEOUT).await.unwrap();
    assert_eq!(harness.client.cancel(user, payment_id).await.unwrap().status(), 202);
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(
        (&payment["status"], statuses(&payment).as_slice()),
        (&"cancelled".into(), CANCELLED.as_slice())
    );
    harness.cargo_stack("start", "rabbitmq").await;
    // Its work message comes after all; the next one is taken after it.
    let next = harness.settle(user, "0812", 100).await;
    assert_eq!(next["status"], "completed");
    assert_eq!(harness.client.gateway_charge(payment_id).await.unwrap(), None);
    assert_eq!(harness.client.balance(user).await.unwrap(), (900, 0));
    harness.adds_up().await;
}

#[tokio::test]
async fn a_payment_cancelled_while_the_gateway_cannot_be_called_is_never_charged() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.cargo_stack("stop", "gateway-sim").await;
    let payment_id = harness.client.pay(user, "0812", 400).await.unwrap();
    // Its pauses have grown to seconds, and a call that is refused takes none.
    harness.charge(payment_id, "status = 'waiting' and attempt >= 2").await;
    assert_eq!(harness.client.cancel(user, payment_id).await.unwrap().status(), 202);
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(
        (&payment["status"], statuses(&payment).as_slice()),
        (&"cancelled".into(), CANCELLED.as_slice())
    );
    harness.cargo_stack("start", "gateway-sim").await;
    assert_eq!(harness.client.gateway_charge(payment_id).await.unwrap(), None);
    assert_eq!(harness.client.balance(user).await.unwrap(), (1_000, 0));
    harness.adds_up().await;
}

#[tokio::test]
async fn a_cancel_while_the_outcome_is_unknown_comes_too_late_and_the_payment_goes_its_way() {
    let harness = Harness::shared().await;
    for (words_of_gateway, end, left) in
        [("thenhttp500-lag4500", "completed", 600), ("decline-http500", "failed", 1_000)]
    {
        let user = harness.client.user_with(1_000).await.unwrap();
        let number = format!("5551234-{words_of_gateway}");
        let payment_id = harness.client.pay(user, &number, 400).await.unwrap();
        harness.charge(payment_id, "status = 'unknown'").await;
        assert_eq!(harness.client.cancel(user, payment_id).await.unwrap().status(), 202);
        let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        assert_eq!((&payment["status"], &payment["cancel"]), (&end.into(), &"refused".into()));
        assert_eq!(statuses(&payment), ["initiated", "authorized", "cancel_requested", end]);
        assert_eq!(harness.client.balance(user).await.unwrap(), (left, 0));
    }
}

#[tokio::test]
async fn a_cancel_during_the_call_comes_too_late_and_the_payment_goes_its_way() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, "5551234-slow5000", 400).await.unwrap();
    harness.client.wait_for_status(user, payment_id, "authorized", WAIT_TIMEOUT).await.unwrap();
    harness.committed_charge(payment_id).await;
    assert_eq!(harness.client.cancel(user, payment_id).await.unwrap().status(), 202);
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(payment["status"], "completed");
    assert_eq!(statuses(&payment), ["initiated", "authorized", "cancel_requested", "completed"]);
    assert_eq!(harness.client.balance(user).await.unwrap(), (600, 0));
}

#[tokio::test]
async fn what_has_ended_or_is_not_ours_cannot_be_cancelled() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment = harness.settle(user, "0812", 400).await;
    let payment_id: Uuid = payment["payment_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(payment["cancel"], Value::Null);
    let response = harness.client.cancel(user, payment_id).await.unwrap();
    assert_eq!(response.status(), 409);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], "urn:coro:problem:payment-ended");
    assert_eq!(problem["detail"], "It is completed.");
    let nobody = Uuid::now_v7();
    assert_eq!(harness.client.cancel(nobody, payment_id).await.unwrap().status(), 404);
    assert_eq!(harness.client.cancel(user, Uuid::now_v7()).await.unwrap().status(), 404);
}
