//! A broker or a cache is away: payments are still accepted, nothing is lost, and the flow resumes by itself.

use std::time::Duration;

use futures_util::future::join_all;

use crate::world::{PATIENCE, World};

/// Accepts payments while `server` is away, and expects every one of them to end well after it is back.
async fn accepted_without(server: &'static str) {
    let world = World::alone().await;
    let user = world.client.user_with(10_000).await.unwrap();
    let before = world.client.pay(user, "0812", 10).await.unwrap();
    world.cargo_stack("stop", server).await;
    // One after the other, so that the outage is felt by each step of some payment.
    let mut accepted = vec![before];
    for _ in 0..20 {
        accepted.push(world.client.pay(user, "0812", 10).await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.cargo_stack("start", server).await;
    let ends = accepted.iter().map(|id| world.client.ended(user, *id, PATIENCE));
    for payment in join_all(ends).await {
        assert_eq!(payment.unwrap()["status"], "completed");
    }
    assert_eq!(world.client.balance(user).await.unwrap(), (10_000 - 210, 0));
    world.adds_up().await;
}

#[tokio::test]
async fn kafka_may_be_away() {
    accepted_without("kafka").await;
}

#[tokio::test]
async fn rabbitmq_may_be_away() {
    accepted_without("rabbitmq").await;
}

#[tokio::test]
async fn redis_may_be_away() {
    accepted_without("redis").await;
}
