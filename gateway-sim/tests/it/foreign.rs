//! Names on answers: on all of its own, and wrong or missing where that is asked for.

use serde_json::{Value, json};

use crate::gateway::{Gateway, body};

const STRANGER: &str = gateway_sim::foreign::STRANGER;

/// The name on an answer.
fn name(answer: &Value) -> (Option<&str>, Option<i64>) {
    (answer["reference"].as_str(), answer["amount"].as_i64())
}

#[tokio::test]
async fn every_answer_of_its_own_names_its_charge() {
    let gateway = Gateway::start(&[]).await;
    for number in ["1", "1-decline", "1-decline200", "1-soft60000", "1-http409"] {
        let answer = gateway.charge(number, number).await.1;
        assert_eq!(name(&answer), (Some(number), Some(15_000)), "{answer}");
    }
    for number in ["1", "1-decline", "1-soft60000"] {
        let answer = gateway.inquire(number).await;
        assert_eq!(name(&answer), (Some(number), Some(15_000)), "{answer}");
    }
    let refused = async |key: &str, body: Value| {
        let reply = gateway.send(key, &body).await.unwrap();
        (reply.status().as_u16(), reply.json::<Value>().await.unwrap())
    };
    let (status, rejected) = refused("r1", body("r1", -1, "1")).await;
    assert_eq!((status, name(&rejected)), (400, (Some("r1"), Some(-1))), "{rejected}");
    let (status, unreadable) = refused("r1", json!([1])).await;
    assert_eq!((status, name(&unreadable)), (400, (None, None)), "{unreadable}");
    let (status, reused) = refused("1", body("1", 1, "1")).await;
    assert_eq!((status, name(&reused)), (422, (Some("1"), Some(1))), "{reused}");
    let (status, text) = gateway.get("/charges/nobody").await;
    let missing: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status.as_u16(), name(&missing)), (404, (Some("nobody"), None)), "no charge, no amount");
    // A void of what was charged names that amount, whatever the caller says; otherwise the caller's.
    let (_, voided) = gateway.void("1", json!({"amount": 7})).await;
    assert_eq!(name(&voided), (Some("1"), Some(15_000)), "{voided}");
    let (_, barred) = gateway.void("never", json!({"amount": 7})).await;
    assert_eq!(name(&barred), (Some("never"), Some(7)), "{barred}");
    assert_eq!(name(&gateway.inquire("never").await), (Some("never"), Some(7)));
    gateway.end().await;
}

#[tokio::test]
async fn calls_inquiries_and_voids_are_answered_with_foreign_names_as_asked() {
    let gateway = Gateway::start(&[]).await;
    let table = [
        ("strayok", 200, Some(STRANGER), Some(15_000)),
        ("strayno", 402, Some(STRANGER), Some(15_000)),
        ("straybad", 400, Some(STRANGER), Some(15_000)),
        ("straynone", 404, Some(STRANGER), Some(15_000)),
        ("namelessok", 200, None, None),
        ("namelessno", 402, None, None),
        ("amountno", 402, Some("1-amountno"), Some(15_001)),
    ];
    for (word, status, reference, amount) in table {
        let number = format!("1-{word}");
        let answer = gateway.charge(&number, &number).await;
        assert_eq!((answer.0.as_u16(), name(&answer.1)), (status, (reference, amount)), "{word}");
    }
    assert!(gateway.ledger().await.is_empty(), "and nothing was decided");
    for status in [200, 402, 403, 404] {
        let number = format!("1-page{status}");
        let reply = gateway.send(&number, &body(&number, 15_000, &number)).await.unwrap();
        assert_eq!(
            (reply.status().as_u16(), reply.headers()["content-type"].as_bytes()),
            (status, &b"text/html; charset=utf-8"[..])
        );
    }
    let number = "1-askstraynox2-voidnamelessok";
    assert_eq!(gateway.charge(number, number).await.0, 200);
    for _ in 0..2 {
        let answer = gateway.inquire(number).await;
        assert_eq!((name(&answer).0, &answer["status"]), (Some(STRANGER), &json!("declined")));
    }
    assert_eq!(gateway.inquire(number).await["status"], "succeeded");
    let (status, voided) = gateway.void(number, json!({})).await;
    assert_eq!((status.as_u16(), &voided["status"], name(&voided)), (200, &json!("voided"), (None, None)));
    assert_eq!(gateway.inquire(number).await["status"], "succeeded", "nothing was voided");
    assert_eq!(gateway.void(number, json!({})).await.1["barred"], true);
    gateway.end().await;
}

#[tokio::test]
async fn a_cache_answers_what_was_answered_to_another_charge() {
    let gateway = Gateway::start(&[]).await;
    let declined = gateway.charge("r1", "1-decline").await;
    assert_eq!(gateway.charge("r2", "1-thencached").await, declined);
    assert_eq!(gateway.inquire("r2").await["status"], "succeeded");
    assert_eq!(gateway.ledger().await, [("r2".to_owned(), 15_000)]);
    gateway.end().await;
}
