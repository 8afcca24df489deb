//! Calls Coro as an app would: over HTTP, with nothing but what the API promises.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Response, StatusCode};
use saga::http_client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stack::Stack;

/// Between two polls of a payment.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Sends each request as the given user.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    stack: Stack,
}

impl Client {
    pub fn new(stack: &Stack) -> Result<Self> {
        let http = http_client::builder().timeout(Duration::from_secs(15)).build()?;
        Ok(Self { http, stack: stack.clone() })
    }

    /// Credits the account of `user_id`, once per key.
    pub async fn deposit(&self, user_id: Uuid, amount: i64, key: &str) -> Result<()> {
        let url = format!("{}/deposits", self.stack.balance_admin_url);
        let body = json!({"user_id": user_id, "amount": amount, "idempotency_key": key});
        let request = self.http.post(url).bearer_auth(&self.stack.admin_token).json(&body);
        let response = request.send().await.context("POST /deposits")?;
        ensure!(
            response.status() == StatusCode::CREATED,
            "the deposit was refused: {}",
            problem(response).await
        );
        Ok(())
    }

    /// A new user with this much money.
    pub async fn user_with(&self, amount: i64) -> Result<Uuid> {
        let user_id = Uuid::now_v7();
        self.deposit(user_id, amount, "first").await?;
        Ok(user_id)
    }

    /// Gives the user an address, so that the notifier sends an e-mail per payment that ends. Without a notifier nothing is done.
    pub async fn contact(&self, user_id: Uuid) -> Result<()> {
        let Some(notifier) = &self.stack.notifier_admin_url else { return Ok(()) };
        let body = json!({"email": format!("{user_id}@example.org")});
        let request = self.http.put(format!("{notifier}/contacts/{user_id}")).json(&body);
        let response = request.bearer_auth(&self.stack.admin_token).send().await.context("PUT /contacts")?;
        ensure!(response.status().is_success(), "the contact was refused: {}", problem(response).await);
        Ok(())
    }

    /// Sends a request to pay with this body, valid or not.
    pub async fn post_payment(&self, user_id: Uuid, body: &Value) -> Result<Response> {
        let url = format!("{}/payments", self.stack.payments_url);
        let request = self.http.post(url).header("x-user-id", user_id.to_string()).json(body);
        request.send().await.context("POST /payments")
    }

    /// Asks to pay and expects to be accepted.
    pub async fn pay(&self, user_id: Uuid, client_number: &str, amount: i64) -> Result<Uuid> {
        let key = Uuid::new_v4().to_string();
        let body = order(client_number, &self.stack.demo_service_id, amount, &key);
        let response = self.post_payment(user_id, &body).await?;
        ensure!(
            response.status() == StatusCode::CREATED,
            "the payment was refused: {}",
            problem(response).await
        );
        let payment: Value = response.json().await?;
        payment["payment_id"].as_str().and_then(|id| id.parse().ok()).context("the 201 has no payment_id")
    }

    pub async fn payment(&self, user_id: Uuid, payment_id: Uuid) -> Result<Value> {
        let url = format!("{}/payments/{payment_id}", self.stack.payments_url);
        let response = self.http.get(url).header("x-user-id", user_id.to_string()).send().await?;
        ensure!(
            response.status() == StatusCode::OK,
            "GET /payments/{payment_id}: {}",
            problem(response).await
        );
        Ok(response.json().await?)
    }

    /// Asks to cancel.
    pub async fn cancel(&self, user_id: Uuid, payment_id: Uuid) -> Result<Response> {
        let url = format!("{}/payments/{payment_id}/cancel", self.stack.payments_url);
        let request = self.http.post(url).header("x-user-id", user_id.to_string());
        request.send().await.context("POST /payments/{id}/cancel")
    }

    /// Polls until the payment has ended; failed polls are repeated.
    pub async fn wait_for_end(&self, user_id: Uuid, payment_id: Uuid, timeout: Duration) -> Result<Value> {
        let terminal = ["completed", "rejected", "failed", "cancelled"];
        self.wait_for_any(user_id, payment_id, &terminal, timeout).await
    }

    /// Polls until the payment has this status; failed polls are repeated.
    pub async fn wait_for_status(
        &self,
        user_id: Uuid,
        payment_id: Uuid,
        status: &str,
        timeout: Duration,
    ) -> Result<Value> {
        self.wait_for_any(user_id, payment_id, &[status], timeout).await
    }

    async fn wait_for_any(
        &self,
        user_id: Uuid,
        payment_id: Uuid,
        statuses: &[&str],
        timeout: Duration,
    ) -> Result<Value> {
        let began = Instant::now();
        loop {
            let answer = self.payment(user_id, payment_id).await;
            let status = answer.as_ref().ok().and_then(|payment| payment["status"].as_str());
            if status.is_some_and(|status| statuses.contains(&status)) {
                return answer;
            }
            if began.elapsed() > timeout {
                let payment = answer.with_context(|| format!("cannot read payment {payment_id}"))?;
                bail!("payment {payment_id} is not {statuses:?} after {timeout:?}: {payment}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Available and held.
    pub async fn balance(&self, user_id: Uuid) -> Result<(i64, i64)> {
        let url = format!("{}/balance", self.stack.balance_url);
        let response = self.http.get(url).header("x-user-id", user_id.to_string()).send().await?;
        ensure!(response.status() == StatusCode::OK, "GET /balance: {}", problem(response).await);
        let balance: Value = response.json().await?;
        let part = |name: &str| balance[name].as_i64().with_context(|| format!("{name} in {balance}"));
        Ok((part("available")?, part("held")?))
    }

    /// The gateway's own ledger: one line per charge.
    pub async fn gateway_ledger(&self) -> Result<Vec<Value>> {
        let text = self.http.get(format!("{}/ledger", self.stack.gateway_url)).send().await?.text().await?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("a line of the gateway's ledger is no JSON"))
            .collect()
    }

    /// The gateway's answer to an inquiry; `None` when it knows no such charge.
    pub async fn gateway_charge(&self, payment_id: Uuid) -> Result<Option<Value>> {
        let url = format!("{}/charges/{payment_id}", self.stack.gateway_url);
        let response = self.http.get(url).send().await.context("GET /charges of the gateway")?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(response.json().await?))
    }
}

/// The body of `POST /payments`.
pub fn order(client_number: &str, service_id: &str, amount: i64, key: &str) -> Value {
    json!({
        "client_number": client_number,
        "service_id": service_id,
        "amount": amount,
        "idempotency_key": key,
    })
}

async fn problem(response: Response) -> String {
    let status = response.status();
    format!("{status} {}", response.text().await.unwrap_or_default())
}
