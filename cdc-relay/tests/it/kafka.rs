//! Reads and writes the topics of a test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use brokers::Brokers;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use crate::harness::{eventually, server};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    pub value: String,
    pub headers: Vec<(String, String)>,
}

impl Event {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.value).expect("JSON")
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "it").set("enable.auto.commit", "false");
    config
}

/// A client of the shared Kafka, as its administrator.
pub fn admin() -> ClientConfig {
    Brokers::from_env("KAFKA_ADMIN_CONFIG").expect("the administrator's file").config()
}

/// Whether the topic exists. The question does not create it.
pub fn exists(topic: &str) -> bool {
    let consumer: BaseConsumer = config(&server("KAFKA_BROKERS")).create().expect("consumer");
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).expect("metadata");
    metadata.topics().iter().any(|known| known.name() == topic)
}

/// All records of the topic now, by partition and offset; none if it does not exist.
pub fn read(topic: &str) -> Vec<Event> {
    read_from(&server("KAFKA_BROKERS"), topic)
}

pub fn read_from(brokers: &str, topic: &str) -> Vec<Event> {
    let consumer: BaseConsumer = config(brokers).set("fetch.wait.max.ms", "10").create().expect("consumer");
    let timeout = Duration::from_secs(10);
    let metadata = consumer.fetch_metadata(Some(topic), timeout).expect("metadata");
    let mut events = Vec::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let Ok((low, high)) = consumer.fetch_watermarks(topic, partition.id(), timeout) else { continue };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition.id(), Offset::Offset(low)).expect("list");
        consumer.assign(&list).expect("assign");
        let mut next = low;
        while next < high {
            let message = consumer.poll(timeout).expect("a record in time").expect("a record");
            next = message.offset() + 1;
            events.push(event(&message));
        }
    }
    events
}

/// Reads the end offsets of topics.
pub struct Ends {
    consumer: BaseConsumer,
    partitions: Vec<(String, i32)>,
}

impl Ends {
    pub fn of(brokers: &str, topics: &[String]) -> Ends {
        let consumer: BaseConsumer = config(brokers).create().expect("consumer");
        let partitions = topics.iter().flat_map(|name| {
            let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(10)).expect("metadata");
            let found = metadata.topics().iter().flat_map(|topic| topic.partitions());
            found.map(|partition| (name.clone(), partition.id())).collect::<Vec<_>>()
        });
        let partitions = partitions.collect();
        Ends { consumer, partitions }
    }

    /// In the order of the topics and their partitions; `None` while a broker is away.
    pub fn read(&self) -> Option<Vec<i64>> {
        let end = |(topic, partition): &(String, i32)| {
            self.consumer.fetch_watermarks(topic, *partition, Duration::from_secs(2)).ok()
        };
        self.partitions.iter().map(|partition| end(partition).map(|(_, end)| end)).collect()
    }
}

/// Records ever written to the topic.
pub async fn written(topic: &str) -> i64 {
    let ends = Ends::of(&server("KAFKA_BROKERS"), &[topic.to_owned()]);
    eventually("the ends of the topic", || async { ends.read() }).await.iter().sum()
}

fn event(message: &impl Message) -> Event {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect::<Vec<_>>()
    });
    Event {
        partition: message.partition(),
        offset: message.offset(),
        key: text(message.key()),
        value: text(message.payload()),
        headers: headers.unwrap_or_default(),
    }
}

/// Waits until the topic holds events with `count` distinct ids, and returns all of its events.
pub async fn distinct(topic: &str, count: usize) -> Vec<Event> {
    eventually(&format!("{count} distinct events in {topic}"), || async {
        let events = read(topic);
        let ids: BTreeSet<&str> = events.iter().map(|event| event.header("ce_id")).collect();
        (ids.len() >= count).then_some(events)
    })
    .await
}

/// The events without repeats, in the order of their first emission, by key.
pub fn first_emissions(events: &[Event]) -> BTreeMap<String, Vec<Event>> {
    let (mut known, mut by_key) = (BTreeSet::new(), BTreeMap::<String, Vec<Event>>::new());
    for event in events {
        if known.insert(event.header("ce_id").to_owned()) {
            by_key.entry(event.key.clone()).or_default().push(event.clone());
        }
    }
    by_key
}

/// Checks that the chain of positions is closed: every transaction names the one before it, from `0/0` on.
/// Returns the number of transactions.
pub fn chain(events: &[Event]) -> usize {
    let mut previous = BTreeMap::new();
    for event in events {
        let position = event.header("pg_position");
        let parts: Vec<&str> = position.split(';').collect();
        let [commit, _, before] = parts.as_slice() else { panic!("position {position}") };
        let known = previous.insert((*commit).to_owned(), (*before).to_owned());
        assert!(known.is_none_or(|known| known == *before), "{commit} has two predecessors");
    }
    for before in previous.values() {
        assert!(before == "0/0" || previous.contains_key(before), "the transaction {before} is missing");
    }
    assert_eq!(previous.values().filter(|before| *before == "0/0").count(), 1, "one chain, one beginning");
    previous.len()
}

/// Writes a record, as an operator would with a console.
pub fn write(topic: &str, key: &str, value: Option<&str>) {
    let producer: BaseProducer = admin().create().expect("producer");
    let mut record = BaseRecord::to(topic).key(key);
    if let Some(value) = value {
        record = record.payload(value);
    }
    producer.send(record).expect("send");
    producer.flush(Duration::from_secs(10)).expect("flush");
}

/// A topic of one partition.
pub async fn make(topic: &str) {
    let admin: AdminClient<DefaultClientContext> = admin().create().expect("admin");
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    for made in admin.create_topics(&[new], &AdminOptions::new()).await.expect("topics") {
        made.expect("a topic");
    }
}

/// Removes the topics of a test. Those of a private broker vanish with it.
pub fn delete(brokers: &str, prefix: &str) {
    if brokers != server("KAFKA_BROKERS") {
        return;
    }
    let run = |prefix: String| {
        let admin: AdminClient<DefaultClientContext> = admin().create().expect("admin");
        let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(10)) else { return };
        let names: Vec<&str> = metadata
            .topics()
            .iter()
            .map(|topic| topic.name())
            .filter(|name| name.starts_with(&prefix))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let _ = runtime.block_on(admin.delete_topics(&names, &AdminOptions::new()));
    };
    let prefix = prefix.to_owned();
    let _ = std::thread::spawn(move || run(prefix)).join();
}
