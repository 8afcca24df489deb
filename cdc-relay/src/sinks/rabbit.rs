//! Publishes messages to RabbitMQ: persistent, mandatory, confirmed, in order.
//!
//! * One task per source owns the connection.
//! * An unconfirmed message stays in the task's queue. After any failure the task connects again and publishes all of them
//!   once more.
//! * Nothing here waits without a time-out: lapin may wait for ever for a broker that is gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backon::BackoffBuilder;
use brokers::rabbitmq;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use crate::checkpoint::progress::{Sink, TransactionSeq};
use crate::observe::metrics::SourceMetrics;
use crate::routes::problem::Problem;
use crate::sinks::acks::Acks;
use crate::sinks::event::Event;

const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// A confirm may take as long as the broker's disk or its memory alarm; after this, the task connects again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts to connect, before jitter, which at most doubles it.
const RECONNECT_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// Ra before 2.10.2 (RabbitMQ 3.10) stores the name of a new quorum queue half a second after it has answered
/// (`names.dets`, saved when idle). Killed before that, it loses the queue and all that it confirmed.
const QUEUE_STORED_TIMEOUT: Duration = Duration::from_secs(2);
/// The weight of a message besides its body.
const MESSAGE_OVERHEAD_BYTES: i64 = 1024;

struct Job {
    transaction_seq: TransactionSeq,
    weight: i64,
    queue: ShortString,
    properties: BasicProperties,
    body: Bytes,
}

/// The source's end: it hands messages to the task. The source bounds them by the bytes in flight.
pub struct Rabbit {
    jobs: UnboundedSender<Job>,
    acks: Arc<Acks>,
    queues: Vec<ShortString>,
}

impl Rabbit {
    /// Starts the task; it ends when the handle is dropped.
    pub fn start(
        runtime: &tokio::runtime::Handle,
        uri: &str,
        queues: &[String],
        acks: &Arc<Acks>,
        metrics: &SourceMetrics,
    ) -> Rabbit {
        let (jobs, incoming) = unbounded_channel();
        let queues: Vec<ShortString> = queues.iter().map(|name| name.as_str().into()).collect();
        let task = Task {
            uri: uri.to_owned(),
            queues: queues.clone(),
            acks: Arc::clone(acks),
            metrics: metrics.clone(),
            incoming,
            unconfirmed: VecDeque::new(),
            problem: String::new(),
        };
        runtime.spawn(task.run());
        Rabbit { jobs, acks: Arc::clone(acks), queues }
    }

    /// Publishes an event to the queue of this index.
    ///
    /// # Errors
    /// When AMQP cannot express the event.
    pub fn publish(&self, queue: usize, event: &Event<'_>) -> Result<(), Problem> {
        let Event { record, plan, transaction, transaction_seq } = *event;
        let mut headers = BTreeMap::new();
        for (name, value) in record.headers(plan) {
            headers.insert(short(name.as_bytes())?, AMQPValue::LongString(LongString::from(value.to_vec())));
        }
        let seconds = transaction.committed_at.unix_micros().div_euclid(1_000_000);
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(short(&record.id)?)
            .with_type(short(&record.kind)?)
            .with_timestamp(u64::try_from(seconds).unwrap_or_default())
            .with_headers(FieldTable::from(headers));
        let queue = self.queues.get(queue).cloned().ok_or_else(|| Problem("no such queue".to_owned()))?;
        let weight = record.size() as i64 + MESSAGE_OVERHEAD_BYTES;
        let body = Bytes::copy_from_slice(&record.value);
        self.acks.added(Sink::Rabbit, weight);
        if self.jobs.send(Job { transaction_seq, weight, queue, properties, body }).is_err() {
            self.acks.fail("the RabbitMQ task ended".to_owned());
        }
        Ok(())
    }
}

/// AMQP has names and ids of at most 255 bytes.
fn short(bytes: &[u8]) -> Result<ShortString, Problem> {
    let text = String::from_utf8_lossy(bytes);
    ShortString::try_new(text.as_ref()).map_err(|_| Problem(format!("`{text}` is longer than AMQP allows")))
}

struct Task {
    uri: String,
    queues: Vec<ShortString>,
    acks: Arc<Acks>,
    metrics: SourceMetrics,
    incoming: UnboundedReceiver<Job>,
    /// Handed over and not confirmed, in order.
    unconfirmed: VecDeque<Job>,
    /// The last problem in the log that still lasts.
    problem: String,
}

type Confirms = FuturesOrdered<BoxFuture<'static, lapin::Result<Confirmation>>>;

impl Task {
    async fn run(mut self) {
        let delays = || {
            backon::ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(RECONNECT_INTERVAL_MAX)
                .with_jitter()
                .without_max_times()
        };
        let mut backoff = delays().build();
        loop {
            match self.connect().await {
                Ok((connection, channel)) => {
                    tracing::info!(source = self.metrics.name, "connected to RabbitMQ");
                    self.problem.clear();
                    backoff = delays().build();
                    let ended = self.publish(&channel).await;
                    // A connection that is already gone cannot be closed; either way it is done.
                    let _ = timeout(Duration::from_secs(1), connection.close(200, "bye".into())).await;
                    match ended {
                        Ok(()) => return,
                        Err(error) => self.report(&error),
                    }
                }
                Err(error) => self.report(&error),
            }
            if self.incoming.is_closed() {
                return;
            }
            tokio::time::sleep(backoff.next().unwrap_or(STEP_TIMEOUT)).await;
        }
    }

    /// Counts every error, and logs it if it differs from the last one.
    fn report(&mut self, error: &anyhow::Error) {
        self.metrics.sinks.errors[Sink::Rabbit as usize].inc();
        let problem = format!("{error:#}");
        if problem != self.problem {
            tracing::warn!(source = self.metrics.name, %problem, "the connection to RabbitMQ failed, connecting again");
            self.problem = problem;
        }
    }

    async fn connect(&self) -> Result<(Connection, Channel)> {
        // The password may have been changed since the start.
        let uri = secret_files::current(&self.uri);
        let connection = rabbitmq::connect(&uri, "cdc-relay", STEP_TIMEOUT).await?;
        for queue in &self.queues {
            declare(&connection, queue).await.with_context(|| format!("queue {queue}"))?;
        }
        let channel = timeout(STEP_TIMEOUT, connection.create_channel()).await??;
        timeout(STEP_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await??;
        Ok((connection, channel))
    }

    /// Ends with `Ok` when the source has ended and everything is confirmed.
    async fn publish(&mut self, channel: &Channel) -> Result<()> {
        let mut confirms = Confirms::new();
        self.metrics.resent(Sink::Rabbit, self.unconfirmed.len() as u64);
        for job in &self.unconfirmed {
            send(channel, job, &mut confirms)?;
        }
        loop {
            tokio::select! {
                biased;
                job = self.incoming.recv() => match job {
                    Some(job) => {
                        // The job is kept first: whatever fails now, it is published again.
                        self.unconfirmed.push_back(job);
                        if let Some(job) = self.unconfirmed.back() {
                            send(channel, job, &mut confirms)?;
                        }
                    }
                    None if confirms.is_empty() => return Ok(()),
                    None => self.handle_confirm(timeout(CONFIRM_TIMEOUT, confirms.next()).await.context("the broker did not confirm in time")?)?,
                },
                confirm = timeout(CONFIRM_TIMEOUT, confirms.next()), if !confirms.is_empty() => {
                    self.handle_confirm(confirm.context("the broker did not confirm in time")?)?;
                }
            }
        }
    }

    fn handle_confirm(&mut self, confirm: Option<lapin::Result<Confirmation>>) -> Result<()> {
        match confirm {
            Some(Ok(Confirmation::Ack(None))) => {
                if let Some(job) = self.unconfirmed.pop_front() {
                    self.acks.acknowledged(Sink::Rabbit, job.transaction_seq, job.weight);
                }
                Ok(())
            }
            Some(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
                bail!("the broker returned a message: {} ({})", returned.reply_text, returned.reply_code)
            }
            Some(Ok(Confirmation::Nack(None))) => bail!("the broker did not accept a message"),
            Some(Ok(Confirmation::NotRequested)) => bail!("the channel does not confirm messages"),
            Some(Err(error)) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Hands the frames to lapin at once, so that messages keep their order. The confirm is awaited later.
fn send(channel: &Channel, job: &Job, confirms: &mut Confirms) -> Result<()> {
    let channel = channel.clone();
    let (queue, properties, body) = (job.queue.clone(), job.properties.clone(), job.body.clone());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut publish: BoxFuture<'static, lapin::Result<Confirmation>> =
        Box::pin(
            async move { channel.basic_publish("".into(), queue, options, &body, properties).await?.await },
        );
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match publish.as_mut().poll(&mut context) {
        std::task::Poll::Ready(done) => {
            let confirmation = done?;
            confirms.push_back(Box::pin(async move { Ok(confirmation) }));
        }
        std::task::Poll::Pending => confirms.push_back(publish),
    }
    Ok(())
}

/// How the relay declares a queue: durable, quorum, without a delivery limit.
pub fn declaration() -> (QueueDeclareOptions, FieldTable) {
    // RabbitMQ 4 drops a message after 20 deliveries unless configured otherwise, and "no limit" is -1 there; 3.x takes
    // that -1 without a word and drops every message that was delivered once and came back. A limit beyond
    // reach means the same to both.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    (QueueDeclareOptions::durable(), arguments)
}

/// Declares the queue, unless it exists; an existing one is used as it is.
async fn declare(connection: &Connection, queue: &ShortString) -> Result<()> {
    let channel = timeout(STEP_TIMEOUT, connection.create_channel()).await??;
    let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let exists =
        timeout(STEP_TIMEOUT, channel.queue_declare(queue.clone(), passive, FieldTable::default())).await?;
    if exists.is_ok() {
        let _ = timeout(STEP_TIMEOUT, channel.close(200, "bye".into())).await;
        return Ok(());
    }
    let (options, arguments) = declaration();
    let channel = timeout(STEP_TIMEOUT, connection.create_channel()).await??;
    timeout(STEP_TIMEOUT, channel.queue_declare(queue.clone(), options, arguments)).await??;
    tracing::info!(%queue, "queue created");
    tokio::time::sleep(QUEUE_STORED_TIMEOUT).await;
    let _ = timeout(STEP_TIMEOUT, channel.close(200, "bye".into())).await;
    Ok(())
}
