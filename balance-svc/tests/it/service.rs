//! A whole balance-svc on a database, topics and a group of its own, and what is produced for it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::CancellationToken;
use saga::contract::{HEADER_TYPE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::Ledger;

pub const ADMIN_TOKEN: &str = "the-token-of-a-test";
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A service on a database, topics and a group of its own.
pub struct Service {
    pub ledger: Ledger,
    /// The address of its admin listener.
    pub admin: SocketAddr,
    prefix: String,
    producer: BaseProducer,
    shutdown: CancellationToken,
    ran: JoinHandle<anyhow::Result<()>>,
}

/// An event: topic, type, body.
pub type PublishedEvent = (&'static str, &'static str, String);

impl Service {
    pub async fn new() -> Self {
        let ledger = Ledger::new().await;
        let prefix = format!("test-{}-", Uuid::new_v4());
        let brokers =
            std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        for topic in [PAYMENT_TOPIC, PAYMENT_RESULT_TOPIC] {
            let name = format!("{prefix}{topic}");
            let new = NewTopic::new(&name, 2, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        let flags = [
            "balance-svc".to_owned(),
            "--listen-addr=127.0.0.1:0".to_owned(),
            "--admin-addr=127.0.0.1:0".to_owned(),
            format!("--database-url={}", ledger.harness.service_url().unwrap()),
            format!("--kafka-brokers={brokers}"),
            format!("--group-id={prefix}"),
            format!("--topic-prefix={prefix}"),
            format!("--admin-token={ADMIN_TOKEN}"),
        ];
        let config_of_service = balance_svc::config::Config::parse_from(flags);
        let (public, admin) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let admin_address = admin.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let ran = tokio::spawn(balance_svc::run(config_of_service, public, admin, shutdown.clone()));
        Self { ledger, admin: admin_address, prefix, producer: config.create().unwrap(), shutdown, ran }
    }

    pub fn produce(&self, user: Uuid, published: &PublishedEvent) {
        self.produce_with(&user.to_string(), published, &[]);
    }

    /// The same with this key and further headers.
    pub fn produce_with(&self, key: &str, (topic, kind, body): &PublishedEvent, headers: &[(&str, &str)]) {
        let topic = format!("{}{topic}", self.prefix);
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let headers = headers.insert(Header { key: HEADER_TYPE, value: Some(*kind) });
        let record = BaseRecord::to(&topic).key(key).payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }

    pub async fn until(&self, sql: &str, expected: i64) {
        let began = Instant::now();
        loop {
            let found = self.ledger.count(sql).await;
            if found == expected {
                return;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{sql}: {found}, not {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn end(self) {
        assert_eq!(self.ledger.count("select count(*) from parked").await, 0);
        self.stop().await;
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.ran.await.unwrap().unwrap();
        self.ledger.finish().await;
    }
}

/// The golden event of this type, about this payment.
pub fn event(topic: &'static str, kind: &'static str, user: Uuid, payment: Uuid) -> PublishedEvent {
    let path = format!("{}/../saga/golden/{kind}.json", env!("CARGO_MANIFEST_DIR"));
    let body = std::fs::read_to_string(path).unwrap();
    let body = body.replace("0198c0de-0000-7000-8000-000000000001", &user.to_string());
    (topic, kind, body.replace("0198c0de-0000-7000-8000-000000000002", &payment.to_string()))
}

/// The amount of the golden events.
pub const AMOUNT: i64 = 15_000;
