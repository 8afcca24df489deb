//! Only the relay writes to Kafka. Everybody else reads, whoever he says he is.

use std::time::{Duration, Instant};

use brokers::Brokers;
use coroctl::topics::SAGA_TOPICS;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use saga::contract::PAYMENT_TOPIC;
use uuid::Uuid;

use crate::harness::Harness;

const SERVICES: [&str; 7] =
    ["payments-svc", "balance-svc", "processor-svc", "search-indexer", "notifier", "fraud", "auditor"];
const SUBSCRIBER: &str = "subscriber";
const REFUSED: RDKafkaErrorCode = RDKafkaErrorCode::TopicAuthorizationFailed;
const ANSWER: Duration = Duration::from_secs(30);

/// As this user of the stack signs in; nobody does not.
fn brokers(harness: &Harness, user: Option<&str>) -> Brokers {
    match user {
        None => Brokers::at(&harness.stack.kafka_brokers),
        Some(user) => Brokers::read(&format!("{}/kafka/{user}.properties", harness.stack.dir)).unwrap(),
    }
}

async fn produce(brokers: &Brokers, topic: &str) -> Result<(), RDKafkaErrorCode> {
    let producer: FutureProducer = brokers.config().create().unwrap();
    let record = FutureRecord::<str, str>::to(topic).payload("forged").key("key");
    let sent = producer.send(record, ANSWER).await;
    sent.map(|_| ()).map_err(|(error, _)| error.rdkafka_error_code().unwrap())
}

/// Joins the group and reads the topic, as far as the first record or its end.
fn join(brokers: &Brokers, group: &str, topic: &str) -> Result<(), RDKafkaErrorCode> {
    let mut config = brokers.config();
    config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < ANSWER, "{group} brings neither a record of {topic} nor its end");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            Some(Err(error)) => return Err(error.rdkafka_error_code().unwrap()),
        }
    }
}

async fn make(admin: &AdminClient<DefaultClientContext>, topic: &str) -> Result<String, RDKafkaErrorCode> {
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let mut made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    made.remove(0).map_err(|(_, code)| code)
}

async fn retention(admin: &AdminClient<DefaultClientContext>, topic: &str) -> String {
    let topics = [ResourceSpecifier::Topic(topic)];
    let described = admin.describe_configs(&topics, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    let entry = described.entries.into_iter().find(|entry| entry.name == "retention.ms").unwrap();
    entry.value.unwrap()
}

#[tokio::test]
async fn nobody_but_the_relay_writes_creates_deletes_or_alters() {
    let harness = Harness::shared().await;
    let administrator: AdminClient<DefaultClientContext> =
        Brokers::read(&harness.stack.kafka_admin_config).unwrap().config().create().unwrap();
    let topic = format!("authorized-{}", Uuid::new_v4());
    make(&administrator, &topic).await.unwrap();
    for user in [None, Some(SUBSCRIBER)].into_iter().chain(SERVICES.map(Some)) {
        let brokers = brokers(&harness, user);
        assert_eq!(produce(&brokers, PAYMENT_TOPIC).await, Err(REFUSED), "{user:?}");
        assert_eq!(produce(&brokers, &topic).await, Err(REFUSED), "{user:?}");
        let admin: AdminClient<DefaultClientContext> = brokers.config().create().unwrap();
        assert_eq!(make(&admin, &format!("{topic}-of-his-own")).await, Err(REFUSED), "{user:?}");
        let alter = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "1000");
        // The library says Ok of what Kafka refused, so the topic is asked.
        admin.alter_configs([&alter], &AdminOptions::new()).await.unwrap();
        assert_ne!(retention(&administrator, &topic).await, "1000", "{user:?}");
        let deleted = admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
        assert!(deleted.iter().all(|answer| matches!(answer, Err((_, REFUSED)))), "{user:?}: {deleted:?}");
    }
    let relay = brokers(&harness, Some("relay"));
    assert_eq!(produce(&relay, &topic).await, Ok(()));
    administrator.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
}

#[tokio::test]
async fn anyone_reads_and_joins_a_group_but_a_service_only_its_own() {
    let harness = Harness::shared().await;
    // Somebody has paid: there is a topic to read.
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.settle(user, "0812", 400).await;
    let (nobody, group) = (brokers(&harness, None), format!("authorized-{}", Uuid::new_v4()));
    let services = SERVICES.map(|user| (user, brokers(&harness, Some(user))));
    let read = move || {
        assert_eq!(join(&nobody, &group, PAYMENT_TOPIC), Ok(()));
        for (user, brokers) in services {
            // Its own group is at work; another is no business of his.
            let refused = Err(RDKafkaErrorCode::GroupAuthorizationFailed);
            assert_eq!(join(&brokers, &group, PAYMENT_TOPIC), refused, "{user}");
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap();
}

#[tokio::test]
async fn a_subscriber_reads_the_topics_of_the_saga_in_its_own_groups_and_nothing_else() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    harness.settle(user, "0812", 400).await;
    let subscriber = brokers(&harness, Some(SUBSCRIBER));
    let read = move || {
        for (topic, group) in SAGA_TOPICS.into_iter().zip([SUBSCRIBER, "subscriber-2", "subscriber-3"]) {
            assert_eq!(join(&subscriber, group, topic), Ok(()), "{topic} in {group}");
        }
        for topic in ["PaymentTopic.parked", "cdc-relay.dead-letter", "cdc-relay.state"] {
            assert_eq!(join(&subscriber, SUBSCRIBER, topic), Err(REFUSED), "{topic}");
        }
        for group in SERVICES.into_iter().chain(["cdc-relay", "another"]) {
            let refused = Err(RDKafkaErrorCode::GroupAuthorizationFailed);
            assert_eq!(join(&subscriber, group, PAYMENT_TOPIC), refused, "{group}");
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap();
}
