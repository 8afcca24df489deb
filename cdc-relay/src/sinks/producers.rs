//! Keeps the Kafka producers of a source, one for each batch size.
//!
//! * The producer for small batches sends each record at once, and always exists.
//! * The others wait for a batch to fill. They exist only while batches are larger, since each has three threads of
//!   librdkafka and one of the relay's.
//! * A producer is made beside the stream: until it is ready, another does its work. An unused one is dropped.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rdkafka::producer::ProducerContext;

use crate::sinks::batch_size::BatchSize;
use crate::sinks::polled_producer::PolledProducer;

/// A producer that was not chosen for so long is dropped.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(60);
/// Until the next attempt to make a producer.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the producer for a batch size, connected and with the topics known.
type Make<C> = Arc<dyn Fn(BatchSize) -> Result<PolledProducer<C>> + Send + Sync>;

enum Batching<C: ProducerContext + 'static> {
    /// Not to be made before this.
    Absent(Instant),
    Making(JoinHandle<Result<PolledProducer<C>>>),
    Ready {
        producer: PolledProducer<C>,
        chosen_at: Instant,
    },
}

pub struct Producers<C: ProducerContext + 'static> {
    make: Make<C>,
    at_once: PolledProducer<C>,
    medium: Batching<C>,
    large: Batching<C>,
    chosen: BatchSize,
}

impl<C: ProducerContext + Send + Sync + 'static> Producers<C> {
    pub fn new(
        make: impl Fn(BatchSize) -> Result<PolledProducer<C>> + Send + Sync + 'static,
    ) -> Result<Producers<C>> {
        let (at_once, now) = (make(BatchSize::Small)?, Instant::now());
        let (medium, large) = (Batching::Absent(now), Batching::Absent(now));
        Ok(Producers { make: Arc::new(make), at_once, medium, large, chosen: BatchSize::Small })
    }

    /// Chooses the producer for the next batch. Only while nothing is in flight: records must keep their order.
    pub fn choose(&mut self, size: BatchSize) {
        let now = Instant::now();
        for batching in [BatchSize::Medium, BatchSize::Large] {
            let make = (batching == size).then_some(&self.make);
            let slot = if batching == BatchSize::Medium { &mut self.medium } else { &mut self.large };
            slot.step(batching, now, make);
        }
        self.chosen = match size {
            BatchSize::Large if self.large.is_ready() => BatchSize::Large,
            BatchSize::Large | BatchSize::Medium if self.medium.is_ready() => BatchSize::Medium,
            _ => BatchSize::Small,
        };
    }

    /// Like [`choose`](Self::choose), and waits until the producer is made.
    pub fn choose_and_wait(&mut self, size: BatchSize) {
        self.choose(size);
        let slot = match size {
            BatchSize::Small => return,
            BatchSize::Medium => &mut self.medium,
            BatchSize::Large => &mut self.large,
        };
        slot.join(size, Instant::now());
        self.choose(size);
    }

    pub fn chosen(&self) -> &PolledProducer<C> {
        let batching = match self.chosen {
            BatchSize::Small => return &self.at_once,
            BatchSize::Medium => &self.medium,
            BatchSize::Large => &self.large,
        };
        if let Batching::Ready { producer, .. } = batching { producer } else { &self.at_once }
    }

    /// The producer that sends each record at once.
    pub fn at_once(&self) -> &PolledProducer<C> {
        &self.at_once
    }
}

impl<C: ProducerContext + Send + Sync + 'static> Batching<C> {
    fn is_ready(&self) -> bool {
        matches!(self, Batching::Ready { .. })
    }

    /// `make`: the producer is wanted.
    fn step(&mut self, size: BatchSize, now: Instant, make: Option<&Make<C>>) {
        match (&mut *self, make) {
            (Batching::Making(thread), _) if thread.is_finished() => self.join(size, now),
            (Batching::Absent(from), Some(make)) if now >= *from => {
                let make = Arc::clone(make);
                let thread = std::thread::Builder::new().name("kafka producer".to_owned());
                match thread.spawn(move || make(size)) {
                    Ok(thread) => *self = Batching::Making(thread),
                    Err(error) => self.failed(size, now, &error.into()),
                }
            }
            (Batching::Ready { chosen_at, .. }, Some(_)) => *chosen_at = now,
            (Batching::Ready { chosen_at, .. }, None) if now > *chosen_at + UNUSED_TIMEOUT => {
                let unused = std::mem::replace(self, Batching::Absent(now));
                // Its threads end within a second or so; the stream must not wait for that.
                let thread = std::thread::Builder::new().name("kafka producer".to_owned());
                if let Err(error) = thread.spawn(move || drop(unused)) {
                    tracing::warn!(%error, "cannot start the thread that ends a Kafka producer");
                }
            }
            _ => {}
        }
    }

    /// Waits for the thread that makes it.
    fn join(&mut self, size: BatchSize, now: Instant) {
        if !matches!(self, Batching::Making(_)) {
            return;
        }
        let Batching::Making(thread) = std::mem::replace(self, Batching::Absent(now)) else { return };
        match thread.join().map_err(|_| anyhow!("its thread panicked")).flatten() {
            Ok(producer) => *self = Batching::Ready { producer, chosen_at: now },
            Err(error) => self.failed(size, now, &error),
        }
    }

    fn failed(&mut self, size: BatchSize, now: Instant, error: &anyhow::Error) {
        tracing::warn!(
            ?size,
            "a Kafka producer for this batch size cannot be made, another does its work: {error:#}"
        );
        *self = Batching::Absent(now + RETRY_INTERVAL);
    }
}
