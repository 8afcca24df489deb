//! A client that must know: it sends the same request, with the same key, until it is answered.
//!
//! Nobody may be listening, a connection may break, an answer may be lost on the way: all of that is endured and
//! counted. What is not endured is a failure told otherwise than promised: 502, 503 or 504, as a problem, saying when
//! to come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use coroctl::client::Client;

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// What docs/problems.md tells a client to answer with the same request.
const COME_BACK: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];

/// How often clients were not answered, and why.
#[derive(Default)]
pub struct Trouble {
    unavailable: AtomicU64,
    unheard: AtomicU64,
    hung: AtomicU64,
    replayed: AtomicU64,
}

/// The same, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// 502, 503, 504: the service or the edge said that it could not tell.
    pub unavailable: u64,
    /// Nobody listened, or the connection broke before the answer was whole: it may have been carried out.
    pub unheard: u64,
    /// No answer within the client's time-out.
    pub hung: u64,
    /// 201 that said it was a replay: the request had been carried out before.
    pub replayed: u64,
}

impl Trouble {
    pub fn so_far(&self) -> Troubles {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Troubles {
            unavailable: count(&self.unavailable),
            unheard: count(&self.unheard),
            hung: count(&self.hung),
            replayed: count(&self.replayed),
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        let request = error.chain().find_map(|cause| cause.downcast_ref::<reqwest::Error>());
        let hung = request.is_some_and(reqwest::Error::is_timeout);
        let counter = if hung { &self.hung } else { &self.unheard };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// An accepted payment, and the bytes that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub payment_id: Uuid,
    pub body: String,
}

pub struct RetryingClient<'a> {
    pub client: &'a Client,
    pub trouble: &'a Trouble,
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl RetryingClient<'_> {
    /// Asks to pay until it is accepted.
    ///
    /// # Errors
    /// A definite refusal, or a failure told otherwise than promised.
    pub async fn pay(&self, user_id: Uuid, order: &Value) -> Result<Accepted> {
        let Answer { status, headers, body } =
            self.answer(|| self.client.post_payment(user_id, order)).await?;
        ensure!(status == StatusCode::CREATED, "{order} was refused: {status} {body}");
        if headers.contains_key("idempotent-replayed") {
            self.trouble.replayed.fetch_add(1, Ordering::Relaxed);
        }
        let payment: Value = serde_json::from_str(&body).context("a 201 is JSON")?;
        let payment_id = payment["payment_id"].as_str().and_then(|id| id.parse().ok());
        Ok(Accepted { payment_id: payment_id.context("a payment_id in the 201")?, body })
    }

    /// Asks to cancel until that is recorded, or has come too late.
    ///
    /// # Errors
    /// As [`RetryingClient::pay`].
    pub async fn cancel(&self, user_id: Uuid, payment_id: Uuid) -> Result<()> {
        let Answer { status, body, .. } = self.answer(|| self.client.cancel(user_id, payment_id)).await?;
        let definite = status == StatusCode::ACCEPTED || status == StatusCode::CONFLICT;
        ensure!(definite, "the cancel of {payment_id} was refused: {status} {body}");
        Ok(())
    }

    async fn answer<F>(&self, send: impl Fn() -> F) -> Result<Answer>
    where
        F: Future<Output = Result<Response>>,
    {
        let pauses = ExponentialBuilder::default().with_min_delay(PAUSE_FIRST).with_max_delay(PAUSE_MOST);
        for pause in pauses.with_jitter().without_max_times().build() {
            match whole(send()).await {
                Ok(answer) if COME_BACK.contains(&answer.status) => {
                    self.trouble.unavailable.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(come_back(&answer)?).await;
                }
                Ok(Answer { status, body, .. }) if status.is_server_error() => {
                    bail!("a failure that no client can read: {status} {body}")
                }
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.trouble.failed(&error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
        unreachable!("the pauses have no end")
    }
}

async fn whole(response: impl Future<Output = Result<Response>>) -> Result<Answer> {
    let response = response.await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, body: response.text().await? })
}

/// When the answer says to come back; it must be a problem and say so.
fn come_back(answer: &Answer) -> Result<Duration> {
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let said = header(CONTENT_TYPE.as_str());
    ensure!(
        said == "application/problem+json",
        "a {} that is no problem but {said:?}: {}",
        answer.status,
        answer.body
    );
    let seconds: u64 = header(RETRY_AFTER.as_str())
        .parse()
        .with_context(|| format!("Retry-After of a {}", answer.status))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn only_a_problem_that_says_when_may_tell_a_client_to_come_back() {
        let answer = |kind: &'static str, after: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.extend(after.map(|after| (RETRY_AFTER, HeaderValue::from_static(after))));
            Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers, body: String::new() }
        };
        let problem = "application/problem+json";
        assert_eq!(come_back(&answer(problem, Some("2"))).unwrap(), Duration::from_secs(2));
        assert!(come_back(&answer("text/html", Some("2"))).is_err());
        assert!(come_back(&answer(problem, None)).is_err());
    }
}
