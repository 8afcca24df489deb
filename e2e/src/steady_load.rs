//! Payments through the edge at even intervals, until it is stopped.
//!
//! * A payment is asked for at its moment, whether the ones before it are answered or not, and looked at once.
//! * A request is never repeated: whatever is no 201 and no 200 is kept as a failure, as its caller would see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coroctl::client::{Client, order};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

/// In minor units; a user's deposit lasts for any load.
pub const AMOUNT: i64 = 10;
const CLIENT_NUMBER: &str = "0812";

pub struct SteadyLoad {
    client: Client,
    users: Vec<Uuid>,
    service_id: String,
    interval: Duration,
    /// Begins every idempotency key.
    run: Uuid,
    is_over: AtomicBool,
    accepted: Mutex<Vec<Paid>>,
    failed: Mutex<Vec<String>>,
}

/// An accepted payment, and the request for it.
#[derive(Clone, Debug)]
pub struct Paid {
    pub user_id: Uuid,
    pub payment_id: Uuid,
    pub body: Value,
    /// When the 201 was here.
    pub at: Timestamp,
}

impl Paid {
    /// The user and the payment.
    pub fn ids(&self) -> (Uuid, Uuid) {
        (self.user_id, self.payment_id)
    }
}

impl SteadyLoad {
    /// A load of these users, which have money, by this client. It does nothing before it runs.
    pub fn new(client: Client, users: Vec<Uuid>, service_id: &str, interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            client,
            users,
            service_id: service_id.to_owned(),
            interval,
            run: Uuid::new_v4(),
            is_over: AtomicBool::default(),
            accepted: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// Pays until it is stopped, and waits for the last answers.
    pub async fn run(&self) {
        let mut moments = tokio::time::interval(self.interval);
        let mut under_way = FuturesUnordered::new();
        let mut users = self.users.iter().cycle();
        let mut nth = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            tokio::select! {
                _ = moments.tick() => {
                    let Some(user_id) = users.next() else { return };
                    let key = format!("{} {nth}", self.run);
                    under_way.push(self.visit(*user_id, order(CLIENT_NUMBER, &self.service_id, AMOUNT, &key)));
                    nth += 1;
                }
                Some(()) = under_way.next() => {}
            }
        }
        while under_way.next().await.is_some() {}
    }

    pub fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// The payments that were answered 201 until now.
    pub fn accepted(&self) -> Vec<Paid> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn accepted_count(&self) -> usize {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The answers in the place of a 201 or a 200 until now.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn failed_count(&self) -> usize {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Pays, and looks at the payment.
    async fn visit(&self, user_id: Uuid, body: Value) {
        let visited = async {
            let payment_id = accepted(&self.client, user_id, &body).await?;
            let paid = Paid { user_id, payment_id, body, at: Timestamp::now() };
            self.accepted.lock().unwrap_or_else(PoisonError::into_inner).push(paid);
            self.client.payment(user_id, payment_id).await.map_err(|error| format!("{error:#}"))
        };
        if let Err(why) = visited.await {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(why);
        }
    }
}

/// The payment of a request that is answered with 201.
///
/// # Errors
/// Any other answer, as text.
pub async fn accepted(client: &Client, user_id: Uuid, body: &Value) -> Result<Uuid, String> {
    let response = client.post_payment(user_id, body).await.map_err(|error| format!("{error:#}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| error.to_string())?;
    if status != StatusCode::CREATED {
        return Err(format!("{status} {text}"));
    }
    let payment: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    payment["payment_id"].as_str().and_then(|id| id.parse().ok()).ok_or(text)
}
