//! Learns how payments end, from `PaymentTopic` and nothing else: a reader without a group, never a poll
//! of the API.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use saga::contract::{EventType, PAYMENT_TOPIC};
use tokio::sync::oneshot;
use uuid::Uuid;

use coroctl::topics::Tail;

/// An accepted payment that has not ended by then counts as lost.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The terminal event of a payment, and when it was received.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub event: EventType,
    pub at: Instant,
}

enum Slot {
    Awaited(oneshot::Sender<Ending>),
    /// The event overtook the answer to the request.
    Ended(Ending),
}

type Slots = Arc<Mutex<HashMap<Uuid, Slot>>>;

/// The reader, in a thread of its own until it is dropped.
pub struct Endings {
    slots: Slots,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Endings {
    /// Endings after this returns will be received. Blocking.
    pub fn follow(brokers: &str) -> Result<Self> {
        let tail = Tail::from_end(brokers, PAYMENT_TOPIC)?;
        let slots = Slots::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (received, stopped) = (slots.clone(), stop.clone());
        let read = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some((name, subject)) = tail.next(Duration::from_millis(100)) {
                    record(&received, &name, &subject);
                }
            }
        };
        let reader = std::thread::Builder::new().name("endings".into()).spawn(read)?;
        Ok(Self { slots, stop, reader: Some(reader) })
    }

    /// Waits until an accepted payment has ended.
    pub async fn of(&self, payment_id: Uuid) -> Result<Ending> {
        let awaited = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            match slots.entry(payment_id) {
                Entry::Occupied(slot) => match slot.remove() {
                    Slot::Ended(ending) => return Ok(ending),
                    Slot::Awaited(_) => anyhow::bail!("payment {payment_id} was accepted twice"),
                },
                Entry::Vacant(slot) => {
                    let (sender, awaited) = oneshot::channel();
                    slot.insert(Slot::Awaited(sender));
                    awaited
                }
            }
        };
        match tokio::time::timeout(SETTLE_TIMEOUT, awaited).await {
            Ok(ending) => ending.context("the reader of PaymentTopic has ended"),
            Err(_) => {
                anyhow::bail!("payment {payment_id} was accepted and has not ended in {SETTLE_TIMEOUT:?}")
            }
        }
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // A panic in it has already been printed.
            let _ended = reader.join();
        }
    }
}

fn record(slots: &Slots, name: &str, subject: &str) {
    let at = Instant::now();
    let Some(event) = EventType::parse(name).filter(|event| ends(*event)) else { return };
    let Ok(payment_id) = subject.parse() else { return };
    let ending = Ending { event, at };
    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
    // Payments of others stay here as ended: a few bytes each, for as long as a benchmark runs.
    if let Some(Slot::Awaited(sender)) = slots.insert(payment_id, Slot::Ended(ending)) {
        slots.remove(&payment_id);
        // Whoever waited has given up, and said so.
        let _gone = sender.send(ending);
    }
}

fn ends(event: EventType) -> bool {
    matches!(
        event,
        EventType::PaymentCompleted
            | EventType::PaymentRejected
            | EventType::PaymentFailed
            | EventType::PaymentCancelled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Endings {
        Endings { slots: Slots::default(), stop: Arc::default(), reader: None }
    }

    #[tokio::test]
    async fn an_ending_is_received_before_and_after_it_is_asked_for() {
        let endings = silent();
        let (early, late) = (Uuid::from_u128(1), Uuid::from_u128(2));
        record(&endings.slots, "payment.authorized.v1", &early.to_string());
        record(&endings.slots, "payment.failed.v1", &early.to_string());
        assert_eq!(endings.of(early).await.unwrap().event, EventType::PaymentFailed);

        let slots = endings.slots.clone();
        let relay = tokio::spawn(async move {
            while slots.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            record(&slots, "payment.completed.v1", &late.to_string());
        });
        assert_eq!(endings.of(late).await.unwrap().event, EventType::PaymentCompleted);
        relay.await.unwrap();
        assert!(endings.slots.lock().unwrap().is_empty());
    }
}
