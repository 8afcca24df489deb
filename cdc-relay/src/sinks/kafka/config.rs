//! The settings of the relay's Kafka clients.
//!
//! * The routes file may set anything but the guarantees: acknowledgement by all replicas, idempotence, order, no time-out.
//! * `--kafka-config` decides how to connect.

use std::collections::BTreeMap;

use brokers::Brokers;
use rdkafka::config::ClientConfig;

use crate::dead_letter::record::RECORD_BYTES_MAX;
use crate::routes::Routes;
use crate::sinks::batch_size::BatchSize;

impl BatchSize {
    /// How long a record waits for the rest of its batch, in milliseconds; `None`: as the routes file says, else 0.
    pub(super) fn linger(self) -> Option<&'static str> {
        match self {
            Self::Small => None,
            Self::Medium => Some("2"),
            Self::Large => Some("10"),
        }
    }
}

/// The settings that all of the relay's clients share.
pub fn client_config(brokers: &Brokers, routes: &Routes) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "cdc-relay");
    config.set("socket.nagle.disable", "true");
    config.set("reconnect.backoff.ms", "50");
    config.set("reconnect.backoff.max.ms", "1000");
    for (key, value) in &routes.kafka {
        if key.starts_with("security.") || key.starts_with("sasl.") || key.starts_with("ssl.") {
            config.set(key, value.get_ref());
        }
    }
    brokers.apply(&mut config);
    config
}

/// The producer's settings: the relay's defaults, then the routes file's, then those that nothing may change.
pub(super) fn producer_config(brokers: &Brokers, routes: &Routes, batch_bytes: usize) -> ClientConfig {
    let mut config = client_config(brokers, routes);
    let defaults: BTreeMap<&str, String> = BTreeMap::from([
        ("linger.ms", "0".to_owned()),
        ("batch.size", batch_bytes.to_string()),
        ("batch.num.messages", "100000".to_owned()),
        // The source bounds what is in flight by bytes; these must not interfere.
        ("queue.buffering.max.messages", "1000000".to_owned()),
        ("queue.buffering.max.kbytes", "1048576".to_owned()),
        ("message.max.bytes", (routes.relay.max_record_bytes.max(RECORD_BYTES_MAX) + 65_536).to_string()),
        ("compression.codec", "none".to_owned()),
        // All topics exist at start. A topic that is unknown for longer was deleted: the new session creates it again.
        ("topic.metadata.propagation.max.ms", "10000".to_owned()),
        ("statistics.interval.ms", "0".to_owned()),
    ]);
    for (key, value) in defaults {
        config.set(key, value);
    }
    for (key, value) in &routes.kafka {
        config.set(key, value.get_ref());
    }
    // The operator's connection settings win over those of the routes file.
    brokers.apply(&mut config);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random");
    config
}
