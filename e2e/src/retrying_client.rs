//! Repeats a request, with the same idempotency key, until it has an answer.
//!
//! * Refused or broken connections, lost answers and time-outs are counted, and the request is repeated.
//! * 502, 503 and 504 are repeated too, if they are a problem with a Retry-After, as docs/problems.md promises.
//! * Any other server error is a failure of the run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use coroctl::client::Client;

const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(50);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The statuses after which docs/problems.md lets a client repeat the request.
const RETRYABLE_STATUSES: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];

/// Counts why requests were repeated.
#[derive(Default)]
pub struct RetryCounters {
    unavailable: AtomicU64,
    unanswered: AtomicU64,
    timed_out: AtomicU64,
    replays: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryCounts {
    /// 502, 503, 504: the service or the edge could not answer.
    pub unavailable: u64,
    /// The connection was refused, or broke before the answer was whole: the request may have been carried out.
    pub unanswered: u64,
    /// No answer within the client's time-out.
    pub timed_out: u64,
    /// A 201 that is marked as a replay: the request had been carried out before.
    pub replays: u64,
}

impl RetryCounters {
    pub fn snapshot(&self) -> RetryCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RetryCounts {
            unavailable: count(&self.unavailable),
            unanswered: count(&self.unanswered),
            timed_out: count(&self.timed_out),
            replays: count(&self.replays),
        }
    }

    fn count_failure(&self, error: &anyhow::Error) {
        let request = error.chain().find_map(|cause| cause.downcast_ref::<reqwest::Error>());
        let timed_out = request.is_some_and(reqwest::Error::is_timeout);
        let counter = if timed_out { &self.timed_out } else { &self.unanswered };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// An accepted payment, and the body of its 201.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedPayment {
    pub payment_id: Uuid,
    pub body: String,
}

pub struct RetryingClient<'a> {
    pub client: &'a Client,
    pub retries: &'a RetryCounters,
}

/// An answer with its whole body.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl RetryingClient<'_> {
    /// Requests a payment until it is accepted.
    ///
    /// # Errors
    /// A definite refusal, or a server error that is no problem with a Retry-After.
    pub async fn pay(&self, user_id: Uuid, order: &Value) -> Result<AcceptedPayment> {
        let Answer { status, headers, body } =
            self.answer(|| self.client.post_payment(user_id, order)).await?;
        ensure!(status == StatusCode::CREATED, "{order} was refused: {status} {body}");
        if headers.contains_key("idempotent-replayed") {
            self.retries.replays.fetch_add(1, Ordering::Relaxed);
        }
        let payment: Value = serde_json::from_str(&body).context("a 201 is JSON")?;
        let payment_id = payment["payment_id"].as_str().and_then(|id| id.parse().ok());
        Ok(AcceptedPayment { payment_id: payment_id.context("a payment_id in the 201")?, body })
    }

    /// Requests a cancel until it is recorded, or has come too late.
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
        let pauses = ExponentialBuilder::default()
            .with_min_delay(RETRY_INTERVAL_MIN)
            .with_max_delay(RETRY_INTERVAL_MAX);
        for pause in pauses.with_jitter().without_max_times().build() {
            match read_answer(send()).await {
                Ok(answer) if RETRYABLE_STATUSES.contains(&answer.status) => {
                    self.retries.unavailable.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(retry_after(&answer)?).await;
                }
                Ok(Answer { status, body, .. }) if status.is_server_error() => {
                    bail!("a server error that must not be repeated: {status} {body}")
                }
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.retries.count_failure(&error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
        unreachable!("the retry intervals have no end")
    }
}

async fn read_answer(response: impl Future<Output = Result<Response>>) -> Result<Answer> {
    let response = response.await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, body: response.text().await? })
}

/// The pause that the answer asks for; it must be a problem with a Retry-After.
fn retry_after(answer: &Answer) -> Result<Duration> {
    let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = header(CONTENT_TYPE.as_str());
    ensure!(
        content_type == "application/problem+json",
        "the body of a {} is no problem but {content_type:?}: {}",
        answer.status,
        answer.body
    );
    let seconds: u64 = header(RETRY_AFTER.as_str())
        .parse()
        .with_context(|| format!("a {} without a Retry-After in seconds", answer.status))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn only_a_problem_with_a_retry_after_may_be_repeated() {
        let answer = |kind: &'static str, after: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.extend(after.map(|after| (RETRY_AFTER, HeaderValue::from_static(after))));
            Answer { status: StatusCode::SERVICE_UNAVAILABLE, headers, body: String::new() }
        };
        let problem = "application/problem+json";
        assert_eq!(retry_after(&answer(problem, Some("2"))).unwrap(), Duration::from_secs(2));
        assert!(retry_after(&answer("text/html", Some("2"))).is_err());
        assert!(retry_after(&answer(problem, None)).is_err());
    }
}
