//! Prints every change of a payment once. Needs the crates rdkafka, serde_json and anyhow.

use std::collections::HashMap;
use std::io::Write;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use serde_json::Value;

const PAYMENTS_MAX: usize = 100_000;

/// The highest version of each payment, for the payments that changed last: from one to two times `PAYMENTS_MAX`.
#[derive(Default)]
struct Latest {
    young: HashMap<String, u64>,
    old: HashMap<String, u64>,
}

impl Latest {
    fn version(&self, payment: &str) -> u64 {
        self.young.get(payment).or_else(|| self.old.get(payment)).copied().unwrap_or(0)
    }

    fn set(&mut self, payment: &str, version: u64) {
        if self.young.len() == PAYMENTS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(payment.to_owned(), version);
    }
}

/// The file of the subscriber's principal: librdkafka's properties, one a line.
fn properties(path: &str) -> anyhow::Result<ClientConfig> {
    let mut config = ClientConfig::new();
    for line in std::fs::read_to_string(path)?.lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, value)) = line.split_once('=') {
            config.set(name, value);
        }
    }
    Ok(config)
}

fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}

fn handle(message: &BorrowedMessage<'_>, latest: &mut Latest) -> anyhow::Result<()> {
    let kind = header(message, "ce_type").unwrap_or_default();
    let payment = header(message, "ce_subject").unwrap_or_default();
    if !kind.ends_with(".v1") {
        return Ok(()); // a type of the future: its .v1 comes beside it
    }
    let event: Value = match serde_json::from_slice(message.payload().unwrap_or_default()) {
        Ok(event) => event,
        Err(error) => {
            let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
            eprintln!("{topic}/{partition}/{offset} is no event and was skipped: {error}");
            return Ok(());
        }
    };
    let version = event["version"].as_u64().unwrap_or_default();
    if version <= latest.version(payment) {
        return Ok(()); // a repetition
    }
    writeln!(std::io::stdout(), "{kind} {payment} {version} {}", event["amount"])?; // your effect
    latest.set(payment, version);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut config = properties(&std::env::var("KAFKA_CONFIG")?)?;
    config
        .set("group.id", std::env::var("KAFKA_GROUP").unwrap_or_else(|_| "subscriber".to_owned()))
        .set("auto.offset.reset", "earliest") // a new group begins at the first event
        .set("enable.auto.offset.store", "false"); // an offset counts once its event is handled
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&["PaymentTopic"])?;
    let mut latest = Latest::default();
    for message in consumer.iter() {
        let message = message?;
        handle(&message, &mut latest)?;
        consumer.store_offset_from_message(&message)?;
    }
    Ok(())
}
