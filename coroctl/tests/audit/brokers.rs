//! Reads real brokers: topics, a group and a queue of a test's own.

use std::collections::BTreeSet;
use std::time::Duration;

use brokers::Brokers;
use coroctl::audit::checks::chain::follow;
use coroctl::audit::read::brokers as read;
use coroctl::audit::targets::Targets;
use coroctl::topics;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use saga::contract::{BALANCE_TOPIC, OPERATOR_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo stack test`, or `. .stack/env` after `cargo stack up`")
    })
}

fn client() -> ClientConfig {
    Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config()
}

/// Topics under a prefix of the test's own.
struct Topics {
    targets: Targets,
    names: Vec<String>,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Topics {
    async fn new(names: &[&str]) -> Self {
        let topic_prefix = format!("audit-{}-", Uuid::new_v4().simple());
        let names: Vec<String> = names.iter().map(|name| format!("{topic_prefix}{name}")).collect();
        let admin: AdminClient<DefaultClientContext> = client().create().unwrap();
        let new = |name| NewTopic::new(name, 2, TopicReplication::Fixed(1));
        let topics: Vec<NewTopic<'_>> = names.iter().map(|name| new(name.as_str())).collect();
        for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        let queue = format!("{topic_prefix}queue");
        let targets = Targets { topic_prefix, queue, ..Targets::default() };
        Self { targets, names, admin, producer: client().create().unwrap() }
    }

    /// Puts a record with these headers on partition 1.
    async fn put(&self, name: &str, key: &str, headers: &[(&str, &str)], value: Option<&str>) -> i64 {
        let topic = self.targets.topic(name);
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let mut record = FutureRecord::to(&topic).key(key).partition(1).headers(headers);
        record.payload = value;
        self.producer.send(record, ANSWER_TIMEOUT).await.unwrap().offset
    }

    async fn contents(&self) -> read::KafkaContents {
        let (brokers, targets) = (Brokers::at(variable("KAFKA_BROKERS")), self.targets.clone());
        tokio::task::spawn_blocking(move || read::read_kafka(&brokers, &targets, BTreeSet::new()))
            .await
            .unwrap()
            .unwrap()
    }

    async fn finish(self) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        self.admin.delete_topics(&names, &AdminOptions::new()).await.unwrap();
    }
}

fn golden(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test]
async fn events_chains_dead_letters_and_checkpoints_are_read_from_kafka() {
    const STATE: &str = "cdc-relay.state";
    const DEAD_LETTERS: &str = "cdc-relay.dead-letter";
    let topics = Topics::new(&[
        PAYMENT_TOPIC,
        BALANCE_TOPIC,
        "BalanceTopic.parked",
        OPERATOR_TOPIC,
        STATE,
        DEAD_LETTERS,
    ])
    .await;
    let (user, payment) = ("0198c0de-0000-7000-8000-000000000001", "0198c0de-0000-7000-8000-000000000002");
    let body = golden("payment.initiated.v1");
    let id = format!("payments/payments/{payment}/1");
    let chain = ("pg_chain", "payments/2026-11-29T12:15:02.123456Z");
    let headers = |position| {
        let source = ("ce_source", "/coro/payments");
        [
            ("ce_id", id.as_str()),
            ("ce_type", "payment.initiated.v1"),
            source,
            chain,
            ("pg_position", position),
        ]
    };
    topics.put(PAYMENT_TOPIC, user, &headers("0/10;0;0/0"), Some(&body)).await;
    topics.put(PAYMENT_TOPIC, user, &[("whatever", "x")], Some("poison")).await;
    // Another chain of the same source: its positions are its own.
    let other =
        [("ce_source", "/coro/payments"), ("pg_chain", "payments-1/2026"), ("pg_position", "0/10;0;0/0")];
    topics.put("BalanceTopic.parked", "k", &other, Some("{}")).await;
    // Members of the same chain: a parked message, an operator's act, and a dead letter, which has no `ce_source`.
    let parked = [("ce_source", "/coro/payments"), chain, ("pg_position", "0/20;0;0/10")];
    topics.put("BalanceTopic.parked", "k", &parked, Some("{}")).await;
    let dead_letter = r#"{"source":"payments","destination":"PaymentTopic","key":"k","reason":"too large"}"#;
    topics.put(DEAD_LETTERS, "k", &[chain, ("pg_position", "0/30;0;0/20")], Some(dead_letter)).await;
    let act = [("ce_source", "/coro/payments"), chain, ("pg_position", "0/40;0;0/30")];
    topics.put(OPERATOR_TOPIC, "k", &act, Some("{}")).await;
    let release = r#"{"source":"payments","destination":"PaymentTopic","key":"k","release":true}"#;
    topics.put(DEAD_LETTERS, "k", &[], Some(release)).await;
    for acknowledged in ["0/1", "1/A"] {
        let checkpoint = format!(
            r#"{{"system_id":"7","timeline":1,"slot":"s","phase":"streaming","acknowledged":"{acknowledged}","told":"0/1","chain":"0/1","routes":"r"}}"#
        );
        topics.put(STATE, "payments/s", &[], Some(&checkpoint)).await;
        topics.put(STATE, "gone/s", &[], Some(&checkpoint)).await;
    }
    topics.put(STATE, "gone/s", &[], None).await;
    topics.put(STATE, "payments/s/publication", &[], Some(r#"{"coverage":{}}"#)).await;

    let contents = topics.contents().await;
    let events = &contents.events.payments[&payment.parse().unwrap()];
    assert!(events.versions.has(1) && !events.versions.has(2));
    assert_eq!((events.at, contents.events.records), ((1, 0), 2));
    let foreign = &contents.events.foreign;
    assert_eq!((foreign.len(), foreign[0].at.as_str()), (1, "PaymentTopic/1/1"));
    let chain = follow(&contents.events.chains);
    assert_eq!((chain.examined, chain.violations), (5, 0), "{chain:?}");
    let dead_letters: Vec<&str> =
        contents.dead_letters.iter().map(|dead_letter| dead_letter.at.as_str()).collect();
    assert_eq!(dead_letters, ["cdc-relay.dead-letter/1/0"]);
    let checkpoints: Vec<_> = contents
        .checkpoints
        .iter()
        .map(|checkpoint| (checkpoint.source.as_str(), checkpoint.acknowledged))
        .collect();
    assert_eq!(checkpoints, [("payments", (1 << 32) + 0xA)]);
    topics.finish().await;
}

#[tokio::test]
async fn a_group_is_behind_until_it_has_applied_all() {
    let topics = Topics::new(&[PAYMENT_TOPIC]).await;
    for _ in 0..3 {
        topics.put(PAYMENT_TOPIC, "k", &[], Some("{}")).await;
    }
    let (brokers, topic) = (variable("KAFKA_BROKERS"), topics.targets.topic(PAYMENT_TOPIC));
    let group = format!("{}group", topics.targets.topic_prefix);
    let look = move || {
        let lag = || topics::lag(&brokers, &group, std::slice::from_ref(&topic)).unwrap();
        let consumer: BaseConsumer = client().set("group.id", &group).create().unwrap();
        let apply = |offset| {
            let mut applied = TopicPartitionList::new();
            applied.add_partition_offset(&topic, 1, Offset::Offset(offset)).unwrap();
            consumer.commit(&applied, CommitMode::Sync).unwrap();
        };
        let new = lag();
        apply(2);
        let late = lag();
        apply(3);
        [new, late, lag()]
    };
    let lags = tokio::task::spawn_blocking(look).await.unwrap();
    assert_eq!(lags, [(3, 3), (1, 3), (0, 3)]);
    topics.finish().await;
}

#[tokio::test]
async fn messages_that_wait_in_the_queue_are_counted() {
    let queue = format!("audit-{}", Uuid::new_v4().simple());
    let url = variable("AMQP_URL");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let declare = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), declare, FieldTable::default()).await.unwrap();
    assert_eq!(read::queue_depth(&url, &queue).await.unwrap(), 0);
    for _ in 0..2 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish("".into(), queue.as_str().into(), options, b"{}", properties).await;
        sent.unwrap().await.unwrap();
    }
    assert_eq!(read::queue_depth(&url, &queue).await.unwrap(), 2);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    assert!(read::queue_depth(&url, &queue).await.is_err(), "a queue that is not there is not an empty one");
    connection.close(200, "done".into()).await.unwrap();
}
