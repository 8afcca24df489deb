//! Events told twice and out of order across topics, to a whole balance-svc: every effect happens once, whatever
//! came first.

use std::time::{Duration, Instant};

use clap::Parser;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
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

const PATIENCE: Duration = Duration::from_secs(60);

/// A service on a database, topics and a group of its own.
struct Service {
    ledger: Ledger,
    prefix: String,
    producer: BaseProducer,
    shutdown: CancellationToken,
    ran: JoinHandle<anyhow::Result<()>>,
}

/// An event: topic, type, body.
type Told = (&'static str, &'static str, String);

impl Service {
    async fn new() -> Self {
        let ledger = Ledger::new().await;
        let prefix = format!("test-{}-", Uuid::new_v4());
        let brokers =
            std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &brokers);
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
            format!("--database-url={}", ledger.trial.service_url().unwrap()),
            format!("--kafka-brokers={brokers}"),
            format!("--group-id={prefix}"),
            format!("--topic-prefix={prefix}"),
        ];
        let config_of_service = balance_svc::config::Config::parse_from(flags);
        let (public, admin) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let shutdown = CancellationToken::new();
        let ran = tokio::spawn(balance_svc::run(config_of_service, public, admin, shutdown.clone()));
        Self { ledger, prefix, producer: config.create().unwrap(), shutdown, ran }
    }

    fn tell(&self, user: Uuid, (topic, kind, body): &Told) {
        let topic = format!("{}{topic}", self.prefix);
        let key = user.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: HEADER_TYPE, value: Some(*kind) });
        let record = BaseRecord::to(&topic).key(&key).payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(PATIENCE)).unwrap();
    }

    async fn until(&self, sql: &str, expected: i64) {
        let began = Instant::now();
        loop {
            let found = self.ledger.count(sql).await;
            if found == expected {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{sql}: {found}, not {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) {
        assert_eq!(self.ledger.count("select count(*) from parked").await, 0);
        self.shutdown.cancel();
        self.ran.await.unwrap().unwrap();
        self.ledger.finish().await;
    }
}

/// The golden event of this type, about this payment.
fn event(topic: &'static str, kind: &'static str, user: Uuid, payment: Uuid) -> Told {
    let path = format!("{}/../saga/golden/{kind}.json", env!("CARGO_MANIFEST_DIR"));
    let body = std::fs::read_to_string(path).unwrap();
    let body = body.replace("0198c0de-0000-7000-8000-000000000001", &user.to_string());
    (topic, kind, body.replace("0198c0de-0000-7000-8000-000000000002", &payment.to_string()))
}

const AMOUNT: i64 = 15_000;

/// As when a database was restored to an earlier moment, and what it lost is told again. The hold is told once the
/// result is known to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_before_its_hold_waits_for_it() {
    let service = Service::new().await;
    let user = service.ledger.user_with(AMOUNT).await;
    let (payment, other) = (Uuid::now_v7(), Uuid::now_v7());
    service.tell(user, &event(PAYMENT_RESULT_TOPIC, "payment.result.succeeded.v1", user, payment));
    // Something of another user is applied meanwhile: the service is at work.
    let busy = service.ledger.user_with(AMOUNT).await;
    service.tell(busy, &event(PAYMENT_TOPIC, "payment.initiated.v1", busy, other));
    service.until("select count(*) from ledger where kind = 'hold'", 1).await;
    assert_eq!(service.ledger.balance(user).await, (AMOUNT, 0));
    service.tell(user, &event(PAYMENT_TOPIC, "payment.initiated.v1", user, payment));
    service.until("select count(*) from ledger where kind = 'capture'", 1).await;
    assert_eq!(service.ledger.balance(user).await, (0, 0));
    service.end().await;
}

/// Each event two or three times, in an order drawn by lot.
#[tokio::test(flavor = "multi_thread")]
async fn events_repeated_and_out_of_order_have_each_effect_once() {
    let seed = Uuid::new_v4().as_u128() as u64;
    eprintln!("seed {seed}");
    let mut lots = SmallRng::seed_from_u64(seed);
    let service = Service::new().await;
    let mut told: Vec<(Uuid, Told)> = Vec::new();
    let mut users = Vec::new();
    for number in 0..20 {
        let user = service.ledger.user_with(4 * AMOUNT).await;
        for payment in 0..3 {
            let payment_id = Uuid::now_v7();
            let result = match (number + payment) % 3 {
                0 => "payment.result.declined.v1",
                1 => "payment.result.succeeded.v1",
                _ => "payment.result.expired.v1",
            };
            for _ in 0..lots.random_range(2..=3) {
                told.push((user, event(PAYMENT_TOPIC, "payment.initiated.v1", user, payment_id)));
                told.push((user, event(PAYMENT_RESULT_TOPIC, result, user, payment_id)));
            }
        }
        users.push(user);
    }
    told.shuffle(&mut lots);
    for (user, event) in &told {
        service.tell(*user, event);
    }
    service.until("select count(*) from ledger where phase = 2", 60).await;
    for user in users {
        // Of each one's three payments one succeeded.
        assert_eq!(service.ledger.balance(user).await, (3 * AMOUNT, 0));
    }
    service.end().await;
}
