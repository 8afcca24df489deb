//! Follows a topic from its end, without a group: every instance sees every record.
//!
//! * It reads only while it is in demand, and for [`LINGER`] after. At rest it waits and polls nothing.
//! * It has begun once it knows the end of every partition: each record that is produced later is then seen. A reader of
//!   the database that reads again at each beginning misses no change.
//! * While Kafka is away nothing is seen. Afterwards the records of that time are seen too, late.
//! * No offset is stored: a record is a hint that a row has changed, and the row is the truth.

use std::time::{Duration, Instant};

use anyhow::Context;
use brokers::Brokers;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Record;
use super::client::{ClientErrors, Health, settings};
use crate::telemetry::log_text;

/// How long the topic is followed without demand: waits that come one after the other share one start.
const LINGER: Duration = Duration::from_secs(5);
/// How late the end of demand and a shutdown are noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The time for one answer about the topic's partitions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a start that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A topic, and whether it is to be followed.
pub struct Follower {
    pub brokers: Brokers,
    /// Of the service: a client has one, though this one never joins it.
    pub group_id: String,
    pub topic: String,
    /// Whether somebody waits for records.
    pub demand: watch::Receiver<bool>,
    /// Counted by the follower: how often it has begun.
    pub beginnings: watch::Sender<u64>,
    pub shutdown: CancellationToken,
}

impl Follower {
    /// Follows the topic on a thread of its own, since the client's poll blocks, until `shutdown`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(self, on_record: impl Fn(&Record<'_>) + Send + 'static) -> anyhow::Result<()> {
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("follower".into())
            .spawn(move || self.run(&runtime, &on_record))
            .context("cannot start the thread that follows a topic")?;
        Ok(())
    }

    fn run(mut self, runtime: &Handle, on_record: &dyn Fn(&Record<'_>)) {
        while runtime.block_on(self.demanded()) {
            if let Err(error) = self.follow(on_record) {
                tracing::warn!(
                    topic = self.topic,
                    error = log_text(&error),
                    "the topic cannot be followed, so nobody is woken by its records; it is tried again"
                );
                runtime.block_on(async { tokio::time::sleep(RETRY_INTERVAL).await });
            }
        }
    }

    /// Waits for demand; false after shutdown.
    async fn demanded(&mut self) -> bool {
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            demanded = self.demand.wait_for(|demanded| *demanded) => demanded.is_ok(),
        }
    }

    /// Follows the topic from its present end until demand ends, or until the client is lost.
    fn follow(&self, on_record: &dyn Fn(&Record<'_>)) -> anyhow::Result<()> {
        let consumer = self.client()?;
        consumer.assign(&self.ends(&consumer)?).context("cannot assign the partitions")?;
        self.beginnings.send_modify(|count| *count += 1);
        let (mut errors, mut health) = (ClientErrors::default(), Health::new(Instant::now()));
        let mut demanded_at = Instant::now();
        while !self.shutdown.is_cancelled() && demanded_at.elapsed() < LINGER {
            if *self.demand.borrow() {
                demanded_at = Instant::now();
            }
            match consumer.poll(POLL_INTERVAL) {
                Some(Ok(message)) => {
                    on_record(&Record(&message.into()));
                    health.received(Instant::now());
                }
                Some(Err(error)) => errors.report(&error)?,
                None if health.is_client_lost(&consumer, Some(&self.topic)) => {
                    anyhow::bail!("no broker answers this Kafka client");
                }
                None => {}
            }
        }
        Ok(())
    }

    fn client(&self) -> anyhow::Result<BaseConsumer> {
        let mut config = settings(&self.brokers, &self.group_id);
        config
            .set("enable.auto.commit", "false")
            // Where an offset is gone, the newest records matter.
            .set("auto.offset.reset", "latest")
            .set("queued.max.messages.kbytes", "4096");
        config.create().context("cannot create the Kafka client")
    }

    /// The end of every partition.
    fn ends(&self, consumer: &BaseConsumer) -> anyhow::Result<TopicPartitionList> {
        let metadata =
            consumer.fetch_metadata(Some(&self.topic), ANSWER_TIMEOUT).context("Kafka does not answer")?;
        let topic = metadata.topics().first().context("Kafka does not know the topic")?;
        anyhow::ensure!(!topic.partitions().is_empty(), "the topic does not exist yet");
        let mut ends = TopicPartitionList::with_capacity(topic.partitions().len());
        for partition in topic.partitions() {
            let (_, end) = consumer
                .fetch_watermarks(&self.topic, partition.id(), ANSWER_TIMEOUT)
                .with_context(|| format!("partition {} does not answer", partition.id()))?;
            ends.add_partition_offset(&self.topic, partition.id(), Offset::Offset(end))?;
        }
        Ok(ends)
    }
}
