//! Emits rows as the relay does, and leaves out what a test wants to be lost.

use std::collections::BTreeMap;

use brokers::Brokers;
use jiff::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::contract::{BALANCE_TOPIC, EventBody, OPERATOR_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde::Serialize;

use crate::harness::WAIT_TIMEOUT;

const TOPICS: [(&str, &str); 3] =
    [(PAYMENT_TOPIC, "payments"), (BALANCE_TOPIC, "balance"), (PAYMENT_RESULT_TOPIC, "processor")];

pub struct Relay {
    producer: BaseProducer,
    prefix: String,
    /// By source and shard: the last commit that was emitted, and the last that there was.
    last: BTreeMap<(&'static str, usize), (u64, u64)>,
}

/// The place of a record in its chain.
struct Place<'a> {
    chain: Option<&'a str>,
    position: Option<&'a str>,
}

/// What becomes of a committed row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Emitted,
    /// The relay passed it over.
    NeverEmitted,
    /// It was emitted, and Kafka lost it.
    Lost,
}

impl Relay {
    pub async fn new(prefix: &str) -> Self {
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let names = TOPICS.iter().map(|(topic, _)| *topic).chain([OPERATOR_TOPIC]);
        let names: Vec<String> = names.map(|topic| format!("{prefix}{topic}")).collect();
        let topics: Vec<NewTopic<'_>> =
            names.iter().map(|name| NewTopic::new(name, 2, TopicReplication::Fixed(1))).collect();
        for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        Self { producer: config.create().unwrap(), prefix: prefix.to_owned(), last: BTreeMap::new() }
    }

    /// Emits the event of a row, with the next position of its source.
    pub fn emit<T: EventBody + Serialize>(&mut self, body: &T, fate: Fate) {
        self.emit_from(0, body, fate);
    }

    /// From this shard of its service. The first one's chain has no name, as before chains had any.
    pub fn emit_from<T: EventBody + Serialize>(&mut self, shard: usize, body: &T, fate: Fate) {
        let event_type = body.event_type().unwrap();
        let (topic, source) = TOPICS.into_iter().find(|(topic, _)| *topic == event_type.topic()).unwrap();
        let position = self.position(source, shard, fate);
        let chain = format!("{source}-{shard}/2026-11-29T12:15:02.123456Z");
        let place = Place { chain: (shard > 0).then_some(&*chain), position: Some(&position) };
        if fate == Fate::Emitted {
            self.produce_at(topic, event_type.as_str(), source, body, &place);
        }
    }

    /// The position of the next commit of a source.
    fn position(&mut self, source: &'static str, shard: usize, fate: Fate) -> String {
        let (emitted, committed) = self.last.entry((source, shard)).or_insert((0, 0x1000));
        *committed += 0x10;
        let position = format!("0/{committed:X};0;0/{emitted:X}");
        if fate != Fate::NeverEmitted {
            *emitted = *committed;
        }
        position
    }

    /// Emits an act of an operator, with the next position of its source.
    pub fn emit_act(&mut self, source: &'static str) {
        let (position, from) = (self.position(source, 0, Fate::Emitted), format!("/coro/{source}"));
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("ce_type", "database.opened.v1"))
            .insert(header("ce_source", from.as_str()))
            .insert(header("pg_position", position.as_str()));
        let topic = format!("{}{OPERATOR_TOPIC}", self.prefix);
        let record = BaseRecord::to(&topic).key("7/1/2/3").payload("{}").headers(headers);
        let record = record.timestamp(Timestamp::now().as_millisecond());
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// Emits the present row again, as `cdc-relay replay` does: without a position.
    pub fn emit_again<T: EventBody + Serialize>(&self, body: &T) {
        let event_type = body.event_type().unwrap();
        let (topic, source) = TOPICS.into_iter().find(|(topic, _)| *topic == event_type.topic()).unwrap();
        self.produce(topic, event_type.as_str(), source, body, None);
    }

    /// Produces a record of this type, whatever its body is.
    pub fn produce<T: EventBody + Serialize>(
        &self,
        topic: &str,
        name: &str,
        source: &str,
        body: &T,
        position: Option<&str>,
    ) {
        self.produce_at(topic, name, source, body, &Place { chain: None, position });
    }

    fn produce_at<T: EventBody + Serialize>(
        &self,
        topic: &str,
        name: &str,
        source: &str,
        body: &T,
        place: &Place<'_>,
    ) {
        let (id, subject, source) = (body.event_id(), body.subject(), format!("/coro/{source}"));
        let header = |key, value| Header { key, value: Some(value) };
        let mut headers = OwnedHeaders::new()
            .insert(header("ce_id", id.as_str()))
            .insert(header("ce_type", name))
            .insert(header("ce_source", source.as_str()))
            .insert(header("ce_subject", subject.as_str()));
        if let Some(position) = place.position {
            headers = headers.insert(header("pg_position", position));
        }
        if let Some(chain) = place.chain {
            headers = headers.insert(header("pg_chain", chain));
        }
        let (topic, key) = (format!("{}{topic}", self.prefix), body.key());
        let text = serde_json::to_string(body).unwrap();
        let at = Timestamp::now().as_millisecond();
        let record = BaseRecord::to(&topic).key(&key).payload(&text).headers(headers).timestamp(at);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    pub fn flush(&self) {
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }
}
