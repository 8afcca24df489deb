//! Delivers webhooks `charge.decided`, signed as the Standard Webhooks specification says.
//!
//! * A webhook carries the reference only, so the receiver must inquire.
//! * At most [`QUEUE_MAX`] webhooks wait. Further ones are dropped and counted, as are those that [`DELIVERIES_MAX`] tries
//!   did not deliver. Receivers must work without webhooks.

use std::time::Duration;

use anyhow::Context;
use backon::{ExponentialBuilder, Retryable};
use serde_json::json;
use standardwebhooks::Webhook;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::record::{Decision, Id, micros, now};
use crate::script::{Hook, roll};

const QUEUE_MAX: usize = 1_024;
/// Maximum number of concurrent deliveries.
const CONCURRENT_MAX: usize = 16;
const DELIVERIES_MAX: usize = 4;
/// A server may close a connection that was idle for longer, at the moment at which a webhook is sent on it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The receiver of webhooks.
pub struct Target {
    pub url: String,
    signer: Webhook,
    wrong: Webhook,
}

impl Target {
    /// # Errors
    /// When the secret is not base64 (with or without `whsec_`).
    pub fn new(url: String, secret: &str) -> anyhow::Result<Target> {
        let signer = Webhook::new(secret).context("the webhook secret is not base64")?;
        let wrong = Webhook::from_bytes(b"not the secret".to_vec())?;
        Ok(Target { url, signer, wrong })
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    listener::tls::install_provider();
    reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).pool_idle_timeout(IDLE_TIMEOUT).build()
}

struct Notification {
    reference: Id,
    /// The same at every delivery of a decision.
    id: String,
    hook: Hook,
}

/// Queues webhooks of decisions. Without a target nothing is queued.
pub struct Hooks {
    queue: Option<Sender<Notification>>,
    metrics: Metrics,
    seed: u64,
}

impl Hooks {
    /// The queue, and the future that delivers from it until `shutdown`.
    ///
    /// # Errors
    /// When no HTTP client can be created.
    pub fn new(
        target: Option<Target>,
        metrics: Metrics,
        seed: u64,
        shutdown: CancellationToken,
    ) -> anyhow::Result<(Hooks, impl Future<Output = ()>)> {
        let (sender, receiver) = channel(QUEUE_MAX);
        let queue = target.is_some().then_some(sender);
        // It reads the system's authorities, which takes a moment: only whoever calls somebody needs them.
        let http = target.is_some().then(client).transpose()?;
        let counted = metrics.clone();
        let work = async move {
            if let (Some(target), Some(http)) = (target, http) {
                deliver_all(receiver, &target, &http, &counted, &shutdown).await;
            }
        };
        Ok((Hooks { queue, metrics, seed }, work))
    }

    /// Queues the webhooks of a decision. `answered`: the caller of the charge received the answer.
    pub fn notify(&self, decision: &Decision, hook: Hook, answered: bool) {
        let Some(queue) = self.queue.as_ref().filter(|_| hook.always || !answered) else { return };
        let id = format!("msg_{:016x}", roll(self.seed, &decision.key.to_string(), u32::MAX - 2));
        for _ in 0..hook.copies {
            let notification = Notification { reference: decision.reference.clone(), id: id.clone(), hook };
            if queue.try_send(notification).is_err() {
                self.metrics.hooks.with_label_values(&["dropped"]).inc();
            }
        }
    }
}

async fn deliver_all(
    queue: Receiver<Notification>,
    target: &Target,
    http: &reqwest::Client,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) {
    let waiting = futures_util::stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)));
    let deliveries =
        futures_util::StreamExt::for_each_concurrent(waiting, CONCURRENT_MAX, |notification| async move {
            let delivered = match deliver(&notification, target, http).await {
                Ok(()) => "delivered",
                Err(error) => {
                    tracing::debug!(
                        error = format!("{error:#}"),
                        "a webhook was not delivered after all tries; it is dropped"
                    );
                    "undelivered"
                }
            };
            metrics.hooks.with_label_values(&[delivered]).inc();
        });
    tokio::select! {
        () = deliveries => {}
        () = shutdown.cancelled() => {}
    }
}

async fn deliver(notification: &Notification, target: &Target, http: &reqwest::Client) -> anyhow::Result<()> {
    tokio::time::sleep(notification.hook.late).await;
    let body = json!({"type": "charge.decided", "timestamp": micros(now()).to_string(),
        "data": {"reference": notification.reference.to_string()}})
    .to_string();
    let send = || async {
        let seconds = now().as_second();
        let signer = if notification.hook.bad { &target.wrong } else { &target.signer };
        let signature = signer.sign(&notification.id, seconds, body.as_bytes())?;
        let request = http
            .post(&target.url)
            .header("content-type", "application/json")
            .header(standardwebhooks::HEADER_WEBHOOK_ID, &notification.id)
            .header(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, seconds)
            .header(standardwebhooks::HEADER_WEBHOOK_SIGNATURE, signature);
        request.body(body.clone()).send().await?.error_for_status()?;
        anyhow::Ok(())
    };
    send.retry(ExponentialBuilder::default().with_jitter().with_max_times(DELIVERIES_MAX - 1)).await
}
