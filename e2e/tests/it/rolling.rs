//! Clients at the edge do not notice that instances of payments-svc come and go.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coroctl::client::{Client, order};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const INSTANCES: [&str; 2] = ["payments-svc", "payments-svc-2"];
const USERS: usize = 20;
const AMOUNT: i64 = 10;
/// Each is a payment and a poll of it: a hundred requests a second.
const EVERY: Duration = Duration::from_millis(20);

/// The answers to clients at the edge.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    accepted: Mutex<Vec<Paid>>,
    /// Answers in the place of a 201 or a 200.
    failed: Mutex<Vec<String>>,
}

struct Paid {
    user: Uuid,
    body: Value,
    payment_id: Uuid,
}

impl Load {
    /// A payment every 20 ms, whether the ones before it are answered or not, until it is over.
    async fn run(&self, client: &Client, users: &[Uuid], service: &str) {
        let mut clock = tokio::time::interval(EVERY);
        let mut under_way = FuturesUnordered::new();
        let mut nth = 0;
        while !self.over.load(Ordering::Relaxed) {
            tokio::select! {
                _ = clock.tick() => {
                    let user = users[nth % users.len()];
                    under_way.push(self.visit(client, user, order("0812", service, AMOUNT, &format!("rolling {nth}"))));
                    nth += 1;
                }
                Some(()) = under_way.next() => {}
            }
        }
        while under_way.next().await.is_some() {}
    }

    /// Pays, and looks at the payment.
    async fn visit(&self, client: &Client, user: Uuid, body: Value) {
        let polled = async {
            let payment_id = accepted(client, user, &body).await?;
            client.payment(user, payment_id).await.map_err(|error| format!("{error:#}"))?;
            Ok(payment_id)
        };
        match polled.await {
            Ok(payment_id) => self.accepted.lock().unwrap().push(Paid { user, body, payment_id }),
            Err(why) => self.failed.lock().unwrap().push(why),
        }
    }
}

/// The payment of a request that is answered with 201; any other answer as text.
async fn accepted(client: &Client, user: Uuid, body: &Value) -> Result<Uuid, String> {
    let response = client.post_payment(user, body).await.map_err(|error| format!("{error:#}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| error.to_string())?;
    if status != StatusCode::CREATED {
        return Err(format!("{status} {text}"));
    }
    let payment: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    payment["payment_id"].as_str().and_then(|id| id.parse().ok()).ok_or(text)
}

/// How often the edge had to send a request again, to the same instance or to another.
async fn resent(harness: &Harness) -> f64 {
    let url = format!("{}/metrics", harness.stack.edge_admin_url);
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let counters = ["haproxy_server_retry_warnings_total{", "haproxy_server_redispatch_warnings_total{"];
    let lines: Vec<&str> =
        text.lines().filter(|line| counters.iter().any(|counter| line.starts_with(counter))).collect();
    assert!(!lines.is_empty(), "the edge does not count any more");
    lines.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// A load through the edge while `disturbance` goes on: what was accepted. No request may fail.
async fn load_during(harness: &Harness, client: &Client, disturbance: impl Future<Output = ()>) -> Vec<Paid> {
    let users: Vec<Uuid> = join_all((0..USERS).map(|_| harness.client.user_with(1_000_000)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let load = Load::default();
    let running = load.run(client, &users, &harness.stack.demo_service_id);
    let disturb = async {
        reached(&load, 50).await;
        disturbance.await;
        let snapshot = load.accepted.lock().unwrap().len();
        reached(&load, snapshot + 50).await;
        load.over.store(true, Ordering::Relaxed);
    };
    tokio::join!(running, disturb);
    assert_eq!(load.failed.into_inner().unwrap(), [""; 0]);
    load.accepted.into_inner().unwrap()
}

async fn reached(load: &Load, count: usize) {
    let enough = async {
        while load.accepted.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, enough).await.expect("nothing is accepted any more");
}

async fn all_complete(harness: &Harness, payments: &[Paid]) {
    let ends =
        payments.iter().map(|paid| harness.client.wait_for_end(paid.user, paid.payment_id, WAIT_TIMEOUT));
    for payment in join_all(ends).await {
        assert_eq!(payment.unwrap()["status"], "completed");
    }
    harness.adds_up().await;
}

#[tokio::test]
async fn no_request_fails_during_a_rolling_restart() {
    let harness = Harness::alone().await;
    let client = Client::new(&harness.stack.through_edge()).unwrap();
    let before = resent(&harness).await;
    let restarts = async {
        for instance in INSTANCES {
            harness.cargo_stack("restart", instance).await;
        }
    };
    let payments = load_during(&harness, &client, restarts).await;
    // An instance that leaves is asked nothing any more: the edge has nothing to mend.
    assert_eq!(resent(&harness).await - before, 0.0);
    all_complete(&harness, &payments).await;
}

#[tokio::test]
async fn what_a_killed_instance_took_is_answered_by_the_other_one() {
    let harness = Harness::alone().await;
    let client = Client::new(&harness.stack.through_edge()).unwrap();
    let payments =
        load_during(&harness, &client, async { harness.cargo_stack("kill", INSTANCES[0]).await }).await;
    // A repeated request is answered with the same payment.
    for paid in &payments {
        assert_eq!(accepted(&client, paid.user, &paid.body).await, Ok(paid.payment_id));
    }
    all_complete(&harness, &payments).await;
}
