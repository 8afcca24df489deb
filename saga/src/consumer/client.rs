//! Creates the Kafka client of a consumer, and detects a client that will never connect again.
//!
//! * librdkafka reconnects by itself, with one exception. A starting broker may answer a metadata request with an empty
//!   broker list; the client then drops all brokers, the bootstrap servers included, and reports nothing
//!   (librdkafka issue 5301; all versions since 2.12).
//! * So a client without records is asked for metadata at an interval, and replaced after some failures in a row.
//! * A client that another member with its `group.instance.id` has fenced is of no use any more ([`is_fatal`]). It was seen
//!   without another member too, after each loss of a group's coordinator (Kafka 4.3). It is replaced, after a pause that grows while its
//!   successors are fenced too: two members of one name would fence each other as fast as they can.

use std::time::{Duration, Instant};

use anyhow::Context;
use backon::ExponentialBackoff;
use brokers::Brokers;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::Subscription;
use crate::backoff::growing;

/// A client without records is asked for metadata this often.
const METADATA_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Failures in a row after which the client is replaced, which is harmless while Kafka is away.
const FAILURES_MAX: u32 = 3;
/// The pauses before a client that cannot recover is replaced.
const FENCED_PAUSE_MIN: Duration = Duration::from_secs(2);
const FENCED_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A client that lived for longer was not fenced by another of its name: that one comes back after a pause, which is at most twice the
/// longest.
const FENCED_AGAIN: Duration = Duration::from_secs(30);

/// The settings of every client that consumes.
pub(super) fn settings(brokers: &Brokers, group_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("socket.nagle.disable", "true").set("reconnect.backoff.max.ms", "1000");
    brokers.apply(&mut config);
    config
        .set("group.id", group_id)
        // The default of one second between a drained queue and the next fetch is pure latency.
        .set("fetch.queue.backoff.ms", "1");
    config
}

/// Creates a client and subscribes it. `poll_max`: the group expels a member that does not poll for this long.
pub(super) fn subscribe(subscription: &Subscription, poll_max: Duration) -> anyhow::Result<BaseConsumer> {
    let mut config = settings(&subscription.brokers, &subscription.group_id);
    config
        // At least once: an offset is stored only after its effect is committed.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // A new group must see every event there is.
        .set("auto.offset.reset", "earliest")
        // Eager: offsets of partitions that are gone are simply refused.
        .set("partition.assignment.strategy", "range")
        // A killed instance is noticed after this.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("max.poll.interval.ms", poll_max.as_millis().to_string())
        // Bounds the RAM of prefetched records.
        .set("queued.max.messages.kbytes", "16384")
        // The relay creates the topics, perhaps after this client starts.
        .set("topic.metadata.refresh.interval.ms", "5000");
    if let Some(instance) = &subscription.instance_id {
        config.set("group.instance.id", instance);
    }
    let consumer: BaseConsumer = config.create().context("cannot create the Kafka client")?;
    let topics: Vec<&str> = subscription.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).context("cannot subscribe to the topics")?;
    Ok(consumer)
}

/// Whether the client reaches a broker.
pub(super) struct Health {
    last_received_at: Instant,
    failures: u32,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_received_at: now, failures: 0 }
    }

    /// A record or an answer of a broker was received.
    pub(super) fn received(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_received_at) >= METADATA_INTERVAL
    }

    fn failed(&mut self, now: Instant) {
        self.last_received_at = now;
        self.failures += 1;
    }

    fn is_lost(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// Requests metadata when no record came for a while; true when the client is lost. Blocks for `ANSWER_TIMEOUT` at most.
    pub(super) fn is_client_lost(&mut self, consumer: &BaseConsumer, topic: Option<&str>) -> bool {
        if !self.is_due(Instant::now()) {
            return false;
        }
        match consumer.fetch_metadata(topic, ANSWER_TIMEOUT) {
            Ok(_) => self.received(Instant::now()),
            Err(error) => {
                tracing::debug!(%error, "a metadata request failed: no broker answers");
                self.failed(Instant::now());
            }
        }
        self.is_lost()
    }
}

/// The clients in a row that could not recover.
pub(super) struct Fenced {
    pauses: ExponentialBackoff,
}

impl Default for Fenced {
    fn default() -> Self {
        Self { pauses: growing(FENCED_PAUSE_MIN, FENCED_PAUSE_MAX) }
    }
}

impl Fenced {
    /// A client has ended, of whatever, that `lived` for this long.
    pub(super) fn ended(&mut self, lived: Duration) {
        if lived > FENCED_AGAIN {
            *self = Self::default();
        }
    }

    /// How long to wait before the successor of a client that was fenced.
    pub(super) fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(FENCED_PAUSE_MAX)
    }
}

/// Logs each distinct error of the client at most once in ten seconds, not at every poll.
#[derive(Default)]
pub(super) struct ClientErrors {
    last: Option<(String, Instant)>,
}

impl ClientErrors {
    /// Logs an error that the client recovers from.
    ///
    /// # Errors
    /// When the client cannot recover.
    pub(super) fn report(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(error.clone()).context("the Kafka client failed for good");
        }
        let text = error.to_string();
        let repeated = self
            .last
            .as_ref()
            .is_some_and(|(said, at)| *said == text && at.elapsed() < Duration::from_secs(10));
        if !repeated {
            tracing::warn!(error = text, "the Kafka client reports an error; it recovers by itself");
            self.last = Some((text, Instant::now()));
        }
        Ok(())
    }
}

/// Whether [`ClientErrors::report`] has said so of a client that cannot recover.
pub(super) fn is_fatal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(KafkaError::MessageConsumptionFatal(_)))
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn only_a_client_that_cannot_recover_is_fatal() {
        let report = |error| ClientErrors::default().report(&error);
        let fenced =
            report(KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::FencedInstanceId)).unwrap_err();
        assert!(is_fatal(&fenced.context("consuming")));
        report(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown)).unwrap();
        assert!(!is_fatal(&anyhow::anyhow!("cannot pause partitions")));
    }

    #[test]
    fn clients_that_are_fenced_in_a_row_are_replaced_ever_later_up_to_a_longest_pause() {
        let mut fenced = Fenced::default();
        let mut pause = |lived: Duration| {
            fenced.ended(lived);
            fenced.pause()
        };
        for exponent in 0..3 {
            let least = FENCED_PAUSE_MIN * 2_u32.pow(exponent);
            let most = least * 2;
            let pause = pause(FENCED_AGAIN);
            assert!(least <= pause && pause <= most, "pause {exponent} is {pause:?}");
        }
        for _ in 0..100 {
            let pause = pause(Duration::ZERO);
            assert!(FENCED_PAUSE_MAX <= pause && pause <= FENCED_PAUSE_MAX * 2 && pause <= FENCED_AGAIN);
        }
        assert!(pause(FENCED_AGAIN + Duration::from_millis(1)) <= 2 * FENCED_PAUSE_MIN, "it begins anew");
    }

    #[test]
    fn only_a_quiet_client_is_asked() {
        let start = Instant::now();
        let mut health = Health::new(start);
        assert!(!health.is_due(start + METADATA_INTERVAL - Duration::from_millis(1)));
        assert!(health.is_due(start + METADATA_INTERVAL));
        health.received(start + METADATA_INTERVAL);
        assert!(!health.is_due(start + METADATA_INTERVAL));
    }

    #[test]
    fn failures_in_a_row_lose_it_and_an_answer_redeems_it() {
        let start = Instant::now();
        let mut health = Health::new(start);
        for _ in 1..FAILURES_MAX {
            health.failed(start);
            assert!(!health.is_lost() && !health.is_due(start) && health.is_due(start + METADATA_INTERVAL));
        }
        health.received(start);
        assert!(!health.is_lost());
        (0..FAILURES_MAX).for_each(|_| health.failed(start));
        assert!(health.is_lost());
    }
}
