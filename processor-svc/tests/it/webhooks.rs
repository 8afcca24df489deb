//! A webhook hastens an inquiry and decides nothing.

use jiff::Timestamp;
use standardwebhooks::Webhook;

use crate::flow::{count, references, waiting};
use crate::harness::{Database, Gateway, Processor, client, instead, jobs, rows_alone};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A processor that will not ask the gateway of its own accord while the test lasts.
async fn patient(database: &Database, gateway: &Gateway, secret: bool) -> Processor {
    let rarely = ["--inquiry-ms=3600000", "--inquiry-most-ms=3600000", "--call-ms=10000"];
    let mut flags = instead(rows_alone(&database.url, gateway.address), &rarely);
    if secret {
        flags.push(format!("--webhook-secret={SECRET}"));
    }
    Processor::with(flags).await
}

/// Sends a webhook as the gateway would, and answers the status.
async fn send(processor: &Processor, secret: &str, at: i64, body: String) -> u16 {
    let signature = Webhook::new(secret).unwrap().sign("msg_1", at, body.as_bytes()).unwrap();
    let request = client()
        .post(format!("http://{}/webhooks/gateway", processor.public))
        .header("webhook-id", "msg_1")
        .header("webhook-timestamp", at)
        .header("webhook-signature", signature);
    request.body(body).send().await.unwrap().status().as_u16()
}

fn body(reference: &str) -> String {
    serde_json::json!({"type": "charge.decided", "timestamp": "2026-01-01T00:00:00Z", "data": {"reference": reference}})
        .to_string()
}

#[tokio::test]
async fn a_signed_webhook_makes_the_inquiry_due_now_and_only_that() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let all = jobs(2, "1-thenhttp500x9");
    waiting(&database, &all).await;
    let processor = patient(&database, &gateway, true).await;
    database.until(&count("unknown"), 2).await;
    let now = Timestamp::now().as_second();
    let reference = all[0].charge.payment_id.to_string();
    let forged = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(send(&processor, forged, now, body(&reference)).await, 401);
    assert_eq!(send(&processor, SECRET, now - 3_600, body(&reference)).await, 401, "a replay");
    assert_eq!(send(&processor, SECRET, now, "[".to_owned()).await, 400);
    for stranger in ["no-uuid", "0198c0de-0000-7000-8000-000000000001"] {
        assert_eq!(send(&processor, SECRET, now, body(stranger)).await, 204);
    }
    assert_eq!(processor.metric("processor_webhooks_total{result=\"hastened\"}").await, 0.0);
    assert_eq!(database.number(&count("unknown")).await, 2);
    for _ in 0..3 {
        assert_eq!(send(&processor, SECRET, now, body(&reference)).await, 204);
    }
    database.until(&count("succeeded"), 1).await;
    assert_eq!(database.number(&count("unknown")).await, 1, "the other one was not asked about");
    assert_eq!(gateway.ledger().await, references(&all));
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn without_a_secret_there_are_no_webhooks() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let processor = patient(&database, &gateway, false).await;
    assert_eq!(send(&processor, SECRET, Timestamp::now().as_second(), body("x")).await, 404);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
