//! Consumes Kafka topics in batches, one database transaction per batch: at least once, with an effect once.
//!
//! * The loop polls one record, drains those already fetched, and hands the batch to the [`Subscriber`], which applies it
//!   in one transaction. The order within a partition is kept.
//! * Offsets are stored after the transaction and committed in the background, so a crash repeats records and skips none.
//! * A transient failure is retried without end, with jittered back-off. Meanwhile the partitions are paused but polled,
//!   so the member stays in its group however long the database is away.
//! * A poison record (undecodable, impossible, refused by a constraint) is found by bisection and parked.
//! * An event whose row is missing is never a duplicate. It waits, and the records behind it in its partition wait too.
//!   Other partitions are read on, since one of them may bring the row. After [`Limits::missing`] the event is parked.
//! * An event of a user who is being moved to another shard waits in the same way, and is never parked for it.
//! * An event of a user whose database is away, while others are not, is passed over: the partition is read on, and nothing from that
//!   event on is committed. Once the database answers, the partition is read again from there. No memory grows meanwhile. So is
//!   an event of a user whom no shard owns for longer than [`Limits::moving`].
//! * Of several databases one may serve and not end a batch in time. Then the batch is halved until it does; a single event that still does
//!   not end is passed over.
//! * The lag of the group is measured beside the loop, so that a loop that stands still is seen.
//! * A rebalance during a batch is harmless: the client refuses to store offsets of a lost partition, and the new owner
//!   repeats its records.

mod absent;
mod batches;
mod client;
mod fetched;
mod follower;
mod handler;
mod lag;
mod lag_watch;
mod metrics;
mod passed_over;
mod range;
mod reader;
mod settings;
mod waiting;

use std::time::{Duration, Instant};

use anyhow::Context;
use brokers::Brokers;
use rdkafka::message::Headers;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::batches::{Loop, LoopEnd};
use self::client::{Fenced, is_fatal, subscribe};
use self::fetched::Fetched;
pub use self::follower::Follower;
pub use self::handler::EventHandler;
pub use self::lag::{Ends, GroupOffsets, PartitionProgress, partitions};
pub use self::metrics::ConsumerMetrics;
pub use self::range::{Batches, TopicRange};
pub use self::reader::{Offsets, Reader};
pub use self::settings::Settings;
use crate::contract::{
    Envelope, EnvelopeError, EventType, HEADER_ID, HEADER_SOURCE, HEADER_SUBJECT, HEADER_TYPE,
};
use crate::parked::{Parked, storable};
use crate::telemetry::log_text;

/// The group of a consumer, and the topics that it reads.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub brokers: Brokers,
    pub group_id: String,
    /// Set where each instance has a stable name: a killed instance then comes back without a rebalance.
    pub instance_id: Option<String>,
    pub topics: Vec<String>,
}

/// Time limits of a consumer. Tests set shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long an event may wait for its row. The row is committed before its events are emitted, so a longer absence
    /// means a restored or wrong database, which an operator must see.
    pub missing: Duration,
    /// How long what is behind an event waits for its user, whom nobody owns. A move lets go after 300 milliseconds.
    pub moving: Duration,
    /// How long the group waits for a member that does not poll; at least the session time-out of 6 seconds.
    pub poll: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            missing: Duration::from_secs(60),
            moving: Duration::from_secs(2),
            poll: Duration::from_secs(300),
        }
    }
}

/// One record of a topic.
pub struct Record<'a>(&'a Fetched<'a>);

impl Record<'_> {
    /// The value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.0.headers()?;
        headers.iter().find(|h| h.key == name).and_then(|h| std::str::from_utf8(h.value?).ok())
    }

    pub fn event_type(&self) -> Option<&str> {
        self.header(HEADER_TYPE)
    }

    /// The topic with its prefix, if the system has one.
    pub fn topic(&self) -> &str {
        self.0.topic()
    }

    /// When its transaction committed, as the relay says, in milliseconds since 1970.
    pub fn committed_at_ms(&self) -> Option<i64> {
        self.0.timestamp().to_millis()
    }

    /// Where it was read: topic/partition/offset.
    pub fn place(&self) -> String {
        format!("{}/{}/{}", self.0.topic(), self.0.partition(), self.0.offset())
    }

    /// The topic, the key and the headers of the record.
    ///
    /// # Errors
    /// When the type is missing or unknown.
    pub fn envelope(&self) -> Result<Envelope<'_>, String> {
        let name = self.event_type().ok_or("the record has no ce_type header")?;
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

    /// The parked message of this record, complete enough to produce it again.
    pub fn park(&self, reason: impl AsRef<str>) -> Parked {
        let headers = self.0.headers().into_iter().flat_map(Headers::iter).map(|h| {
            let value = h.value.map(String::from_utf8_lossy).unwrap_or_default();
            (storable(h.key), serde_json::Value::String(storable(&value)))
        });
        Parked {
            parked_id: self.place(),
            source: self.0.topic().to_owned(),
            message_key: self.0.key().map(|key| storable(&String::from_utf8_lossy(key))),
            event_type: self.event_type().map(storable),
            headers: serde_json::Value::Object(headers.collect()),
            body: self.body().to_vec(),
            reason: storable(reason.as_ref()),
        }
    }
}

/// The result of decoding a record for one service.
pub enum Decoding<E> {
    Event(E),
    /// A known type that this service does not consume.
    Ignore,
    /// The record cannot be read; the text says why.
    Poison(String),
    /// Parts of the record contradict each other; the text says how. It is parked like poison, and alarmed.
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

/// A decoded event, and its record.
pub struct Delivery<'a, E> {
    pub record: Record<'a>,
    pub event: E,
}

/// The number of records of a batch by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    pub applied: usize,
    /// Duplicates: their effect was there before.
    pub already: usize,
    /// Records that the subscriber parked: impossible transitions and contradictions.
    pub parked: usize,
    /// The number of those that contradict the subscriber's own row of the payment.
    pub contradictions: usize,
}

impl BatchCounts {
    /// The sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            applied: self.applied + other.applied,
            already: self.already + other.already,
            parked: self.parked + other.parked,
            contradictions: self.contradictions + other.contradictions,
        }
    }
}

/// An event of a batch whose row is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRow {
    /// The index of the event in the batch.
    pub index: usize,
    /// The name of the row.
    pub what: String,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// The rows of these events are missing. The loop applies the other events by another call.
    Missing(Vec<MissingRow>),
    /// The buckets of the users of these events, by their indices in the batch, are being moved to another shard. They wait, and
    /// the loop applies the other events by another call. After [`Limits::moving`] they are as absent.
    Moving(Vec<usize>),
    /// The databases of the users of these events, by their indices in the batch, are away, and others are not. The loop applies
    /// the other events by another call, goes on, and reads these again once their database answers.
    Absent(Vec<usize>),
    /// The database of the users of these events, by their indices in the batch, is one of several and serves, and it did not end them
    /// in time. The loop applies fewer of them at once. A single one is as absent, so that nobody waits for it.
    Late(Vec<usize>),
    Other(anyhow::Error),
}

impl ApplyError {
    /// Whether it says that events have to wait, and names none.
    pub(crate) fn names_nothing(&self) -> bool {
        match self {
            Self::Missing(rows) => rows.is_empty(),
            Self::Moving(items) | Self::Absent(items) | Self::Late(items) => items.is_empty(),
            Self::Other(_) => false,
        }
    }
}

impl<T: Into<anyhow::Error>> From<T> for ApplyError {
    fn from(error: T) -> Self {
        ApplyError::Other(error.into())
    }
}

/// The part of a service that decodes and applies records.
pub trait Subscriber {
    type Event;

    /// What [`apply`](Self::apply) writes to, for logs.
    const WRITES_TO: &'static str;

    fn decode(&self, record: &Record<'_>) -> Decoding<Self::Event>;

    /// Applies the events in order and keeps `unreadable` as parked: in one transaction, or so that all of it may be
    /// applied again.
    ///
    /// # Errors
    /// When rows are missing, or what it writes to failed. The same events are then applied again.
    fn apply(
        &self,
        events: &[Delivery<'_, Self::Event>],
        unreadable: &[Parked],
    ) -> impl Future<Output = Result<BatchCounts, ApplyError>>;
}

/// Runs the loop on a thread of its own until `shutdown`, since the client's poll blocks.
///
/// # Errors
/// When the client is beyond repair or the thread panicked.
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

/// As [`run`], with other limits.
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
    let (offsets, of_thread) = (GroupOffsets::new(&subscription), metrics.clone());
    std::thread::Builder::new().name("consumer".into()).spawn(move || {
        let outcome = consume(limits, &subscription, &subscriber, &of_thread, &shutdown, &runtime);
        // The receiver is gone only when the whole process is going.
        let _ = done.send(outcome);
    })?;
    let outcome = tokio::select! {
        outcome = ended => outcome,
        never = lag_watch::watch(offsets, &metrics) => match never {},
    };
    metrics.forget_lag();
    outcome.context("the consumer thread panicked; the panic is logged above")?
}

/// Consumes until `shutdown`. A client that has lost all brokers, or that cannot recover, is replaced by a new one: the process has other
/// work, and whoever restarts it could do no more.
fn consume<S: Subscriber>(
    limits: Limits,
    subscription: &Subscription,
    subscriber: &S,
    metrics: &ConsumerMetrics,
    shutdown: &CancellationToken,
    runtime: &Handle,
) -> anyhow::Result<()> {
    let mut fenced = Fenced::default();
    loop {
        let (began, consumer) = (Instant::now(), subscribe(subscription, limits.poll)?);
        let topic = subscription.topics.first().map(String::as_str);
        let reader = Loop { consumer: &consumer, topic, subscriber, metrics, limits, shutdown, runtime };
        let group = &subscription.group_id;
        let outcome = reader.run();
        fenced.ended(began.elapsed());
        match outcome {
            Ok(LoopEnd::Stopped) => return Ok(()),
            Ok(LoopEnd::Lost) => {
                tracing::warn!(group, "no broker answers this Kafka client; a new client connects");
            }
            Err(error) if is_fatal(&error) => {
                metrics.retries.with_label_values(&["client"]).inc();
                let pause = fenced.pause();
                tracing::error!(
                    error = log_text(&error),
                    group,
                    instance = subscription.instance_id,
                    pause_s = pause.as_secs(),
                    "this Kafka client cannot recover; a new client connects after the pause. Worry when it comes again: another process has this instance's name"
                );
                runtime.block_on(async { tokio::time::timeout(pause, shutdown.cancelled()).await.ok() });
            }
            Err(error) => return Err(error),
        }
        // Leaving the group may take as long as the brokers stay away.
        std::thread::Builder::new().name("old consumer".into()).spawn(move || drop(consumer))?;
    }
}
