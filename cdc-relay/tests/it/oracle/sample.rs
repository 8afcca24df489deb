//! Samples where the slot is confirmed, and where the topics and the queue end after that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::harness::{Harness, Servers, attempt, eventually};
use crate::kafka::Ends;
use crate::rabbit;

/// The longest duration of one sample.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(1);

/// One sample; the fields are read in this order.
pub struct Sample {
    pub confirmed: u64,
    /// The test had not moved or dropped the slot before this sample.
    pub undisturbed: bool,
    /// The ends of the topic's partitions and of the dead-letter topic.
    pub ends: Vec<i64>,
    pub queued: Option<u32>,
}

/// Takes samples until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    disturbed: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Sample>>,
}

impl Sampler {
    /// `work`: the samples include the queue.
    pub fn start(harness: &Harness, work: bool) -> Sampler {
        let (stop, disturbed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let taken = Arc::new(AtomicUsize::new(0));
        let target = SampleTarget {
            url: harness.url.clone(),
            slot: harness.name.clone(),
            servers: harness.servers.clone(),
            topics: [harness.topic(), harness.dead_letter_topic()],
            queue: work.then(|| harness.queue()),
            stop: Arc::clone(&stop),
            disturbed: Arc::clone(&disturbed),
            taken: Arc::clone(&taken),
        };
        Sampler { stop, disturbed, taken, task: tokio::spawn(sample(target)) }
    }

    /// Waits until `count` more samples are taken.
    pub async fn more(&self, count: usize) {
        let wanted = self.taken.load(Ordering::SeqCst) + count;
        eventually(&format!("{count} more samples"), || async {
            (self.taken.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    }

    /// Call this before the test moves or drops the slot.
    pub fn disturb(&self) {
        self.disturbed.store(true, Ordering::SeqCst);
    }

    pub async fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("samples")
    }
}

/// The servers, and what to read of them.
struct SampleTarget {
    url: String,
    slot: String,
    servers: Servers,
    topics: [String; 2],
    queue: Option<String>,
    stop: Arc<AtomicBool>,
    disturbed: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

/// Reads the slot first: the topics may then hold more than the slot is confirmed for, never less.
async fn sample(target: SampleTarget) -> Vec<Sample> {
    let ends = Arc::new(Ends::of(&target.servers.kafka, &target.topics));
    let (mut samples, mut sql, mut queue) = (Vec::new(), None, Queue::default());
    while !target.stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let Some(client) = sql.as_ref().filter(|client: &&Client| !client.is_closed()) else {
            sql = attempt(&target.url).await;
            continue;
        };
        let query =
            "select (confirmed_flush_lsn - '0/0')::int8 from pg_replication_slots where slot_name = $1";
        let found = client.query_opt(query, &[&target.slot]).await;
        // Read after the query: a slot that is undisturbed now was undisturbed then.
        let undisturbed = !target.disturbed.load(Ordering::SeqCst);
        let Ok(Some(row)) = found else { continue };
        let Some(confirmed) = row.get::<_, Option<i64>>(0) else { continue };
        let now = Arc::clone(&ends);
        let Some(ends) = tokio::task::spawn_blocking(move || now.read()).await.expect("ends") else {
            continue;
        };
        let queued = match &target.queue {
            Some(name) => match queue.count(&target.servers.amqp, name).await {
                Some(count) => Some(count),
                None => continue,
            },
            None => None,
        };
        samples.push(Sample { confirmed: confirmed as u64, undisturbed, ends, queued });
        target.taken.store(samples.len(), Ordering::SeqCst);
    }
    samples
}

/// The id of the oracle's own messages in the queue.
pub const BARRIER: &str = "barrier";

/// A connection over which the queue can be counted.
struct Counter {
    connection: lapin::Connection,
    channel: Channel,
}

impl Counter {
    /// A quorum queue answers a passive declare from its applied state, which lags behind its own log after a start of the
    /// broker. A message that this run of the broker confirms comes after everything in that log.
    async fn connect(amqp: &str, queue: &str) -> Option<Counter> {
        let (connection, channel) = rabbit::attempt(amqp).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
        let properties = BasicProperties::default().with_message_id(BARRIER.into()).with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let confirmation =
            channel.basic_publish("".into(), queue.into(), options, b"", properties).await.ok()?;
        confirmation.await.ok()?.is_ack().then_some(Counter { connection, channel })
    }

    /// The number of waiting messages, barriers included; 0 when the queue took more than 250 ms to answer.
    async fn count(&self, queue: &str) -> Option<u32> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declare = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        Some(timeout(SAMPLE_TIMEOUT, declare).await.ok()?.ok()?.message_count())
    }
}

/// The queue, counted over one connection after the other.
#[derive(Default)]
struct Queue {
    counter: Option<Counter>,
    barriers: u32,
}

impl Queue {
    /// The number of the relay's waiting messages; `None` where it is unknown.
    async fn count(&mut self, amqp: &str, queue: &str) -> Option<u32> {
        if self.counter.as_ref().is_none_or(|counter| !counter.connection.status().connected()) {
            self.counter = timeout(SAMPLE_TIMEOUT, Counter::connect(amqp, queue)).await.ok().flatten();
            self.barriers += u32::from(self.counter.is_some());
        }
        let count = self.counter.as_ref()?.count(queue).await;
        if count.is_none() {
            self.counter = None;
        }
        count?.checked_sub(self.barriers)
    }
}
