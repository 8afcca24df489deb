//! Kafka to one database transaction per batch: at least once, and the effect once.
//!
//! The loop polls a record, drains what is there without waiting, and hands the whole batch, order per
//! partition kept, to the [`Subscriber`], which applies it in one transaction. Only then are the offsets
//! stored (a background commit does the rest), so a crash at any point repeats records and never skips one.
//!
//! * A transient failure is tried again with jittered back-off for as long as it takes. Meanwhile the
//!   partitions are paused but still polled: the group keeps its members however long a database is away.
//! * A poison record (undecodable, impossible, refused by a constraint) is found by bisection and parked.
//! * An event whose row is not there yet is never taken for a duplicate. It waits, and what is behind it in
//!   its partition; the other partitions are read on, since what makes the row may come on one of them. After
//!   [`Limits::missing`] it is parked.
//!
//! A rebalance in the middle of a batch is harmless: the batch is finished, storing an offset of a
//! partition that was taken away is refused by the client and ignored, and its new owner repeats it.

mod batches;
mod client;
mod metrics;
mod waiting;

use std::time::Duration;

use anyhow::Context;
use brokers::Brokers;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::batches::{Loop, LoopEnd};
use self::client::subscribe;
pub use self::metrics::ConsumerMetrics;
use crate::contract::{
    Envelope, EnvelopeError, EventType, HEADER_ID, HEADER_SOURCE, HEADER_SUBJECT, HEADER_TYPE,
};
use crate::parked::{Parked, storable};

/// What a consumer is called, and where it reads.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub brokers: Brokers,
    pub group_id: String,
    /// Set where each instance has a stable name: a killed instance then comes back without a rebalance.
    pub instance_id: Option<String>,
    pub topics: Vec<String>,
}

/// How long things may take. Tests have less patience.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long an event may wait for the row it is about. Its row is committed before the event that led to
    /// it, so a long absence means a restored or wrong database, which a person must see.
    pub missing: Duration,
    /// How long the group waits for a member that does not poll; at least its session time-out of 6 seconds.
    pub poll: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { missing: Duration::from_secs(60), poll: Duration::from_secs(300) }
    }
}

/// One record as it was read.
pub struct Record<'a>(&'a BorrowedMessage<'a>);

impl Record<'_> {
    /// The value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.0.headers()?;
        headers.iter().find(|h| h.key == name).and_then(|h| std::str::from_utf8(h.value?).ok())
    }

    pub fn event_type(&self) -> Option<&str> {
        self.header(HEADER_TYPE)
    }

    /// What the record says of itself outside its body.
    ///
    /// # Errors
    /// When its type is missing or not known; the text says so.
    pub fn envelope(&self) -> Result<Envelope<'_>, String> {
        let name = self.event_type().ok_or("no ce_type header")?;
        let event_type = EventType::parse(name).ok_or_else(|| format!("event type {name} is not known"))?;
        Ok(Envelope {
            event_type,
            topic: self.0.topic(),
            key: self.0.key().unwrap_or_default(),
            id: self.header(HEADER_ID),
            source: self.header(HEADER_SOURCE),
            subject: self.header(HEADER_SUBJECT),
        })
    }

    pub fn body(&self) -> &[u8] {
        self.0.payload().unwrap_or_default()
    }

    /// This record set aside, with all it takes to tell it again.
    pub fn park(&self, reason: impl AsRef<str>) -> Parked {
        let headers = self.0.headers().into_iter().flat_map(Headers::iter).map(|h| {
            let value = h.value.map(String::from_utf8_lossy).unwrap_or_default();
            (storable(h.key), serde_json::Value::String(storable(&value)))
        });
        Parked {
            parked_id: format!("{}/{}/{}", self.0.topic(), self.0.partition(), self.0.offset()),
            source: self.0.topic().to_owned(),
            message_key: self.0.key().map(|key| storable(&String::from_utf8_lossy(key))),
            event_type: self.event_type().map(storable),
            headers: serde_json::Value::Object(headers.collect()),
            body: self.body().to_vec(),
            reason: storable(reason.as_ref()),
        }
    }
}

/// What a record means to one service.
pub enum Decoding<E> {
    Event(E),
    /// Known and of no concern here.
    Ignore,
    /// Cannot be read; the text says why.
    Poison(String),
    /// Its parts contradict each other; the text says how. Set aside like poison, and alarmed.
    Contradicts(String),
}

impl<E> From<Result<E, EnvelopeError>> for Decoding<E> {
    fn from(read: Result<E, EnvelopeError>) -> Self {
        match read {
            Ok(event) => Decoding::Event(event),
            Err(unfit @ EnvelopeError::Unreadable(_)) => Decoding::Poison(unfit.to_string()),
            Err(unfit @ EnvelopeError::Contradicts(_)) => Decoding::Contradicts(unfit.to_string()),
        }
    }
}

/// A decoded event together with the record it came in.
pub struct Delivery<'a, E> {
    pub record: Record<'a>,
    pub event: E,
}

/// What became of a batch, counted per record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    pub applied: usize,
    /// Had its effect before: a duplicate.
    pub already: usize,
    /// Set aside by the subscriber itself: an impossible transition, or a contradiction.
    pub parked: usize,
    /// How many of those contradict the subscriber's own row of the payment.
    pub contradictions: usize,
}

/// An event of a batch whose row is not visible (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRow {
    /// Its place in the batch.
    pub index: usize,
    /// The row.
    pub what: String,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// The rows of these events are missing. The others are applied without them, by another call.
    Missing(Vec<MissingRow>),
    Other(anyhow::Error),
}

impl<T: Into<anyhow::Error>> From<T> for ApplyError {
    fn from(error: T) -> Self {
        ApplyError::Other(error.into())
    }
}

/// A service's side of the loop.
pub trait Subscriber {
    type Event;

    fn decode(&self, record: &Record<'_>) -> Decoding<Self::Event>;

    /// Applies the events in order and inserts `unreadable` as parked, in one transaction; on an error nothing.
    fn apply(
        &self,
        events: &[Delivery<'_, Self::Event>],
        unreadable: &[Parked],
    ) -> impl Future<Output = Result<BatchCounts, ApplyError>>;
}

/// Runs the loop on a thread of its own until `shutdown`; the client's poll is blocking by nature.
pub async fn run<S>(
    subscription: Subscription,
    subscriber: S,
    metrics: ConsumerMetrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    S: Subscriber + Send + 'static,
{
    run_within(Limits::default(), subscription, subscriber, metrics, shutdown).await
}

/// [`run`] with other limits.
pub async fn run_within<S>(
    limits: Limits,
    subscription: Subscription,
    subscriber: S,
    metrics: ConsumerMetrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    S: Subscriber + Send + 'static,
{
    let runtime = Handle::current();
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("consumer".into()).spawn(move || {
        let outcome = consume(limits, &subscription, &subscriber, &metrics, &shutdown, &runtime);
        // The receiver is gone only when the whole process is going.
        let _ = done.send(outcome);
    })?;
    ended.await.context("the consumer thread panicked")?
}

/// Until `shutdown`, with as many clients, one after the other, as that takes.
fn consume<S: Subscriber>(
    limits: Limits,
    subscription: &Subscription,
    subscriber: &S,
    metrics: &ConsumerMetrics,
    shutdown: &CancellationToken,
    runtime: &Handle,
) -> anyhow::Result<()> {
    loop {
        let consumer = subscribe(subscription, limits.poll)?;
        let topic = subscription.topics.first().map(String::as_str);
        let missing_timeout = limits.missing;
        let reader =
            Loop { consumer: &consumer, topic, subscriber, metrics, missing_timeout, shutdown, runtime };
        match reader.run()? {
            LoopEnd::Stopped => return Ok(()),
            LoopEnd::Lost => {
                tracing::warn!(group = subscription.group_id, "no broker answers: a new client tries");
                // Leaving the group may take as long as the brokers stay away.
                std::thread::Builder::new().name("old consumer".into()).spawn(move || drop(consumer))?;
            }
        }
    }
}
