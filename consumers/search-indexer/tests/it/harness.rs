//! Topics, an alias and indexers of a test's own, on the Kafka and the OpenSearch of a stack.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use saga::CancellationToken;
use saga::contract::{HEADER_TYPE, PAYMENT_TOPIC, SERVICE_TOPIC};
use saga::search_index::{Body, Method, SearchError, SearchIndex};
use search_indexer::config::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo stack test`, or `. .stack/env` after `cargo stack up --with search`")
    })
}

/// An event of the payment `id`, as the relay emits it.
#[derive(Clone, Debug)]
pub struct Event {
    pub topic: &'static str,
    pub key: String,
    pub event_type: String,
    pub body: Value,
}

/// The event of a golden file, of this user, payment and version.
pub fn payment(name: &str, user: Uuid, id: Uuid, version: u64) -> Event {
    let path = format!("{}/../../saga/golden/payment.{name}.v1.json", env!("CARGO_MANIFEST_DIR"));
    let mut body: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    (body["user_id"], body["payment_id"], body["version"]) =
        (json!(user.to_string()), json!(id.to_string()), json!(version));
    Event { topic: PAYMENT_TOPIC, key: user.to_string(), event_type: format!("payment.{name}.v1"), body }
}

pub fn service(id: &str, name: &str, version: u64) -> Event {
    let event = if version == 1 { "added" } else { "changed" };
    let body = json!({"service_id": id, "name": name, "enabled": true, "event": event, "version": version});
    Event { topic: SERVICE_TOPIC, key: id.to_owned(), event_type: format!("service.{event}.v1"), body }
}

pub struct Harness {
    prefix: String,
    pub alias: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    pub index: SearchIndex,
}

/// An indexer in this process.
pub struct Running {
    admin_url: String,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// The value of one of its metrics; 0 if it has none yet.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.admin_url)).await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The status of `/ready`.
    pub async fn readiness(&self) -> u16 {
        reqwest::get(format!("{}/ready", self.admin_url)).await.unwrap().status().as_u16()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl Harness {
    pub async fn new() -> Self {
        let name = format!("it-{}", Uuid::new_v4().simple());
        let client = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let index = SearchIndex::new(&variable("SEARCH_URL"), &name, WAIT_TIMEOUT).unwrap();
        let harness = Self {
            prefix: format!("{name}-"),
            alias: name,
            admin: client.create().unwrap(),
            producer: client.clone().set("partitioner", "murmur2_random").create().unwrap(),
            index,
        };
        let names = harness.topics();
        let topics: Vec<NewTopic<'_>> =
            names.iter().map(|name| NewTopic::new(name, 2, TopicReplication::Fixed(1))).collect();
        for made in harness.admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        harness
    }

    fn topics(&self) -> [String; 2] {
        [PAYMENT_TOPIC, SERVICE_TOPIC].map(|topic| format!("{}{topic}", self.prefix))
    }

    pub fn config(&self) -> Config {
        let [url, kafka] = ["SEARCH_URL", "KAFKA_ADMIN_CONFIG"].map(variable);
        Config::parse_from([
            "search-indexer",
            "--search-url",
            &url,
            "--search-alias",
            &self.alias,
            "--topic-prefix",
            &self.prefix,
            "--kafka-config",
            &kafka,
        ])
    }

    pub async fn start(&self) -> Running {
        self.start_with(self.config()).await
    }

    /// Starts an indexer with another configuration.
    pub async fn start_with(&self, config: Config) -> Running {
        let stop = CancellationToken::new();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin_url = format!("http://{}", admin.local_addr().unwrap());
        let task = tokio::spawn(search_indexer::run(config, admin, stop.clone()));
        Running { admin_url, stop, task }
    }

    /// The configuration of an indexer that reaches OpenSearch at this address.
    pub fn config_at(&self, address: SocketAddr) -> Config {
        let mut config = self.config();
        config.search.search_url = Some(format!("http://{address}"));
        config
    }

    /// Produces events, in order.
    pub async fn emit(&self, events: &[Event]) {
        let sent = events.iter().map(|event| self.produce(event, event.body.to_string()));
        for place in futures_util::future::join_all(sent).await {
            assert!(!place.is_empty());
        }
    }

    /// Produces a record under the key and type of an event; returns its place.
    pub async fn produce(&self, event: &Event, value: String) -> String {
        let topic = format!("{}{}", self.prefix, event.topic);
        let header = Header { key: HEADER_TYPE, value: Some(event.event_type.as_str()) };
        let record = FutureRecord::to(&topic).key(&event.key).payload(&value);
        let record = record.headers(OwnedHeaders::new().insert(header));
        let at = self.producer.send(record, WAIT_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
        format!("{topic}/{}/{}", at.partition, at.offset)
    }

    /// A document as it is now, with its version; null if there is none, or no index that answers yet.
    pub async fn document(&self, id: &str, routing: &str) -> Value {
        let path = format!("/{}/_doc/{}?routing={routing}", self.alias, in_path(id));
        match self.index.send(Method::GET, &path, Body::None).await {
            Ok(found) => json!({"version": found["_version"], "source": found["_source"]}),
            Err(SearchError::Refused { .. }) => Value::Null,
            Err(error) => panic!("{error}"),
        }
    }

    /// The number of documents that a search finds now; none before there is an index.
    pub async fn count(&self, query: Value) -> u64 {
        let path = format!("/{}/_count", self.alias);
        let body = Body::Json(json!({ "query": query }));
        match self.index.send(Method::POST, &path, body).await {
            Ok(found) => found["count"].as_u64().unwrap(),
            Err(SearchError::Refused { .. }) => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// The name of the index behind the alias; empty if there is none.
    pub async fn live(&self) -> String {
        self.index.live().await.unwrap().map(|live| live.name).unwrap_or_default()
    }

    pub async fn finish(self) {
        let names = self.topics();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.admin.delete_topics(&names, &AdminOptions::new()).await.unwrap();
        let indices = format!("/_cat/indices/{}*?format=json&h=index", self.alias);
        let found = self.index.send(Method::GET, &indices, Body::None).await.unwrap();
        for index in found.as_array().unwrap() {
            let path = format!("/{}", index["index"].as_str().unwrap());
            self.index.send(Method::DELETE, &path, Body::None).await.unwrap();
        }
    }
}

/// A text as a segment of a path.
pub fn in_path(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Looks until the answer is the expected one.
pub async fn until<T, F, A>(expected: &T, look: F)
where
    T: PartialEq + std::fmt::Debug,
    F: Fn() -> A,
    A: Future<Output = T>,
{
    let began = Instant::now();
    loop {
        let found = look().await;
        if found == *expected {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{found:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
