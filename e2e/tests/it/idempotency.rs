//! The same request again is the same payment, with the same bytes; a used key takes no other body.

use futures_util::future::join_all;
use serde_json::Value;

use crate::harness::Harness;
use crate::raw_http::request;

#[tokio::test]
async fn a_repeated_request_gets_the_same_201_even_after_the_payment_ended() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let body = harness.order(100, "same");
    let first = harness.client.post_payment(user, &body).await.unwrap();
    assert_eq!(first.status(), 201);
    assert!(!first.headers().contains_key("idempotent-replayed"));
    let location = first.headers()["location"].clone();
    let first = first.text().await.unwrap();
    let payment: Value = serde_json::from_str(&first).unwrap();
    let id = payment["payment_id"].as_str().unwrap();
    assert_eq!(location, format!("/payments/{id}"));
    harness.client.wait_for_end(user, id.parse().unwrap(), crate::harness::WAIT_TIMEOUT).await.unwrap();

    let again = harness.client.post_payment(user, &body).await.unwrap();
    assert_eq!(again.status(), 201);
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.headers()["location"], location);
    assert_eq!(again.text().await.unwrap(), first);
    assert_eq!(harness.client.balance(user).await.unwrap(), (900, 0));
}

#[tokio::test]
async fn twenty_at_once_make_one_payment() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let body = harness.order(100, "at once");
    let answers = join_all((0..20).map(|_| harness.client.post_payment(user, &body))).await;
    let mut bodies = Vec::new();
    let mut replays = 0;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 201);
        replays += usize::from(answer.headers().contains_key("idempotent-replayed"));
        bodies.push(answer.text().await.unwrap());
    }
    bodies.dedup();
    assert_eq!((bodies.len(), replays), (1, 19));
    assert_eq!(harness.payments_of(user).await, 1);
    let payment: Value = serde_json::from_str(&bodies[0]).unwrap();
    let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
    harness.client.wait_for_end(user, id, crate::harness::WAIT_TIMEOUT).await.unwrap();
    assert_eq!(harness.client.balance(user).await.unwrap(), (900, 0));
}

#[tokio::test]
async fn another_body_under_the_same_key_is_refused() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let first = harness.client.post_payment(user, &harness.order(100, "reused")).await.unwrap();
    assert_eq!(first.status(), 201);
    let payment: Value = first.json().await.unwrap();
    let refused = harness.client.post_payment(user, &harness.order(101, "reused")).await.unwrap();
    assert_eq!(refused.status(), 422);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "urn:coro:problem:idempotency-key-reused");
    assert_eq!(problem["payment_id"], payment["payment_id"], "the payment of the key is named");
    assert_eq!(harness.payments_of(user).await, 1);
    let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
    harness.client.wait_for_end(user, id, crate::harness::WAIT_TIMEOUT).await.unwrap();
}

/// The key in the header, quoted or bare, is the key in the body; the list finds its payment.
#[tokio::test]
async fn a_key_may_stand_in_the_header_and_finds_its_payment() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let id = user.to_string();
    let in_body = harness.order(100, "order \"7\"");
    let mut without = in_body.clone();
    without.as_object_mut().unwrap().remove("idempotency_key");
    let (with, without) = (in_body.to_string(), without.to_string());
    let mut payments = Vec::new();
    for (header, body) in [
        (Some("\"order \\\"7\\\"\""), &without),
        (Some("order \"7\""), &without),
        (Some("order \"7\""), &with),
        (None, &with),
    ] {
        let mut headers = vec![("host", "test"), ("x-user-id", &id), ("content-type", "application/json")];
        headers.extend(header.map(|value| ("idempotency-key", value)));
        let answer = request(&harness.stack.edge_url, "POST /payments HTTP/1.1", &headers, body).await;
        assert_eq!(answer.status, 201, "{header:?}: {answer:?}");
        payments.push(answer.body);
    }
    payments.dedup();
    assert_eq!(payments.len(), 1, "{payments:?}");
    let payment: Value = serde_json::from_str(&payments[0]).unwrap();
    let line = "GET /payments?idempotency_key=order%20%227%22 HTTP/1.1";
    let found = request(&harness.stack.edge_url, line, &[("host", "test"), ("x-user-id", &id)], "").await;
    let found: Value = serde_json::from_str(&found.body).unwrap();
    assert_eq!(found["payments"][0]["payment_id"], payment["payment_id"], "{found}");
    let payment_id = payment["payment_id"].as_str().unwrap().parse().unwrap();
    harness.client.wait_for_end(user, payment_id, crate::harness::WAIT_TIMEOUT).await.unwrap();
}

#[tokio::test]
async fn a_key_belongs_to_its_user() {
    let harness = Harness::shared().await;
    let (one, two) =
        (harness.client.user_with(100).await.unwrap(), harness.client.user_with(100).await.unwrap());
    let body = harness.order(10, "shared key");
    for user in [one, two] {
        let answer = harness.client.post_payment(user, &body).await.unwrap();
        assert_eq!(answer.status(), 201);
        assert!(!answer.headers().contains_key("idempotent-replayed"));
        let payment: Value = answer.json().await.unwrap();
        let id = payment["payment_id"].as_str().unwrap().parse().unwrap();
        harness.client.wait_for_end(user, id, crate::harness::WAIT_TIMEOUT).await.unwrap();
    }
}
