//! What is on Kafka has the schemas of the documents: every record of every topic, whatever scenario it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Mutex;

use coroctl::databases::Databases;
use coroctl::topics::{self, Event, SAGA_TOPICS};
use jiff::Timestamp;
use rdkafka::Message;
use saga::contract::SERVICE_TOPIC;
use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use crate::asyncapi::{AsyncApi, event_schemas, text};
use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, binary};

const WRONG_SHOWN_MAX: usize = 5;

/// Asserts that all records there are have their schemas, except those that a test forged.
pub async fn assert_valid(harness: &Harness) {
    let brokers = harness.stack.kafka_brokers.clone();
    let valid = tokio::task::spawn_blocking(move || validate(&brokers)).await.unwrap();
    for topic in SAGA_TOPICS.into_iter().chain([SERVICE_TOPIC]) {
        assert!(valid[topic] > 0, "no record on {topic}: {valid:?}");
    }
}

/// The offset after the last record that was found valid, by topic and partition. A record never changes, and nearly every test asks.
static VALID_TO: Mutex<BTreeMap<(String, i32), i64>> = Mutex::new(BTreeMap::new());

/// The number of valid records of each topic. Blocking.
fn validate(brokers: &str) -> BTreeMap<String, usize> {
    let asyncapi = AsyncApi::read();
    let known = VALID_TO.lock().unwrap().clone();
    let mut valid_to = BTreeMap::new();
    let mut valid = BTreeMap::new();
    let mut wrong = Vec::new();
    for topic in asyncapi.topics() {
        let count = valid.entry(topic.clone()).or_default();
        topics::visit(brokers, &topic, |message| {
            let place = (topic.clone(), message.partition());
            let is_known = known.get(&place).is_some_and(|next| message.offset() < *next);
            valid_to.insert(place, message.offset() + 1);
            let event = Event::of(message);
            if event.header(EXPLAINED.0) == EXPLAINED.1 {
                return Ok(());
            }
            if is_known {
                *count += 1;
                return Ok(());
            }
            match asyncapi.errors(&event) {
                errors if errors.is_empty() => *count += 1,
                errors if wrong.len() < WRONG_SHOWN_MAX => wrong.push((event, errors)),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
    }
    assert!(wrong.is_empty(), "records that are not as documented: {wrong:#?}");
    // Of two that validate at once, one may have seen less.
    let mut all = VALID_TO.lock().unwrap();
    for (place, next) in valid_to {
        let kept = all.entry(place).or_default();
        *kept = next.max(*kept);
    }
    valid
}

#[tokio::test]
async fn every_published_column_is_in_a_schema_and_every_field_of_a_schema_is_published() {
    let harness = Harness::shared().await;
    let databases = Databases::connect(&harness.stack).await.unwrap();
    let mut published = BTreeMap::new();
    for (database, client) in databases.named() {
        let query = "select tablename::text, attnames::text[] from pg_publication_tables where pubname = 'coro_events'";
        for row in client.query(query, &[]).await.unwrap() {
            let (table, columns): (String, Vec<String>) = (row.get(0), row.get(1));
            published.insert((database, table), columns.into_iter().collect::<BTreeSet<String>>());
        }
    }
    let schemas = event_schemas();
    let columns = |schema: &str| -> BTreeSet<String> {
        let schema = &schemas[schema];
        let fields = schema["properties"].as_object().unwrap().keys().cloned().collect();
        let required = schema["required"].as_array().unwrap().iter();
        let required: BTreeSet<String> = required.map(|field| text(field).to_owned()).collect();
        assert_eq!(required, fields, "a column is always there; a null is a value");
        fields
    };
    let mut expected = BTreeMap::new();
    let tables =
        [("payments", "payments"), ("payments", "services"), ("balance", "ledger"), ("processor", "charges")];
    for (database, table) in tables {
        expected.insert((database, table.to_owned()), columns(&format!("{table}.row")));
        expected.insert((database, "parked".to_owned()), columns("message.parked.v1"));
        expected.insert((database, "parked_acts".to_owned()), columns("message.retried.v1"));
        expected.insert((database, "incarnation_acts".to_owned()), columns("database.opened.v1"));
    }
    assert_eq!(columns("message.dismissed.v1"), columns("message.retried.v1"));
    assert_eq!(columns("database.closed.v1"), columns("database.opened.v1"));
    for (table, schema) in
        [("resolutions", "resolution.proposed.v1"), ("resolution_confirmations", "resolution.confirmed.v1")]
    {
        expected.insert(("processor", table.to_owned()), columns(schema));
    }
    assert_eq!(published, expected);
}

/// Emits the rows of this user once more.
pub async fn replay(harness: &Harness, source: &str, table: &str, user: Uuid) {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let url = |read_only: &str| {
        let (_, server) = read_only.split_once('@').unwrap();
        format!("postgres://coro_relay:{}@{server}", variable("CORO_RELAY_PASSWORD"))
    };
    let stack = &harness.stack;
    let status = Command::new(binary("cdc-relay"))
        .args(["replay", "--source", source, "--table", table, "--key", &user.to_string(), "--yes"])
        .env("RELAY_ROUTES", format!("{}/../cdc-relay/relay.toml", env!("CARGO_MANIFEST_DIR")))
        .env("PAYMENTS_RELAY_URL", url(&stack.payments_database_url))
        .env("BALANCE_RELAY_URL", url(&stack.balance_database_url))
        .env("PROCESSOR_RELAY_URL", url(&stack.processor_database_url))
        .env("KAFKA_CONFIG", format!("{}/kafka/relay.properties", stack.dir))
        .env("AMQP_URL", &stack.amqp_url)
        .stdout(Stdio::null())
        .status();
    let status = tokio::time::timeout(WAIT_TIMEOUT, status).await.unwrap().unwrap();
    assert!(status.success(), "replay of {source}: {status}");
}

#[tokio::test]
async fn an_event_that_is_replayed_is_the_same_event_without_a_position() {
    let harness = Harness::shared().await;
    let since = Timestamp::now();
    let user = harness.client.user_with(1_000).await.unwrap();
    for client_number in ["0812", "0812-decline"] {
        harness.settle(user, client_number, 400).await;
    }
    for (source, table) in [("payments", "payments"), ("balance", "ledger"), ("processor", "charges")] {
        replay(&harness, source, table, user).await;
    }
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || topics::read(&brokers, &SAGA_TOPICS, since).unwrap();
    let events = tokio::task::spawn_blocking(read).await.unwrap();
    let mut bodies: BTreeMap<String, Value> = BTreeMap::new();
    let mut replayed = BTreeSet::new();
    for event in events.iter().filter(|event| event.key == user.to_string()) {
        let id = event.header("ce_id").to_owned();
        let body = event.json().unwrap();
        match event.headers.contains_key("pg_position") {
            true => drop(bodies.insert(id, body)),
            false => {
                assert_eq!(bodies.get(&id), Some(&body), "{id} is replayed after it was emitted, as it was");
                replayed.insert(id);
            }
        }
    }
    // Two payments in their last versions, their five ledger entries (one is the deposit), and their charges.
    assert_eq!(replayed.len(), 2 + 5 + 2, "{replayed:?}");
    assert_valid(&harness).await;
}
