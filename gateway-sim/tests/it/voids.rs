//! Giving charges back.

use serde_json::json;

use crate::gateway::{Gateway, WAIT_TIMEOUT};

#[tokio::test]
async fn surplus_is_listed_and_given_back_and_the_first_charge_stands() {
    let gateway = Gateway::start(&["--idempotency", "ignored"]).await;
    let (_, first) = gateway.charge("r1", "5551234").await;
    let (_, second) = gateway.charge("r1", "5551234").await;
    assert_ne!(first["provider_reference"], second["provider_reference"]);
    let found = gateway.inquire("r1").await;
    let line = json!({"provider_reference": second["provider_reference"], "amount": 15_000});
    assert_eq!(found["provider_reference"], first["provider_reference"]);
    assert_eq!(found["surplus"], json!([line]));
    let keep = json!({"keep": first["provider_reference"]});
    for _ in 0..2 {
        let (status, voided) = gateway.void("r1", keep.clone()).await;
        let expected = json!({"status": "voided", "reference": "r1", "amount": 15_000, "voided": [line], "barred": false});
        assert_eq!((status.as_u16(), voided), (200, expected));
    }
    assert_eq!(gateway.inquire("r1").await, first);
    let (_, text) = gateway.get("/ledger").await;
    let kinds: Vec<serde_json::Value> =
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["kind"].clone()).collect();
    assert_eq!(kinds, ["charge", "charge", "void"]);
    gateway.end().await;
}

#[tokio::test]
async fn a_reversed_reference_is_never_charged_not_even_by_a_call_under_way() {
    let gateway = Gateway::start(&["--hang-ms", "20"]).await;
    gateway.fails("r1", "1-late1500").await;
    let (status, voided) = gateway.void("r1", json!({})).await;
    assert_eq!((status.as_u16(), &voided["barred"], &voided["voided"]), (200, &json!(true), &json!([])));
    let until = std::time::Instant::now() + WAIT_TIMEOUT;
    while !gateway.get("/health").await.1.contains("\"undecided\":0") {
        assert!(std::time::Instant::now() < until, "the late charge is decided");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(gateway.inquire("r1").await["status"], "voided");
    let (status, again) = gateway.charge("r1", "1").await;
    assert_eq!((status.as_u16(), &again["status"]), (422, &json!(422)), "another body under the same key");
    let reply = gateway.send("other", &crate::gateway::body("r1", 15_000, "1")).await.unwrap();
    assert_eq!(reply.status(), 402);
    assert_eq!(reply.json::<serde_json::Value>().await.unwrap()["code"], "reference_voided");
    assert!(gateway.ledger().await.is_empty());
    gateway.end().await;
}

#[tokio::test]
async fn a_void_that_cannot_be_meant_changes_nothing() {
    let gateway = Gateway::start(&[]).await;
    gateway.charge("r1", "5551234").await;
    for (body, status) in [(json!({"keep": "ch_other"}), 422), (json!({"keeps": "x"}), 400), (json!([]), 400)]
    {
        assert_eq!(gateway.void("r1", body.clone()).await.0, status, "{body}");
    }
    assert_eq!(gateway.inquire("r1").await["status"], "succeeded");
    gateway.end().await;
}
