//! Consumes work messages from RabbitMQ.
//!
//! * The connection is renewed here. Everything awaited on it has a time-out.
//! * Only as many messages are taken as calls may begin, so no lease runs while a charge waits in RAM.
//! * While the gateway cannot be reached, nothing is taken. While very many charges wait, nothing is taken either, since
//!   the due queue must have room for the charges under way.
//! * [`intents`] commits the messages, which are acknowledged after that and then called.

mod intents;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use brokers::rabbitmq;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use saga::backoff;
use saga::telemetry::log_text;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::breaker::Opening;
use crate::calls::Calls;
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::metrics::Metrics;
use crate::shares::Shares;
use crate::store::Store;
use crate::sweep::DUE_QUEUE_MAX;

/// Time limit of every answer of the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A queue that is silent for this long is declared again, to see that it exists.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);
/// Rows per commit.
const BATCH_MAX: usize = 500;

pub struct Jobs {
    pub url: String,
    pub queue: String,
    pub prefetch: u16,
    pub store: Store,
    pub ended_cache: EndedCache,
    pub calls: Calls,
    /// One permit per call.
    pub permits: Arc<Semaphore>,
    pub shares: Shares,
    /// Queues charges that wait.
    pub due_queue: DueQueue,
    pub metrics: Metrics,
}

/// Pause of a charge whose user or service has its full share.
const SHARE_RETRY_INTERVAL: Duration = Duration::from_millis(500);
impl Jobs {
    /// Consumes until `shutdown`; reconnects without end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut waits = backoff::unlimited(RECONNECT_DELAY_MAX);
        while !shutdown.is_cancelled() {
            let begun = Instant::now();
            let ended = self.session(&shutdown).await;
            self.metrics.work.broker_connected.set(0);
            let Err(error) = ended else { continue };
            Metrics::count(&self.metrics.failures, "broker");
            tracing::warn!(
                error = log_text(&error),
                "the connection to RabbitMQ failed; a new one is opened"
            );
            if begun.elapsed() > RECONNECT_DELAY_MAX {
                waits = backoff::unlimited(RECONNECT_DELAY_MAX);
            }
            tokio::select! {
                () = tokio::time::sleep(waits.next().unwrap_or(RECONNECT_DELAY_MAX)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One connection, from connecting to its end.
    async fn session(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        // The password may have been changed since the start.
        let url = secret_files::current(&self.url);
        let connection = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            connected = rabbitmq::connect(&url, "processor-svc", BROKER_TIMEOUT) => connected?,
        };
        let consumed = self.openings(&connection, shutdown).await;
        // Unacknowledged messages return to the queue, even if closing fails.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "stopping".into())).await;
        consumed
    }

    /// Consumes whenever the breaker lets calls through, on a new channel each time. Closing the channel cancels the
    /// consumer and returns its messages, so they wait in the queue and not here.
    async fn openings(&self, connection: &Connection, shutdown: &CancellationToken) -> anyhow::Result<()> {
        loop {
            let opening = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                opening = self.calls.breaker.opening() => opening,
            };
            let channel = bounded("open a channel", connection.create_channel()).await?;
            self.consume(&channel, opening, shutdown).await?;
            self.metrics.work.broker_connected.set(0);
            bounded("close the channel", channel.close(200, "no calls now".into())).await?;
        }
    }

    /// Takes messages until the breaker leaves this period; for probes one batch only.
    async fn consume(
        &self,
        channel: &Channel,
        opening: Opening,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let probes = opening.probes.map(|probes| u16::try_from(probes).unwrap_or(u16::MAX));
        let prefetch = probes.map_or(self.prefetch, |probes| probes.min(self.prefetch));
        bounded("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        self.declare(channel).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments);
        let mut consumer = bounded("consume", consuming).await?;
        self.metrics.work.broker_connected.set(1);
        tracing::info!(queue = self.queue, probes, "the gateway can be called; work messages are taken");
        let over = self.calls.breaker.over(opening);
        tokio::pin!(over);
        loop {
            if !self.room_in_due_queue(shutdown).await {
                return Ok(());
            }
            let max = probes.map_or(BATCH_MAX, usize::from).min(BATCH_MAX);
            let Some(mut permits) = self.capacity(max, shutdown).await else { return Ok(()) };
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = &mut over => return Ok(()),
                next = tokio::time::timeout(SILENCE_TIMEOUT, consumer.next()) => next,
            };
            match next {
                Ok(Some(first)) => {
                    let deliveries = drain(
                        first.context("RabbitMQ broke off a delivery")?,
                        &mut consumer,
                        permits.num_permits(),
                    )?;
                    self.batch(channel, deliveries, &mut permits, shutdown).await?;
                    if probes.is_some() {
                        return Ok(());
                    }
                }
                Ok(None) => bail!("the broker cancelled the consumer; a new connection is opened"),
                Err(_) => self.declare(channel).await?,
            }
        }
    }

    /// Checks that the queue exists. The relay creates it.
    async fn declare(&self, channel: &Channel) -> anyhow::Result<()> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declaring = channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default());
        bounded("find the queue", declaring).await.map(drop)
    }

    /// Waits while the due queue is half full: charges that are held back have rows, and more of them would leave no room
    /// for charges under way. Messages wait in RabbitMQ instead. False on shutdown.
    async fn room_in_due_queue(&self, shutdown: &CancellationToken) -> bool {
        while self.due_queue.len() >= DUE_QUEUE_MAX / 2 {
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(SHARE_RETRY_INTERVAL) => {}
            }
        }
        true
    }

    /// At least one permit, and as many more as there are up to `max`; `None` on shutdown.
    async fn capacity(&self, max: usize, shutdown: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        let mut permits = tokio::select! {
            () = shutdown.cancelled() => return None,
            permit = self.permits.clone().acquire_owned() => permit.ok()?,
        };
        while permits.num_permits() < max
            && let Ok(more) = self.permits.clone().try_acquire_owned()
        {
            permits.merge(more);
        }
        Some(permits)
    }
}

/// The first delivery and those that have arrived, without waiting.
fn drain(first: Delivery, consumer: &mut Consumer, max: usize) -> anyhow::Result<Vec<Delivery>> {
    let mut deliveries = vec![first];
    while deliveries.len() < max {
        match consumer.next().now_or_never() {
            Some(Some(delivery)) => deliveries.push(delivery.context("RabbitMQ broke off a delivery")?),
            // Nothing has arrived, or the stream ended, which the next wait sees.
            Some(None) | None => break,
        }
    }
    Ok(deliveries)
}

/// Waits for an answer of the broker.
///
/// # Errors
/// When the broker refuses or does not answer in time; the text names the request.
async fn bounded<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(BROKER_TIMEOUT, answer).await {
        Ok(answered) => answered.with_context(|| format!("RabbitMQ refused or broke off: {what}")),
        Err(_) => bail!("RabbitMQ did not answer within {BROKER_TIMEOUT:?}: {what}"),
    }
}
