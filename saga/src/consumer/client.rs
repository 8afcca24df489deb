//! The Kafka client of a consumer: how it is made, and when it is given up.
//!
//! librdkafka mends lost connections by itself, with one exception: brokers that are starting may answer a request
//! for metadata with no broker at all, and a client that hears this forgets all it knew, the bootstrap servers
//! included, and never connects again (librdkafka issue 5301; all versions since 2.12). It reports nothing.
//! So a client that brings nothing has to show now and then that it reaches a broker.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::Subscription;

/// After so long without a record, and then so often, the client is asked for a sign of life.
const SIGN_OF_LIFE_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// So many in a row, and it is replaced: harmless where Kafka is away.
const FAILURES_MAX: u32 = 3;

/// `poll_max`: how long it may go without being polled before its group does without it.
pub(super) fn subscribe(subscription: &Subscription, poll_max: Duration) -> anyhow::Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("socket.nagle.disable", "true").set("reconnect.backoff.max.ms", "1000");
    subscription.brokers.apply(&mut config);
    config
        .set("group.id", &subscription.group_id)
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
        // The default of one second between a drained queue and the next fetch is pure latency.
        .set("fetch.queue.backoff.ms", "1")
        // Bounded memory.
        .set("queued.max.messages.kbytes", "16384")
        // Topics are made by the relay, perhaps after we start.
        .set("topic.metadata.refresh.interval.ms", "5000");
    if let Some(instance) = &subscription.instance_id {
        config.set("group.instance.id", instance);
    }
    let consumer: BaseConsumer = config.create().context("kafka consumer")?;
    let topics: Vec<&str> = subscription.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).context("subscribe")?;
    Ok(consumer)
}

/// Whether the client still reaches a broker.
pub(super) struct Health {
    last_received_at: Instant,
    failures: u32,
}

impl Health {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_received_at: now, failures: 0 }
    }

    /// A record came, or the answer of a broker.
    pub(super) fn received(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_received_at) >= SIGN_OF_LIFE_INTERVAL
    }

    fn failed(&mut self, now: Instant) {
        self.last_received_at = now;
        self.failures += 1;
    }

    fn is_lost(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// Asks a client that has been quiet for metadata, and answers whether it is lost. Blocks for `ANSWER_TIMEOUT` at most.
    pub(super) fn is_client_lost(&mut self, consumer: &BaseConsumer, topic: Option<&str>) -> bool {
        if !self.is_due(Instant::now()) {
            return false;
        }
        match consumer.fetch_metadata(topic, ANSWER_TIMEOUT) {
            Ok(_) => self.received(Instant::now()),
            Err(error) => {
                tracing::debug!(%error, "no broker answers");
                self.failed(Instant::now());
            }
        }
        self.is_lost()
    }
}

/// Says each different trouble of the client once in a while, not at every poll.
#[derive(Default)]
pub(super) struct ClientErrors {
    last: Option<(String, Instant)>,
}

impl ClientErrors {
    /// Connection trouble heals by itself; a fatal error of the client does not.
    pub(super) fn report(&mut self, error: &KafkaError) -> anyhow::Result<()> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(error.clone()).context("the kafka consumer is beyond repair");
        }
        let text = error.to_string();
        let repeated = self
            .last
            .as_ref()
            .is_some_and(|(said, at)| *said == text && at.elapsed() < Duration::from_secs(10));
        if !repeated {
            tracing::warn!(error = text, "kafka");
            self.last = Some((text, Instant::now()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quiet_client_is_asked() {
        let start = Instant::now();
        let mut health = Health::new(start);
        assert!(!health.is_due(start + SIGN_OF_LIFE_INTERVAL - Duration::from_millis(1)));
        assert!(health.is_due(start + SIGN_OF_LIFE_INTERVAL));
        health.received(start + SIGN_OF_LIFE_INTERVAL);
        assert!(!health.is_due(start + SIGN_OF_LIFE_INTERVAL));
    }

    #[test]
    fn failures_in_a_row_lose_it_and_an_answer_redeems_it() {
        let start = Instant::now();
        let mut health = Health::new(start);
        for _ in 1..FAILURES_MAX {
            health.failed(start);
            assert!(
                !health.is_lost() && !health.is_due(start) && health.is_due(start + SIGN_OF_LIFE_INTERVAL)
            );
        }
        health.received(start);
        assert!(!health.is_lost());
        (0..FAILURES_MAX).for_each(|_| health.failed(start));
        assert!(health.is_lost());
    }
}
