//! New payments are refused while balance-svc stands still, and only then.

use std::time::{Duration, Instant};

use coroctl::client::Client;
use coroctl::stack::Stack;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};
use crate::instance::FurtherInstance;

/// The seconds that payments may wait where no hold comes.
const SETTINGS: [(&str, &str); 1] = [("HOLD_DELAY_MAX_SECONDS", "2")];
/// The same where each hold has to come in time, on a busy machine.
const PATIENT_SETTINGS: [(&str, &str); 1] = [("HOLD_DELAY_MAX_SECONDS", "5")];
/// While payments are refused, one per interval is accepted.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);
const AMOUNT: i64 = 10;

/// A user of an instance, and the payments that were accepted.
struct Payer {
    client: Client,
    user: Uuid,
    service: String,
    accepted: Vec<Uuid>,
}

impl Payer {
    async fn new(harness: &Harness, instance: &FurtherInstance) -> Self {
        let user = harness.client.user_with(1_000_000).await.unwrap();
        let stack = Stack { payments_url: instance.url.clone(), ..harness.stack.clone() };
        let service = harness.stack.demo_service_id.clone();
        Self { client: Client::new(&stack).unwrap(), user, service, accepted: Vec::new() }
    }

    async fn post(&self, key: &str, amount: i64) -> Response {
        let body = coroctl::client::order("0812", &self.service, amount, key);
        self.client.post_payment(self.user, &body).await.unwrap()
    }

    /// Pays once; whether the payment was accepted. A refusal says when to come back.
    async fn pay(&mut self, key: &str) -> bool {
        let response = self.post(key, AMOUNT).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let body: Value = response.json().await.unwrap();
        if status == StatusCode::CREATED {
            self.accepted.push(body["payment_id"].as_str().unwrap().parse().unwrap());
            return true;
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert_eq!(body["type"], "urn:coro:problem:overloaded", "{body}");
        assert_eq!(headers["retry-after"], "5");
        assert_eq!(headers["content-type"], "application/problem+json");
        false
    }

    /// Pays again and again until `done`.
    async fn pay_until(&mut self, what: &str, mut done: impl AsyncFnMut(bool) -> bool) {
        let began = Instant::now();
        loop {
            let is_accepted = self.pay(&Uuid::new_v4().to_string()).await;
            if done(is_accepted).await {
                return;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn new_payments_are_refused_while_balance_svc_stands_still_and_accepted_once_it_is_back() {
    let harness = Harness::alone().await;
    let instance = FurtherInstance::start("payments-svc", &SETTINGS).await;
    let mut payer = Payer::new(&harness, &instance).await;
    assert!(payer.pay("first").await);
    harness.cargo_stack("stop", "balance-svc").await;
    payer.pay_until("holds are late, and payments are accepted", async |accepted| !accepted).await;
    assert_eq!(instance.metric("payments_shedding").await, 1.0);

    // What was accepted before is given back, and a key stays what it is.
    let replay = payer.post("first", AMOUNT).await;
    assert_eq!(replay.status(), StatusCode::CREATED);
    assert_eq!(replay.headers()["idempotent-replayed"], "true");
    assert_eq!(payer.post("first", AMOUNT + 1).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    // The instances that may wait longer go on.
    assert!(harness.client.pay(payer.user, "0812", AMOUNT).await.is_ok());
    // All but one per interval are refused, and make no row.
    let (before, rows) = (payer.accepted.len(), harness.payments_of(payer.user).await);
    let began = Instant::now();
    for nth in 0..50 {
        payer.pay(&format!("refused {nth}")).await;
    }
    let (accepted, took) = (payer.accepted.len() - before, began.elapsed());
    let accepted_max = took.div_duration_f64(ACCEPT_INTERVAL) + 2.0;
    assert!((accepted as f64) < accepted_max, "{accepted} of 50 were accepted in {took:?}");
    assert_eq!(harness.payments_of(payer.user).await - rows, accepted as i64);

    harness.cargo_stack("start", "balance-svc").await;
    let recovered = async |_: bool| instance.metric("payments_shedding").await == 0.0;
    payer.pay_until("payments stay refused", recovered).await;
    assert!(payer.pay("last").await);
    assert!(instance.metric("payments_requests_total{outcome=\"shed\"}").await >= 1.0);
    harness.all_complete(payer.accepted.iter().map(|id| (payer.user, *id))).await;
}

/// The gateway answers nobody: holds come, and nothing else does.
#[tokio::test]
async fn payments_that_wait_for_the_gateway_refuse_nobody() {
    let harness = Harness::alone().await;
    let instance = FurtherInstance::start("payments-svc", &PATIENT_SETTINGS).await;
    let payer = Payer::new(&harness, &instance).await;
    let began = Instant::now();
    // Long enough for the first of them to be twice as old as a hold may be, and for a verdict about each sample.
    while began.elapsed() < Duration::from_secs(10)
        || instance.metric("payments_hold_seconds_count").await < 15.0
    {
        let key = Uuid::new_v4().to_string();
        let body = coroctl::client::order("0812-hang", &payer.service, AMOUNT, &key);
        let response = payer.client.post_payment(payer.user, &body).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert!(began.elapsed() < WAIT_TIMEOUT, "no samples are judged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(instance.metric("payments_shedding").await, 0.0);
}
