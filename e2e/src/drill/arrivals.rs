//! Follows the events of the saga as a subscriber would, and measures how long each takes from its commit to Kafka.
//!
//! * An event that comes again counts with its first arrival, and as a repetition.
//! * It waits for no event: one that never comes is found by the audit, which compares rows with topics. So is a wrong order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use coroctl::stack::Stack;
use coroctl::topics::{Event, SAGA_TOPICS, Tail};
use jiff::Timestamp;
use tokio::task::JoinHandle;

/// For each topic in turn. It adds as much to what is measured.
const POLL_TIMEOUT: Duration = Duration::from_millis(10);

/// The longest time that a planned change of the relay may cost an event. Two take-overs take a second each; a process that starts in
/// their place takes longer on a slow machine.
pub const LONGEST_MAX: Duration = Duration::from_secs(20);

/// What was measured.
#[derive(Debug, Default)]
pub struct Arrivals {
    pub events: usize,
    pub repetitions: usize,
    /// The longest time from a commit to the first arrival of its event.
    pub longest: Duration,
    ids: HashSet<String>,
}

impl Arrivals {
    fn add(&mut self, event: &Event, now: Timestamp) {
        if !self.ids.insert(event.header("ce_id").to_owned()) {
            self.repetitions += 1;
            return;
        }
        self.events += 1;
        let Ok(committed) = event.header("ce_time").parse::<Timestamp>() else { return };
        let taken = Duration::try_from(now.duration_since(committed)).unwrap_or_default();
        self.longest = self.longest.max(taken);
    }
}

/// A reader of the topics.
pub struct Reader {
    is_over: Arc<AtomicBool>,
    reading: JoinHandle<Arrivals>,
}

impl Reader {
    /// Events that are emitted once this returns are measured.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub async fn begin(stack: &Stack) -> Result<Self> {
        let brokers = stack.kafka()?;
        let open = move || SAGA_TOPICS.map(|topic| Tail::from_end(brokers.clone(), topic));
        let tails = tokio::task::spawn_blocking(open).await.context("the reader of events")?;
        let tails = tails.into_iter().collect::<Result<Vec<Tail>>>()?;
        let is_over = Arc::new(AtomicBool::default());
        let until = is_over.clone();
        let reading = tokio::task::spawn_blocking(move || read(&tails, &until));
        Ok(Self { is_over, reading })
    }

    /// Ends the reader.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn end(mut self) -> Result<Arrivals> {
        self.is_over.store(true, Ordering::Relaxed);
        (&mut self.reading).await.context("the reader of events")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn read(tails: &[Tail], is_over: &AtomicBool) -> Arrivals {
    let mut arrivals = Arrivals::default();
    while !is_over.load(Ordering::Relaxed) {
        for tail in tails {
            while let Some(event) = tail.next_event(POLL_TIMEOUT) {
                arrivals.add(&event, Timestamp::now());
            }
        }
    }
    arrivals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_way_of_a_first_arrival_counts_and_repetitions_are_counted_apart() {
        let event = |id: &str, at: &str| Event {
            topic: "PaymentTopic".to_owned(),
            partition: 0,
            offset: 0,
            key: String::new(),
            headers: [("ce_id", id), ("ce_time", at)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            value: Vec::new(),
        };
        let now = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut arrivals = Arrivals::default();
        arrivals.add(&event("a", "2026-01-02T03:04:05Z"), now("2026-01-02T03:04:05.2Z"));
        arrivals.add(&event("b", "2026-01-02T03:04:05Z"), now("2026-01-02T03:04:06.5Z"));
        arrivals.add(&event("c", "2026-01-02T03:04:07Z"), now("2026-01-02T03:04:07.1Z"));
        // Once more, when the other relay took over.
        arrivals.add(&event("a", "2026-01-02T03:04:05Z"), now("2026-01-02T03:04:50Z"));
        // The clocks of two machines.
        arrivals.add(&event("d", "2026-01-02T03:04:08Z"), now("2026-01-02T03:04:07.9Z"));
        let Arrivals { events, repetitions, longest, .. } = arrivals;
        assert_eq!((events, repetitions, longest), (4, 1, Duration::from_millis(1500)));
    }
}
