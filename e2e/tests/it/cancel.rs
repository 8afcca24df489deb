//! Cancelling: recorded at once, decided by the processor, which alone knows whether a call was made.

use serde_json::Value;
use uuid::Uuid;

use crate::world::{PATIENCE, World};

#[tokio::test]
async fn a_payment_cancelled_before_its_hold_is_never_charged() {
    let world = World::alone().await;
    let user = world.client.user_with(1_000).await.unwrap();
    // Without Kafka nothing is held, so the cancel is certain to come first.
    world.cargo_stack("stop", "kafka").await;
    let payment_id = world.client.pay(user, "0812", 400).await.unwrap();
    for _ in 0..2 {
        let response = world.client.cancel(user, payment_id).await.unwrap();
        assert_eq!(response.status(), 202);
        let payment: Value = response.json().await.unwrap();
        assert_eq!((&payment["status"], payment["version"].as_i64()), (&"initiated".into(), Some(2)));
    }
    world.cargo_stack("start", "kafka").await;
    let payment = world.client.ended(user, payment_id, PATIENCE).await.unwrap();
    assert_eq!(payment["status"], "cancelled");
    assert_eq!(world.client.balance(user).await.unwrap(), (1_000, 0));
    assert_eq!(world.client.gateway_charge(payment_id).await.unwrap(), None);
    world.adds_up().await;
}

#[tokio::test]
async fn a_cancel_during_the_call_comes_too_late_and_the_payment_goes_its_way() {
    let world = World::shared().await;
    let user = world.client.user_with(1_000).await.unwrap();
    let payment_id = world.client.pay(user, "5551234-slow3000", 400).await.unwrap();
    world.client.reached(user, payment_id, "authorized", PATIENCE).await.unwrap();
    world.committed_charge(payment_id).await;
    assert_eq!(world.client.cancel(user, payment_id).await.unwrap().status(), 202);
    let payment = world.client.ended(user, payment_id, PATIENCE).await.unwrap();
    assert_eq!(payment["status"], "completed");
    let words: Vec<_> =
        payment["timeline"].as_array().unwrap().iter().map(|m| m["status"].as_str().unwrap()).collect();
    assert_eq!(words, ["initiated", "authorized", "cancel_requested", "completed"]);
    assert_eq!(world.client.balance(user).await.unwrap(), (600, 0));
}

#[tokio::test]
async fn what_has_ended_or_is_not_ours_cannot_be_cancelled() {
    let world = World::shared().await;
    let user = world.client.user_with(1_000).await.unwrap();
    let payment = world.settle(user, "0812", 400).await;
    let payment_id: Uuid = payment["payment_id"].as_str().unwrap().parse().unwrap();
    let response = world.client.cancel(user, payment_id).await.unwrap();
    assert_eq!(response.status(), 409);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], "urn:coro:problem:payment-ended");
    assert_eq!(problem["detail"], "It is completed.");
    let nobody = Uuid::now_v7();
    assert_eq!(world.client.cancel(nobody, payment_id).await.unwrap().status(), 404);
    assert_eq!(world.client.cancel(user, Uuid::now_v7()).await.unwrap().status(), 404);
}
