//! The producers of a source. One hands each record over at once, and is always there. The others wait for company,
//! and are there only while there is more than a handful to emit: each has three threads of librdkafka and one of
//! ours.
//!
//! They are made beside the stream: until one is ready, another does its work. One that was not used for a while is
//! dropped.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rdkafka::producer::ProducerContext;

use crate::sinks::batch_size::BatchSize;
use crate::sinks::polled::PolledProducer;

/// A producer that nobody chose for so long is dropped.
const UNUSED_MAX: Duration = Duration::from_secs(60);
/// After a producer could not be made, another does its work for so long.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Makes the producer for a load, connected and with the topics known.
type Make<C> = Arc<dyn Fn(BatchSize) -> Result<PolledProducer<C>> + Send + Sync>;

enum Patient<C: ProducerContext + 'static> {
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
    some: Patient<C>,
    backlog: Patient<C>,
    chosen: BatchSize,
}

impl<C: ProducerContext + Send + Sync + 'static> Producers<C> {
    pub fn new(
        make: impl Fn(BatchSize) -> Result<PolledProducer<C>> + Send + Sync + 'static,
    ) -> Result<Producers<C>> {
        let (at_once, now) = (make(BatchSize::Small)?, Instant::now());
        let (some, backlog) = (Patient::Absent(now), Patient::Absent(now));
        Ok(Producers { make: Arc::new(make), at_once, some, backlog, chosen: BatchSize::Small })
    }

    /// Chooses the producer for what comes next. Only while nothing is in flight: records must keep their order.
    pub fn choose(&mut self, load: BatchSize) {
        let now = Instant::now();
        for patient in [BatchSize::Medium, BatchSize::Large] {
            let make = (patient == load).then_some(&self.make);
            let slot = if patient == BatchSize::Medium { &mut self.some } else { &mut self.backlog };
            slot.step(patient, now, make);
        }
        self.chosen = match load {
            BatchSize::Large if self.backlog.is_ready() => BatchSize::Large,
            BatchSize::Large | BatchSize::Medium if self.some.is_ready() => BatchSize::Medium,
            _ => BatchSize::Small,
        };
    }

    /// As `choose`, and waits until the producer is made.
    pub fn choose_and_wait(&mut self, load: BatchSize) {
        self.choose(load);
        let slot = match load {
            BatchSize::Small => return,
            BatchSize::Medium => &mut self.some,
            BatchSize::Large => &mut self.backlog,
        };
        slot.join(load, Instant::now());
        self.choose(load);
    }

    pub fn chosen(&self) -> &PolledProducer<C> {
        let patient = match self.chosen {
            BatchSize::Small => return &self.at_once,
            BatchSize::Medium => &self.some,
            BatchSize::Large => &self.backlog,
        };
        if let Patient::Ready { producer, .. } = patient { producer } else { &self.at_once }
    }

    /// The one that waits for nothing.
    pub fn at_once(&self) -> &PolledProducer<C> {
        &self.at_once
    }
}

impl<C: ProducerContext + Send + Sync + 'static> Patient<C> {
    fn is_ready(&self) -> bool {
        matches!(self, Patient::Ready { .. })
    }

    /// `make`: it is wanted.
    fn step(&mut self, load: BatchSize, now: Instant, make: Option<&Make<C>>) {
        match (&mut *self, make) {
            (Patient::Making(thread), _) if thread.is_finished() => self.join(load, now),
            (Patient::Absent(from), Some(make)) if now >= *from => {
                let make = Arc::clone(make);
                let thread = std::thread::Builder::new().name("kafka producer".to_owned());
                match thread.spawn(move || make(load)) {
                    Ok(thread) => *self = Patient::Making(thread),
                    Err(error) => self.failed(load, now, &error.into()),
                }
            }
            (Patient::Ready { chosen_at, .. }, Some(_)) => *chosen_at = now,
            (Patient::Ready { chosen_at, .. }, None) if now > *chosen_at + UNUSED_MAX => {
                let unused = std::mem::replace(self, Patient::Absent(now));
                // Its threads end within a second or so; nobody has to wait for that.
                let thread = std::thread::Builder::new().name("kafka producer".to_owned());
                if let Err(error) = thread.spawn(move || drop(unused)) {
                    tracing::warn!(%error, "no thread to end a Kafka producer on");
                }
            }
            _ => {}
        }
    }

    /// Waits for the thread that makes it.
    fn join(&mut self, load: BatchSize, now: Instant) {
        if !matches!(self, Patient::Making(_)) {
            return;
        }
        let Patient::Making(thread) = std::mem::replace(self, Patient::Absent(now)) else { return };
        match thread.join().map_err(|_| anyhow!("its thread panicked")).flatten() {
            Ok(producer) => *self = Patient::Ready { producer, chosen_at: now },
            Err(error) => self.failed(load, now, &error),
        }
    }

    fn failed(&mut self, load: BatchSize, now: Instant, error: &anyhow::Error) {
        tracing::warn!(?load, "another Kafka producer cannot be made: {error:#}");
        *self = Patient::Absent(now + RETRY_INTERVAL);
    }
}
