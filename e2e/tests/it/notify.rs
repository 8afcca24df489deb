//! The consumers of `up --with notify`, as users and subscribers meet them: e-mails, webhooks, fraud alerts.

use std::collections::BTreeSet;
use std::time::Instant;

use coroctl::topics::{self, Event};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::asyncapi::event_schemas;
use crate::harness::{Harness, WAIT_TIMEOUT};

const FRAUD_ALERTS: &str = "FraudAlertTopic";

/// A variable of `.stack/env`.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: cargo stack up --with notify"))
}

/// A call of an operator at the notifier; the answer's body.
pub async fn operate(harness: &Harness, method: &str, path: &str, body: &Value) -> Value {
    let url = format!("{}{path}", variable("NOTIFIER_ADMIN_URL"));
    let request = reqwest::Client::new().request(method.parse().unwrap(), url);
    let request = request.bearer_auth(&harness.stack.admin_token);
    let request = if body.is_null() { request } else { request.json(body) };
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null)
}

/// Asks until there is something.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// What the mail server has for this address, once it is so many.
pub async fn e_mails(address: &str, count: usize) -> Vec<String> {
    eventually("e-mails", async || {
        let files = std::fs::read_dir(format!("{}/new", variable("MAIL_DIR"))).ok()?.flatten();
        let mails = files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default());
        let mails: Vec<String> = mails.filter(|mail| mail.contains(&format!("To: {address}"))).collect();
        (mails.len() >= count).then_some(mails)
    })
    .await
}

#[tokio::test]
async fn a_user_with_an_address_gets_one_e_mail_per_payment() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let address = format!("{user}@example.org");
    operate(&harness, "PUT", &format!("/contacts/{user}"), &json!({"email": address})).await;
    let mut ids = BTreeSet::new();
    for (client_number, amount) in [("0812", 400), ("0812-decline", 100), ("0812", 5_000)] {
        let payment = harness.settle(user, client_number, amount).await;
        ids.insert(payment["payment_id"].as_str().unwrap().to_owned());
    }
    let mails = e_mails(&address, 3).await;
    for id in ids {
        let of_payment = mails.iter().filter(|mail| mail.contains(&format!("Message-ID: <{id}-"))).count();
        assert_eq!(of_payment, 1, "{id}");
    }
    assert_eq!(mails.len(), 3);
}

async fn alerts(harness: &Harness, user: Uuid) -> Vec<Event> {
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || topics::read(&brokers, &[FRAUD_ALERTS], Timestamp::UNIX_EPOCH).unwrap();
    let mut events = tokio::task::spawn_blocking(read).await.unwrap();
    events.retain(|event| event.key == user.to_string());
    events
}

#[tokio::test]
async fn a_payment_that_is_too_large_raises_an_alert_that_is_as_documented() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(20_000_000).await.unwrap();
    harness.settle(user, "0812", 1_000).await;
    let payment = harness.settle(user, "0812", 5_000_001).await;
    let found = eventually("an alert", async || {
        Some(alerts(&harness, user).await).filter(|alerts| !alerts.is_empty())
    })
    .await;
    let [event] = found.as_slice() else { panic!("one alert: {found:#?}") };
    let payment_id = payment["payment_id"].as_str().unwrap();
    assert_eq!(event.header("ce_id"), format!("fraud/alerts/{payment_id}/payment_amount"));
    assert_eq!((event.subject(), event.header("ce_source")), (payment_id, "/coro/fraud"));
    let body = event.json().unwrap();
    assert_eq!((&body["observed"], &body["threshold"]), (&json!(5_000_001), &json!(5_000_000)));
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(fields(&body), fields(&event_schemas()["fraud.alert.v1"]["properties"]));
}
