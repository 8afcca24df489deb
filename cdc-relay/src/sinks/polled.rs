//! A producer with the thread that serves its reports.
//!
//! The thread sleeps while the producer has nothing under way, and is woken by whoever sends. rust-rdkafka's own
//! thread (`ThreadedProducer`) polls for 100 ms at a time, for ever; since the time left is cut to whole milliseconds,
//! it spins through the last one of each (rust-rdkafka 0.39), which is 0.85 % of a core for each producer at rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

/// One poll, which cannot be cut short; a producer that is dropped with records under way is waited for that long.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// A producer with nothing under way is looked at this often: for errors of its connections, and for its log.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
        let (served, asked) = (Arc::clone(&producer), Arc::clone(&ending));
        let thread = std::thread::Builder::new().name("kafka reports".to_owned());
        let thread = thread.spawn(move || serve(&served, &asked)).context("no thread for Kafka's reports")?;
        Ok(PolledProducer { producer, ending, thread: Some(thread) })
    }

    pub fn send<'r>(
        &self,
        record: BaseRecord<'r, [u8], [u8], C::DeliveryOpaque>,
    ) -> std::result::Result<(), KafkaError> {
        let sent = self.producer.send(record).map_err(|(error, _)| error);
        // Costs next to nothing while the thread is awake, and cannot be lost if it is just falling asleep.
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        sent
    }

    pub fn producer(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

fn serve<C: ProducerContext>(producer: &BaseProducer<C>, ending: &AtomicBool) {
    while !ending.load(Ordering::Acquire) {
        // Reports and errors that wait to be served count too.
        if producer.in_flight_count() > 0 {
            producer.poll(POLL_TIMEOUT);
        } else {
            std::thread::park_timeout(LOOK_INTERVAL);
        }
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    /// Gives up what is under way. Afterwards nothing is reported any more.
    fn drop(&mut self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread of Kafka's reports panicked");
            }
        }
    }
}
