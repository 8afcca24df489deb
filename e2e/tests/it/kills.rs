//! `kill -9` of each of our processes in the middle of a load: every accepted payment ends as planned,
//! and money adds up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use e2e::client::order;
use futures_util::future::join_all;
use serde_json::Value;
use uuid::Uuid;

use crate::world::{PATIENCE, World};

const USERS: usize = 20;
const PAYMENTS: usize = 300;
const AMOUNT: i64 = 10;

/// What the plan says of the payment at an index.
fn plan(index: usize) -> (&'static str, i64, &'static str) {
    match index % 10 {
        0 => ("0812-decline", AMOUNT, "failed"),
        1 => ("0812", 1_000_000_000, "rejected"),
        _ => ("0812", AMOUNT, "completed"),
    }
}

/// Sends the request until it is accepted, as a client that must know would.
async fn insist(world: &World, user: Uuid, index: usize) -> Uuid {
    let (client_number, amount, _) = plan(index);
    let body = order(client_number, &world.stack.demo_service_id, amount, &format!("payment {index}"));
    loop {
        if let Ok(response) = world.client.post_payment(user, &body).await {
            if response.status() == 201 {
                let payment: Value = response.json().await.unwrap();
                return payment["payment_id"].as_str().unwrap().parse().unwrap();
            }
            assert!(response.status().is_server_error(), "{}", response.text().await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn survives_kill_of(process: &'static str) {
    let world = World::alone().await;
    let users = join_all((0..USERS).map(|_| world.client.user_with(100_000))).await;
    let users: Vec<Uuid> = users.into_iter().map(Result::unwrap).collect();
    let accepted = AtomicUsize::new(0);
    let pay = |index: usize| {
        let (world, accepted, user) = (&world, &accepted, users[index % USERS]);
        async move {
            // Spread over three seconds, so that the kill finds payments at every step.
            tokio::time::sleep(Duration::from_millis(10 * index as u64)).await;
            let payment_id = insist(world, user, index).await;
            accepted.fetch_add(1, Ordering::Relaxed);
            (index, world.client.ended(user, payment_id, PATIENCE).await)
        }
    };
    let kill = async {
        while accepted.load(Ordering::Relaxed) < PAYMENTS / 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.cargo_stack("kill", process).await;
    };
    let (ended, ()) = tokio::join!(join_all((0..PAYMENTS).map(pay)), kill);
    for (index, payment) in ended {
        let payment = payment.unwrap();
        assert_eq!(payment["status"], plan(index).2, "{payment}");
    }
    world.adds_up().await;
}

#[tokio::test]
async fn payments_svc_may_be_killed() {
    survives_kill_of("payments-svc").await;
}

#[tokio::test]
async fn balance_svc_may_be_killed() {
    survives_kill_of("balance-svc").await;
}

#[tokio::test]
async fn processor_svc_may_be_killed() {
    survives_kill_of("processor-svc").await;
}

#[tokio::test]
async fn cdc_relay_may_be_killed() {
    survives_kill_of("cdc-relay").await;
}

#[tokio::test]
async fn gateway_sim_may_be_killed() {
    survives_kill_of("gateway-sim").await;
}
