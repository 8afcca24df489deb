//! Consumes work messages from RabbitMQ.
//!
//! * The connection is renewed here. Everything awaited on it has a time-out.
//! * Only as many messages are taken as calls may begin, so no lease runs while a charge waits in memory.
//! * While the gateway cannot be reached, nothing is taken. While very many charges wait, nothing is taken either, since
//!   the due queue must have room for the charges under way.
//! * [`intents`] commits the messages, which are acknowledged after that and then called.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use saga::parked::Parked;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::breaker::{Opening, Pass, Refusal};
use crate::calls::{Calls, Permit};
use crate::cause::Cause;
use crate::charge::{CONFLICT, Charge};
use crate::due_queue::DueQueue;
use crate::ended_cache::EndedCache;
use crate::failpoints::{Failpoint, hit};
use crate::metrics::Metrics;
use crate::retry::{Stop, backoff, until_done};
use crate::shares::{Share, Shares};
use crate::store::{Admission, Intent, Store};
use crate::sweep::DUE_QUEUE_MAX;
use crate::work::{self, Job, Message};

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

/// A readable message: its job, and the message for parking.
struct WorkItem {
    job: Job,
    message: Message,
}

/// A work item with the right to call now, or the reason to hold it back.
struct Candidate {
    taken: WorkItem,
    right: Result<CallRight, (Cause, Duration)>,
}

struct CallRight {
    pass: Pass,
    share: Share,
}

/// Pause of a charge whose user or service has its full share.
const SHARE_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum pause of a charge that a breaker refuses.
const REFUSED_PAUSE_MIN: Duration = Duration::from_millis(50);

impl Jobs {
    /// Consumes until `shutdown`; reconnects without end.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut waits = backoff(RECONNECT_DELAY_MAX);
        while !shutdown.is_cancelled() {
            let begun = Instant::now();
            let ended = self.session(&shutdown).await;
            self.metrics.work.broker_connected.set(0);
            let Err(error) = ended else { continue };
            Metrics::count(&self.metrics.failures, "broker");
            tracing::warn!(
                error = format!("{error:#}"),
                "the connection to RabbitMQ failed; a new one is opened"
            );
            if begun.elapsed() > RECONNECT_DELAY_MAX {
                waits = backoff(RECONNECT_DELAY_MAX);
            }
            tokio::select! {
                () = tokio::time::sleep(waits.next().unwrap_or(RECONNECT_DELAY_MAX)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One connection, from connecting to its end.
    async fn session(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let connecting = Connection::connect(&self.url, ConnectionProperties::default());
        let connection = bounded("connect", connecting).await?;
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
                    let deliveries = drain(first.context("delivery")?, &mut consumer, permits.num_permits())?;
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

    /// Commits the deliveries, acknowledges them, and begins the calls.
    async fn batch(
        &self,
        channel: &Channel,
        deliveries: Vec<Delivery>,
        permits: &mut OwnedSemaphorePermit,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(last) = deliveries.last().map(|delivery| delivery.delivery_tag) else { return Ok(()) };
        let (taken, unreadable) = self.read(deliveries);
        let taken = self.not_ended(taken).await;
        let begun = Instant::now();
        hit(Failpoint::BeforeIntent);
        let ready = taken.into_iter().map(|taken| self.ready(taken)).collect();
        let Ok(jobs) = self.admit(ready, unreadable, shutdown).await else {
            // Shutdown began while the database is away: nothing is committed, and everything is delivered again.
            return Ok(());
        };
        hit(Failpoint::AfterIntent);
        // Batches are committed one after the other, so everything up to this tag is committed.
        let acknowledging = channel.basic_ack(last, BasicAckOptions { multiple: true });
        let acknowledged = bounded("acknowledge", acknowledging).await;
        hit(Failpoint::AfterAck);
        for (job, CallRight { pass, share }) in jobs {
            match permits.split(1) {
                Some(room) => {
                    let permit = Permit { room, share: Some(share) };
                    self.calls.start(job.charge, 1, false, begun, (permit, pass));
                }
                // There are never more jobs than permits. Without one, the sweeper finds the lapsed lease.
                None => {
                    tracing::error!(payment_id = %job.charge.payment_id, "a charge has no permit and is not called; the sweeper takes it over when its lease lapses");
                }
            }
        }
        acknowledged
    }

    /// Reads deliveries: one work item per payment, and the parked messages of the others.
    fn read(&self, deliveries: Vec<Delivery>) -> (Vec<WorkItem>, Vec<Parked>) {
        let (mut taken, mut unreadable) = (Vec::with_capacity(deliveries.len()), Vec::new());
        let mut at: HashMap<Uuid, usize> = HashMap::with_capacity(deliveries.len());
        for delivery in deliveries {
            let message = message(delivery);
            match work::read(&message) {
                Err(reason) => unreadable.push(self.parked(&message, &reason)),
                Ok(job) => match at.get(&job.charge.payment_id) {
                    None => {
                        at.insert(job.charge.payment_id, taken.len());
                        taken.push(WorkItem { job, message });
                    }
                    Some(first) if job.charge.is_same(&taken[*first].job.charge) => self.count("already", 1),
                    Some(_) => unreadable.push(self.contradicts(&message)),
                },
            }
        }
        self.count("parked", unreadable.len());
        (taken, unreadable)
    }

    /// Drops duplicates of charges that have ended. Redis names candidates, and the database confirms them, since its rows
    /// may be older than Redis.
    async fn not_ended(&self, mut taken: Vec<WorkItem>) -> Vec<WorkItem> {
        let charges: Vec<&Charge> = taken.iter().map(|t| &t.job.charge).collect();
        let hits = self.ended_cache.find(&charges).await;
        if hits.is_empty() {
            return taken;
        }
        let hits: Vec<&Charge> = charges.into_iter().filter(|c| hits.contains(&c.payment_id)).collect();
        let ended = match self.store.ended(&hits).await {
            Ok(ended) => ended,
            Err(error) => {
                // The insert conflicts with the same rows, and is retried until it succeeds.
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the database cannot confirm hits of Redis; their messages are inserted as if unknown"
                );
                HashSet::new()
            }
        };
        let unconfirmed = self.metrics.work.cache.with_label_values(&["unconfirmed"]);
        unconfirmed.inc_by((hits.len() - ended.len()) as u64);
        taken.retain(|t| !ended.contains(&t.job.charge.payment_id));
        self.count("ended", ended.len());
        taken
    }

    /// Asks for the right to call before the intent is written. Without it the row waits.
    fn ready(&self, taken: WorkItem) -> Candidate {
        let charge = &taken.job.charge;
        let right = match self.shares.take(charge) {
            None => Err((Cause::ShareTaken, SHARE_RETRY_INTERVAL)),
            Some(share) => match self.calls.breaker.begin(charge) {
                Ok(pass) => Ok(CallRight { pass, share }),
                Err(Refusal { until }) => {
                    let pause = until.map(|until| until.saturating_duration_since(Instant::now()));
                    Err((Cause::BreakerOpen, pause.unwrap_or(SHARE_RETRY_INTERVAL).max(REFUSED_PAUSE_MIN)))
                }
            },
        };
        Candidate { taken, right }
    }

    /// Commits the intents and returns those to call. A message that the database refuses for good is found by halving and
    /// parked.
    async fn admit(
        &self,
        ready: Vec<Candidate>,
        unreadable: Vec<Parked>,
        shutdown: &CancellationToken,
    ) -> Result<Vec<(Job, CallRight)>, Stop> {
        let (mut to_call, mut unreadable) = (Vec::with_capacity(ready.len()), unreadable);
        let mut parts = vec![ready];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() && unreadable.is_empty() {
                continue;
            }
            let begun = Instant::now();
            let intents: Vec<Intent<'_>> = part.iter().map(Candidate::intent).collect();
            let committing = || self.store.admit_intents(&intents, &unreadable);
            match until_done("commit intents", &self.metrics, shutdown, committing).await {
                Ok(answers) => {
                    self.metrics.committed("intents", part.len(), begun);
                    unreadable.clear();
                    let conflicts = self.sort(part, &answers, &mut to_call);
                    self.park(conflicts, shutdown).await?;
                }
                Err(Stop::Abandoned) => return Err(Stop::Abandoned),
                Err(Stop::Poison(error)) if part.len() <= 1 => {
                    let reason = format!("{error:#}");
                    self.count("parked", part.len());
                    unreadable.extend(part.iter().map(|ready| self.parked(&ready.taken.message, &reason)));
                    parts.push(Vec::new());
                }
                Err(Stop::Poison(_)) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([part, rest]);
                }
            }
        }
        Ok(to_call)
    }

    /// Counts each outcome and collects the jobs to call; returns the messages to park.
    fn sort(
        &self,
        part: Vec<Candidate>,
        answers: &[Admission],
        to_call: &mut Vec<(Job, CallRight)>,
    ) -> Vec<Parked> {
        let mut conflicts = Vec::new();
        for (Candidate { taken, right }, answer) in part.into_iter().zip(answers) {
            let result = match answer {
                Admission::Calling => {
                    to_call.extend(right.ok().map(|right| (taken.job, right)));
                    "calling"
                }
                Admission::Waiting => {
                    let pause = right.err().map_or(SHARE_RETRY_INTERVAL, |(_, pause)| pause);
                    self.due_queue.set(taken.job.charge.payment_id, pause);
                    "waiting"
                }
                Admission::Expired => {
                    Metrics::count(&self.metrics.transitions, "expired");
                    "expired"
                }
                Admission::Already => "already",
                Admission::Conflict => {
                    conflicts.push(self.contradicts(&taken.message));
                    "parked"
                }
            };
            self.count(result, 1);
        }
        conflicts
    }

    async fn park(&self, messages: Vec<Parked>, shutdown: &CancellationToken) -> Result<(), Stop> {
        if messages.is_empty() {
            return Ok(());
        }
        until_done("park messages", &self.metrics, shutdown, || self.store.park(&messages)).await
    }

    fn parked(&self, message: &Message, reason: &str) -> Parked {
        work::park(&self.queue, message, reason)
    }

    fn contradicts(&self, message: &Message) -> Parked {
        self.metrics.consumer.contradictions.inc();
        self.parked(message, CONFLICT)
    }

    fn count(&self, result: &str, messages: usize) {
        self.metrics.work.jobs.with_label_values(&[result]).inc_by(messages as u64);
    }
}

impl Candidate {
    fn intent(&self) -> Intent<'_> {
        Intent { job: &self.taken.job, held_back: self.right.as_ref().err().cloned() }
    }
}

/// The first delivery and those that have arrived, without waiting.
fn drain(first: Delivery, consumer: &mut Consumer, max: usize) -> anyhow::Result<Vec<Delivery>> {
    let mut deliveries = vec![first];
    while deliveries.len() < max {
        match consumer.next().now_or_never() {
            Some(Some(delivery)) => deliveries.push(delivery.context("delivery")?),
            // Nothing has arrived, or the stream ended, which the next wait sees.
            Some(None) | None => break,
        }
    }
    Ok(deliveries)
}

fn message(delivery: Delivery) -> Message {
    let properties = delivery.properties;
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    let headers = properties.headers().iter().flat_map(|table| table.inner());
    let headers = headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect();
    Message {
        body: delivery.data,
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        kind: properties.kind().as_ref().map(ToString::to_string),
        headers,
    }
}

/// Waits for an answer of the broker.
///
/// # Errors
/// When the broker refuses or does not answer in time; the text names the request.
async fn bounded<T>(what: &str, answer: impl Future<Output = lapin::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(BROKER_TIMEOUT, answer).await {
        Ok(answered) => answered.with_context(|| what.to_owned()),
        Err(_) => bail!("RabbitMQ did not answer within {BROKER_TIMEOUT:?}: {what}"),
    }
}
