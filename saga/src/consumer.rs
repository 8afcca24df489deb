//! Kafka to one database transaction per batch: at least once, and the effect once.
//!
//! The loop polls a record, drains what is there without waiting, and hands the whole batch, order per
//! partition kept, to the [`Subscriber`], which applies it in one transaction. Only then are the offsets
//! stored (a background commit does the rest), so a crash at any point repeats records and never skips one.
//!
//! * A transient failure is tried again with jittered back-off for as long as it takes. Meanwhile the
//!   partitions are paused but still polled: the group keeps its members however long a database is away.
//! * A poison record (undecodable, impossible, refused by a constraint) is found by bisection and parked.
//! * A message whose row is not there yet is transient for [`MISSING_PATIENCE`], then parked: never
//!   taken for a duplicate.
//!
//! A rebalance in the middle of a batch is harmless: the batch is finished, storing an offset of a
//! partition that was taken away is refused by the client and ignored, and its new owner repeats it.

mod client;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::client::{Complaint, Health, subscribe};
use crate::contract::HEADER_TYPE;
use crate::parked::Parked;
use crate::postgres::{Failure, classify};

/// Records per batch: larger ones gain little and hold locks longer.
const BATCH_MAX: usize = 1000;
/// How long an idle poll waits; also how soon a shutdown is noticed.
const IDLE_POLL: Duration = Duration::from_millis(200);
/// Between tries the client is still polled this often.
const PAUSED_POLL: Duration = Duration::from_millis(50);
/// How long a message may wait for the row it is about. Its row is committed before the event that led to
/// it, so a long absence means a restored or wrong database, which a person must see.
pub const MISSING_PATIENCE: Duration = Duration::from_secs(60);

/// What a consumer is called, and where it reads.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub brokers: String,
    pub group_id: String,
    /// Set where each instance has a stable name: a killed instance then comes back without a rebalance.
    pub instance_id: Option<String>,
    pub topics: Vec<String>,
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

    pub fn body(&self) -> &[u8] {
        self.0.payload().unwrap_or_default()
    }

    /// This record set aside, with all it takes to tell it again.
    pub fn park(&self, reason: impl Into<String>) -> Parked {
        let headers = self.0.headers().into_iter().flat_map(Headers::iter).map(|h| {
            let value = h.value.map(String::from_utf8_lossy).unwrap_or_default();
            (h.key.to_owned(), serde_json::Value::String(value.into_owned()))
        });
        Parked {
            parked_id: format!("{}/{}/{}", self.0.topic(), self.0.partition(), self.0.offset()),
            source: self.0.topic().to_owned(),
            message_key: self.0.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            event_type: self.event_type().map(str::to_owned),
            headers: serde_json::Value::Object(headers.collect()),
            body: self.body().to_vec(),
            reason: reason.into(),
        }
    }
}

/// What a record means to one service.
pub enum Decoded<E> {
    Event(E),
    /// Known and of no concern here.
    Ignore,
    /// Cannot be read; the text says why.
    Poison(String),
}

/// A decoded event together with the record it came in.
pub struct Delivery<'a, E> {
    pub record: Record<'a>,
    pub event: E,
}

/// What became of a batch, counted per record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub applied: usize,
    /// Had its effect before: a duplicate.
    pub already: usize,
    /// Set aside by the subscriber itself: an impossible transition.
    pub parked: usize,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// Rows that messages are about are not visible (yet).
    Missing(String),
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

    fn decode(&self, record: &Record<'_>) -> Decoded<Self::Event>;

    /// Applies the events in order and inserts `unreadable` as parked, in one transaction.
    fn apply(
        &self,
        events: &[Delivery<'_, Self::Event>],
        unreadable: &[Parked],
    ) -> impl Future<Output = Result<Applied, ApplyError>>;
}

/// Counters of one consumer; `outcome` is applied, already, ignored or parked.
#[derive(Clone)]
pub struct ConsumerMetrics {
    records: IntCounterVec,
    retries: IntCounterVec,
    batch_records: Histogram,
    batch_seconds: Histogram,
}

impl ConsumerMetrics {
    pub fn register(registry: &Registry) -> anyhow::Result<Self> {
        let records = Opts::new("consumer_records_total", "Records read, by what became of them.");
        let retries = Opts::new("consumer_retries_total", "Batches tried again, by reason.");
        let sizes = HistogramOpts::new("consumer_batch_records", "Records per batch.")
            .buckets(vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
        let seconds = HistogramOpts::new("consumer_batch_seconds", "Time to apply a batch.")
            .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]);
        let metrics = Self {
            records: IntCounterVec::new(records, &["outcome"])?,
            retries: IntCounterVec::new(retries, &["reason"])?,
            batch_records: Histogram::with_opts(sizes)?,
            batch_seconds: Histogram::with_opts(seconds)?,
        };
        registry.register(Box::new(metrics.records.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.batch_records.clone()))?;
        registry.register(Box::new(metrics.batch_seconds.clone()))?;
        Ok(metrics)
    }

    fn count(&self, applied: Applied, ignored: usize, unreadable: usize) {
        self.records.with_label_values(&["applied"]).inc_by(applied.applied as u64);
        self.records.with_label_values(&["already"]).inc_by(applied.already as u64);
        self.records.with_label_values(&["ignored"]).inc_by(ignored as u64);
        self.records.with_label_values(&["parked"]).inc_by((applied.parked + unreadable) as u64);
    }
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
    let runtime = Handle::current();
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("consumer".into()).spawn(move || {
        let outcome = consume(&subscription, &subscriber, &metrics, &shutdown, &runtime);
        // The receiver is gone only when the whole process is going.
        let _ = done.send(outcome);
    })?;
    ended.await.context("the consumer thread panicked")?
}

/// Until `shutdown`, with as many clients, one after the other, as that takes.
fn consume<S: Subscriber>(
    subscription: &Subscription,
    subscriber: &S,
    metrics: &ConsumerMetrics,
    shutdown: &CancellationToken,
    runtime: &Handle,
) -> anyhow::Result<()> {
    loop {
        let consumer = subscribe(subscription)?;
        let topic = subscription.topics.first().map(String::as_str);
        let reader = Loop { consumer: &consumer, topic, subscriber, metrics, shutdown, runtime };
        match reader.run()? {
            Ended::Stopped => return Ok(()),
            Ended::Lost => {
                tracing::warn!(group = subscription.group_id, "no broker answers: a new client tries");
                // Leaving the group may take as long as the brokers stay away.
                std::thread::Builder::new().name("old consumer".into()).spawn(move || drop(consumer))?;
            }
        }
    }
}

/// Why a client is no longer read.
enum Ended {
    Stopped,
    Lost,
}

struct Loop<'c, S> {
    consumer: &'c BaseConsumer,
    /// One that it reads.
    topic: Option<&'c str>,
    subscriber: &'c S,
    metrics: &'c ConsumerMetrics,
    shutdown: &'c CancellationToken,
    runtime: &'c Handle,
}

impl<'c, S: Subscriber> Loop<'c, S> {
    fn run(self) -> anyhow::Result<Ended> {
        let mut complaint = Complaint::default();
        let mut health = Health::new(Instant::now());
        // Records that came while the partitions were being paused: they are next.
        let mut carried: VecDeque<BorrowedMessage<'c>> = VecDeque::new();
        while !self.shutdown.is_cancelled() {
            let batch = self.next_batch(&mut carried, &mut complaint)?;
            if !batch.is_empty() {
                self.apply(&batch, &mut carried)?;
                health.heard(Instant::now());
            } else if health.is_client_lost(self.consumer, self.topic) {
                return Ok(Ended::Lost);
            }
        }
        if let Err(error) = self.consumer.commit_consumer_state(CommitMode::Sync) {
            // Nothing stored, or the broker is away: the records are told again, which is harmless.
            tracing::debug!(%error, "offsets not committed at the end");
        }
        Ok(Ended::Stopped)
    }

    fn next_batch(
        &self,
        carried: &mut VecDeque<BorrowedMessage<'c>>,
        complaint: &mut Complaint,
    ) -> anyhow::Result<Vec<BorrowedMessage<'c>>> {
        let mut batch: Vec<BorrowedMessage<'c>> = carried.drain(..).collect();
        let mut wait = if batch.is_empty() { IDLE_POLL } else { Duration::ZERO };
        while batch.len() < BATCH_MAX {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => batch.push(message),
                Some(Err(error)) => {
                    complaint.hear(&error)?;
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        Ok(batch)
    }

    /// Applies the batch, whatever it takes; returns early, with nothing stored, only on shutdown.
    fn apply(
        &self,
        batch: &[BorrowedMessage<'c>],
        carried: &mut VecDeque<BorrowedMessage<'c>>,
    ) -> anyhow::Result<()> {
        self.metrics.batch_records.observe(batch.len() as f64);
        let timer = self.metrics.batch_seconds.start_timer();
        let mut work: VecDeque<&[BorrowedMessage<'c>]> = VecDeque::from([batch]);
        while let Some(part) = work.pop_front() {
            match self.apply_part(part, carried)? {
                Verdict::Done => {}
                Verdict::Poison(reason) if part.len() == 1 => self.park_single(&part[0], &reason, carried)?,
                Verdict::Poison(_) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    work.push_front(second);
                    work.push_front(first);
                }
                Verdict::Stopped => return Ok(()),
            }
        }
        timer.observe_duration();
        self.store_offsets(batch)
    }

    fn apply_part(
        &self,
        part: &[BorrowedMessage<'c>],
        carried: &mut VecDeque<BorrowedMessage<'c>>,
    ) -> anyhow::Result<Verdict> {
        let (events, unreadable) = self.decode(part);
        let ignored = part.len() - events.len() - unreadable.len();
        if events.is_empty() && unreadable.is_empty() {
            self.metrics.count(Applied::default(), ignored, 0);
            return Ok(Verdict::Done);
        }
        let started = Instant::now();
        self.retrying(carried, || match self.runtime.block_on(self.subscriber.apply(&events, &unreadable)) {
            Ok(applied) => {
                self.metrics.count(applied, ignored, unreadable.len());
                Attempt::End(Verdict::Done)
            }
            Err(ApplyError::Missing(what)) if started.elapsed() > MISSING_PATIENCE => {
                Attempt::End(Verdict::Poison(format!("missing: {what}")))
            }
            Err(ApplyError::Missing(what)) => Attempt::Again("missing", anyhow::anyhow!(what)),
            Err(ApplyError::Other(error)) => match classify(&error) {
                Failure::Poison => Attempt::End(Verdict::Poison(format!("{error:#}"))),
                Failure::Transient => Attempt::Again("transient", error),
            },
        })
    }

    fn park_single(
        &self,
        message: &BorrowedMessage<'c>,
        reason: &str,
        carried: &mut VecDeque<BorrowedMessage<'c>>,
    ) -> anyhow::Result<()> {
        let parked = [Record(message).park(reason)];
        self.retrying(carried, || match self.runtime.block_on(self.subscriber.apply(&[], &parked)) {
            Ok(applied) => {
                self.metrics.count(applied, 0, 1);
                Attempt::End(Verdict::Done)
            }
            Err(ApplyError::Missing(what)) => Attempt::Again("transient", anyhow::anyhow!(what)),
            Err(ApplyError::Other(error)) => Attempt::Again("transient", error),
        })
        .map(drop)
    }

    fn decode<'m>(&self, part: &'m [BorrowedMessage<'c>]) -> (Vec<Delivery<'m, S::Event>>, Vec<Parked>) {
        let mut events = Vec::with_capacity(part.len());
        let mut unreadable = Vec::new();
        for message in part {
            let record = Record(message);
            match self.subscriber.decode(&record) {
                Decoded::Event(event) => events.push(Delivery { record, event }),
                Decoded::Ignore => {}
                Decoded::Poison(reason) => unreadable.push(record.park(reason)),
            }
        }
        (events, unreadable)
    }

    /// Calls `attempt` until it ends or the process does, polling the paused client in between.
    fn retrying(
        &self,
        carried: &mut VecDeque<BorrowedMessage<'c>>,
        mut attempt: impl FnMut() -> Attempt,
    ) -> anyhow::Result<Verdict> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(20))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times();
        let mut paused = false;
        for delay in backoff.build() {
            match attempt() {
                Attempt::End(verdict) => {
                    if paused {
                        self.consumer.resume(&self.consumer.assignment()?).context("resume")?;
                    }
                    return Ok(verdict);
                }
                Attempt::Again(reason, error) => {
                    self.metrics.retries.with_label_values(&[reason]).inc();
                    tracing::warn!(error = format!("{error:#}"), reason, ?delay, "batch will be tried again");
                }
            }
            paused = true;
            if self.wait_paused(delay, carried)? {
                return Ok(Verdict::Stopped);
            }
        }
        unreachable!("the back-off never ends")
    }

    /// Waits `delay` while polling; true when shutdown was asked for.
    fn wait_paused(
        &self,
        delay: Duration,
        carried: &mut VecDeque<BorrowedMessage<'c>>,
    ) -> anyhow::Result<bool> {
        let until = Instant::now() + delay;
        loop {
            if self.shutdown.is_cancelled() {
                return Ok(true);
            }
            // Each time: a rebalance may have brought partitions that are not paused.
            self.consumer.pause(&self.consumer.assignment()?).context("pause")?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.consumer.poll(left.min(PAUSED_POLL)) {
                Some(Ok(message)) => carried.push_back(message),
                Some(Err(error)) => Complaint::default().hear(&error)?,
                None => {}
            }
        }
    }

    fn store_offsets(&self, batch: &[BorrowedMessage<'c>]) -> anyhow::Result<()> {
        let mut last: HashMap<(&str, i32), i64> = HashMap::new();
        for message in batch {
            last.insert((message.topic(), message.partition()), message.offset());
        }
        for ((topic, partition), offset) in last {
            match self.consumer.store_offset(topic, partition, offset) {
                Ok(()) => {}
                // The partition was taken away meanwhile: its new owner repeats what was not committed.
                Err(KafkaError::StoreOffset(RDKafkaErrorCode::State)) => {}
                Err(error) => return Err(error).context("store offset"),
            }
        }
        Ok(())
    }
}

enum Verdict {
    Done,
    Poison(String),
    /// Shutdown was asked for while waiting; nothing was applied, nothing may be stored.
    Stopped,
}

enum Attempt {
    End(Verdict),
    Again(&'static str, anyhow::Error),
}
