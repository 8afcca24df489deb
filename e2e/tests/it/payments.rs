//! Each way a payment can go, as the client and the balance show it.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::Harness;

pub fn statuses(payment: &Value) -> Vec<&str> {
    payment["timeline"].as_array().unwrap().iter().map(|m| m["status"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_payment_is_completed_and_its_money_is_taken() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(100_000).await.unwrap();
    let payment = harness.settle(user, "081234567890", 15_000).await;
    assert_eq!(payment["status"], "completed");
    assert_eq!(payment["reason"], Value::Null);
    assert_eq!(statuses(&payment), ["initiated", "authorized", "completed"]);
    assert_eq!(harness.client.balance(user).await.unwrap(), (85_000, 0));
    let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
    let charge = harness.client.gateway_charge(id).await.unwrap().unwrap();
    assert_eq!((charge["status"].as_str(), charge["amount"].as_i64()), (Some("succeeded"), Some(15_000)));
}

/// A page of a user's statement, as the edge answers: number, kind, balances after it; and the next cursor.
async fn statement(harness: &Harness, user: Uuid, query: &str) -> (Vec<Value>, Value) {
    let url = format!("{}/balance/movements?{query}", harness.stack.edge_url);
    let request = reqwest::Client::new().get(url).header("x-user-id", user.to_string());
    let mut page: Value = request.send().await.unwrap().json().await.unwrap();
    let parts = |movement: &Value| -> Value {
        ["entry_no", "kind", "available_after", "held_after"].map(|name| movement[name].clone()).into()
    };
    let movements = page["movements"].as_array().unwrap().iter().map(parts).collect();
    (movements, page["next_cursor"].take())
}

#[tokio::test]
async fn the_statement_shows_each_movement_and_what_it_left() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(100_000).await.unwrap();
    harness.settle(user, "081234567890", 15_000).await;
    harness.settle(user, "5551234-decline", 20_000).await;
    assert_eq!(harness.settle(user, "0812", 1_000_000).await["status"], "rejected");
    let (newest, cursor) = statement(&harness, user, "limit=3").await;
    let expected = [
        json!([5, "release", 85_000, 0]),
        json!([4, "hold", 65_000, 20_000]),
        json!([3, "capture", 85_000, 0]),
    ];
    assert_eq!(newest, expected);
    let next = format!("limit=3&cursor={}", cursor.as_str().unwrap());
    let (oldest, cursor) = statement(&harness, user, &next).await;
    assert_eq!(oldest, [json!([2, "hold", 85_000, 15_000]), json!([1, "deposit", 100_000, 0])]);
    assert_eq!(cursor, Value::Null);
}

#[tokio::test]
async fn a_payment_without_funds_is_rejected_and_nothing_moves() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(14_999).await.unwrap();
    let payment = harness.settle(user, "0812", 15_000).await;
    assert_eq!((&payment["status"], &payment["reason"]), (&"rejected".into(), &"insufficient_funds".into()));
    assert_eq!(statuses(&payment), ["initiated", "rejected"]);
    assert_eq!(harness.client.balance(user).await.unwrap(), (14_999, 0));
}

#[tokio::test]
async fn a_payment_of_a_user_without_account_is_rejected() {
    let harness = Harness::shared().await;
    let payment = harness.settle(Uuid::now_v7(), "0812", 1).await;
    assert_eq!((&payment["status"], &payment["reason"]), (&"rejected".into(), &"unknown_account".into()));
}

#[tokio::test]
async fn a_declined_payment_fails_and_its_money_comes_back() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(50_000).await.unwrap();
    let payment = harness.settle(user, "5551234-decline", 20_000).await;
    assert_eq!(payment["status"], "failed");
    assert!(payment["reason"].as_str().unwrap().starts_with("declined"), "{payment}");
    assert_eq!(statuses(&payment), ["initiated", "authorized", "failed"]);
    assert_eq!(harness.client.balance(user).await.unwrap(), (50_000, 0));
}

#[tokio::test]
async fn a_disabled_or_unknown_service_is_refused_at_the_door() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    for service in ["closed", "nobody"] {
        let mut body = harness.order(100, "key");
        body["service_id"] = service.into();
        let response = harness.client.post_payment(user, &body).await.unwrap();
        assert_eq!(response.status(), 422);
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["type"], "urn:coro:problem:service-not-enabled");
    }
    assert_eq!(harness.payments_of(user).await, 0);
}

#[tokio::test]
async fn somebody_elses_payment_does_not_exist() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, "0812", 10).await.unwrap();
    let refused = harness.client.payment(Uuid::now_v7(), payment_id).await.unwrap_err();
    assert!(refused.to_string().contains("404"), "{refused}");
    harness.client.wait_for_end(user, payment_id, crate::harness::WAIT_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn many_payments_of_one_user_spend_exactly_what_there_is() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payments = (0..30).map(|_| harness.settle(user, "0812", 50));
    let ended = futures_util::future::join_all(payments).await;
    let count = |status: &str| ended.iter().filter(|payment| payment["status"] == status).count();
    assert_eq!((count("completed"), count("rejected")), (20, 10));
    assert_eq!(harness.client.balance(user).await.unwrap(), (0, 0));
}

#[tokio::test]
async fn explain_shows_the_whole_life() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment = harness.settle(user, "0812", 10).await;
    let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
    // The last event may be emitted a moment after the row can be read.
    let wanted =
        ["payment.initiated.v1", "balance.held.v1", "payment.authorized.v1", "payment.result.succeeded.v1"];
    let life = coroctl::explain::life(&harness.stack, id).await.unwrap().to_string();
    for event in wanted {
        assert!(life.contains(event), "{event} is missing:\n{life}");
    }
    assert!(life.ends_with("It has ended: completed."), "{life}");
}
