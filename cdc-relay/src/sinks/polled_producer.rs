//! Runs a producer with the thread that polls for its delivery reports.
//!
//! * The thread sleeps while the producer has nothing in flight; each send wakes it.
//! * Dropping the producer gives up its records in flight. It reports nothing afterwards.
//!
//! Why not rust-rdkafka's `ThreadedProducer`: its thread polls for 100 ms at a time, for ever. It cuts the remaining time to
//! whole milliseconds and spins through the last one (rust-rdkafka 0.39), which costs 0.85 % of a core per idle producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

/// The length of one poll, which cannot be cut short: a drop with records in flight may wait that long.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// An idle producer is polled this often, for errors of its connections and for its log.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(1);

pub struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    pub fn new(config: &ClientConfig, context: C) -> Result<PolledProducer<C>> {
        let producer: BaseProducer<C> = config
            .create_with_context(context)
            .context("the Kafka settings of the routes file are not usable")?;
        let (producer, ending) = (Arc::new(producer), Arc::new(AtomicBool::new(false)));
        let (polled, end) = (Arc::clone(&producer), Arc::clone(&ending));
        let thread = std::thread::Builder::new().name("kafka reports".to_owned());
        let thread = thread
            .spawn(move || poll_reports(&polled, &end))
            .context("cannot start the thread for Kafka's delivery reports")?;
        Ok(PolledProducer { producer, ending, thread: Some(thread) })
    }

    pub fn send<'r>(
        &self,
        record: BaseRecord<'r, [u8], [u8], C::DeliveryOpaque>,
    ) -> std::result::Result<(), KafkaError> {
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        // This costs next to nothing while the thread is awake, and is not lost if it is just falling asleep.
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        sent
    }

    pub fn producer(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

fn poll_reports<C: ProducerContext>(producer: &BaseProducer<C>, ending: &AtomicBool) {
    while !ending.load(Ordering::Acquire) {
        // Reports and errors that wait for a poll count too.
        if producer.in_flight_count() > 0 {
            producer.poll(POLL_TIMEOUT);
        } else {
            std::thread::park_timeout(IDLE_POLL_INTERVAL);
        }
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    /// Gives up the records in flight. Nothing is reported afterwards.
    fn drop(&mut self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread for Kafka's delivery reports panicked");
            }
        }
    }
}
