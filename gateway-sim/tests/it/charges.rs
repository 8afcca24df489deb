//! Charging, and misbehaving while at it.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::gateway::{Gateway, body, found};

#[tokio::test]
async fn a_charge_is_made_once_per_key() {
    let gateway = Gateway::start(&[]).await;
    let (status, first) = gateway.charge("r1", "5551234").await;
    assert_eq!(status, 200);
    assert_eq!((&first["status"], &first["reference"]), (&json!("succeeded"), &json!("r1")));
    assert_eq!(first["amount"], json!(15_000));
    assert_eq!(gateway.charge("r1", "5551234").await, (StatusCode::OK, first.clone()));
    let (status, found) = gateway.get("/charges/r1").await;
    assert_eq!((status.as_u16(), serde_json::from_str::<Value>(&found).unwrap()), (200, first));

    let other = gateway.send("r1", &body("r1", 1, "5551234")).await.unwrap();
    assert_eq!(other.status(), 422);
    assert_eq!(gateway.ledger().await, [("r1".to_owned(), 15_000)]);
    gateway.end().await;
}

#[tokio::test]
async fn a_decline_is_recorded_and_charges_nothing() {
    let gateway = Gateway::start(&[]).await;
    for (reference, number, status) in [("r1", "1-decline", 402), ("r2", "1-decline200", 200)] {
        let first = gateway.charge(reference, number).await;
        assert_eq!((first.0.as_u16(), &first.1["status"]), (status, &json!("declined")));
        assert!(first.1["code"].is_string());
        assert_eq!(gateway.charge(reference, number).await, first);
        let (status, found) = gateway.get(&format!("/charges/{reference}")).await;
        assert_eq!((status.as_u16(), serde_json::from_str::<Value>(&found).unwrap()), (200, first.1));
    }
    assert!(gateway.ledger().await.is_empty());
    gateway.end().await;
}

#[tokio::test]
async fn refusals_are_problem_documents_and_charge_nothing() {
    let gateway = Gateway::start(&[]).await;
    let kind = |value: &Value| value["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    for bad in [body("", 1, "1"), body("r 1", 1, "1"), body("r1", 0, "1"), json!({}), json!("x")] {
        let reply = gateway.send("k", &bad).await.unwrap();
        assert_eq!(reply.status(), 400, "{bad}");
        assert_eq!(reply.headers()["content-type"], "application/problem+json");
        assert_eq!(kind(&reply.json().await.unwrap()), "invalid-charge");
    }
    let keyless = gateway.http.post(gateway.url("/charges")).json(&body("r1", 1, "1")).send().await.unwrap();
    assert_eq!(keyless.status(), 400);
    assert_eq!(kind(&keyless.json().await.unwrap()), "idempotency-key-required");
    let (status, text) = gateway.get("/charges/r1").await;
    assert_eq!(
        (status.as_u16(), kind(&serde_json::from_str(&text).unwrap())),
        (404, "charge-not-found".into())
    );
    let (status, text) = gateway.get("/nothing").await;
    assert_eq!((status.as_u16(), kind(&serde_json::from_str(&text).unwrap())), (404, "not-found".into()));
    assert!(gateway.ledger().await.is_empty());
    gateway.end().await;
}

#[tokio::test]
async fn while_the_first_call_is_undecided_the_key_is_in_progress() {
    let gateway = Gateway::start(&[]).await;
    let body = body("r1", 15_000, "1-slow2000");
    let (one, two) = tokio::join!(gateway.send("r1", &body), gateway.send("r1", &body));
    let mut statuses = [one.unwrap().status().as_u16(), two.unwrap().status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    assert_eq!(gateway.ledger().await.len(), 1);
    gateway.end().await;
}

#[tokio::test]
async fn a_charge_begun_is_decided_though_its_caller_went_away() {
    let gateway = Gateway::start(&[]).await;
    let body = body("r1", 15_000, "1-slow1500");
    let gone = tokio::time::timeout(Duration::from_millis(500), gateway.send("r1", &body)).await;
    assert!(gone.is_err(), "gave up early");
    found(&gateway, "r1").await;
    gateway.end().await;
}

#[tokio::test]
async fn misbehaviour_before_the_decision_leaves_no_charge_and_ends() {
    let gateway = Gateway::start(&["--hang-ms", "50"]).await;
    let lost = ["hang", "reset", "cut"];
    for word in lost {
        let error = gateway.fails(word, &format!("1-{word}")).await;
        assert!(!error.is_connect() && !error.is_timeout(), "{word}: {error:?}");
        assert_eq!(format!("{error:?}").contains("ConnectionReset"), word == "reset", "{word}: {error:?}");
    }
    for (word, status) in
        [("http500", 500), ("http502", 502), ("http429", 429), ("http409", 409), ("garbage", 200)]
    {
        let number = format!("1-{word}");
        let reply = gateway.send(word, &body(word, 15_000, &number)).await.unwrap();
        assert_eq!(reply.status(), status, "{word}");
        assert!(
            reply.json::<Value>().await.is_err() || status == 500 || status == 429 || status == 409,
            "{word}"
        );
    }
    assert!(gateway.ledger().await.is_empty());
    for word in lost {
        assert_eq!(gateway.get(&format!("/charges/{word}")).await.0, 404);
        assert_eq!(gateway.charge(word, &format!("1-{word}")).await.0, 200, "the second call of {word}");
    }
    gateway.end().await;
}

#[tokio::test]
async fn misbehaviour_after_the_decision_leaves_one_charge() {
    let gateway = Gateway::start(&["--hang-ms", "50"]).await;
    for word in ["thenhang", "thenreset", "thenhttp500"] {
        let number = format!("1-{word}");
        let reply = gateway.send(word, &body(word, 15_000, &number)).await;
        assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status() == 500), "{word}");
        assert_eq!(gateway.get(&format!("/charges/{word}")).await.0, 200, "{word}");
        assert_eq!(gateway.charge(word, &number).await.0, 200, "the second call of {word}");
    }
    assert_eq!(gateway.ledger().await.len(), 3);
    gateway.end().await;
}

#[tokio::test]
async fn a_late_charge_appears_after_the_call_failed() {
    let gateway = Gateway::start(&["--hang-ms", "20"]).await;
    gateway.fails("r1", "1-late2000").await;
    assert_eq!(gateway.get("/charges/r1").await.0, 404);
    found(&gateway, "r1").await;
    gateway.end().await;
}

#[tokio::test]
async fn the_inquiry_lags_as_asked() {
    let gateway = Gateway::start(&[]).await;
    assert_eq!(gateway.charge("r1", "1-lag2000").await.0, 200);
    assert_eq!(gateway.get("/charges/r1").await.0, 404);
    found(&gateway, "r1").await;
    gateway.end().await;
}

#[tokio::test]
async fn the_default_script_can_be_set() {
    let gateway = Gateway::start(&["--script", "decline"]).await;
    assert_eq!(gateway.charge("r1", "5551234").await.0, 402);
    let put = gateway.as_operator("PUT", "/script").header("content-type", "text/plain");
    assert_eq!(put.try_clone().unwrap().body("what").send().await.unwrap().status(), 400);
    assert_eq!(put.body("approve").send().await.unwrap().status(), 204);
    assert_eq!(gateway.charge("r2", "5551234").await.0, 200);
    gateway.end().await;
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let gateway = Gateway::start(&[]).await;
    let charged = gateway.charge("r1", "5551234").await;
    let declined = gateway.charge("r2", "1-decline").await;
    let path = gateway.stop().await;
    // As after a kill in the middle of a write.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], b"{\"reference\":\"r3\",\"amo"].concat()).unwrap();
    let gateway = Gateway::start_on(path, &[]).await;
    assert_eq!(gateway.charge("r1", "5551234").await, charged);
    assert_eq!(gateway.charge("r2", "1-decline").await, declined);
    assert_eq!(gateway.charge("r3", "5551234").await.0, 200);
    assert_eq!(gateway.ledger().await, [("r1".to_owned(), 15_000), ("r3".to_owned(), 15_000)]);
    gateway.end().await;
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let gateway = Gateway::start(&[]).await;
    gateway.charge("r1", "5551234").await;
    let (status, health) = gateway.get("/health").await;
    assert_eq!((status.as_u16(), health.contains("\"charges\":1")), (200, true), "{health}");
    let (status, metrics) = gateway.get("/metrics").await;
    assert_eq!(
        (status.as_u16(), metrics.contains("gateway_sim_calls_total{answer=\"approved\"} 1")),
        (200, true)
    );
    gateway.end().await;
}
