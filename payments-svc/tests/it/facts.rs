//! Events that contradict a payment's row or themselves, produced for a whole payments-svc: each is parked, and
//! the payment stays where it is.

use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::CancellationToken;
use saga::contract::{BALANCE_TOPIC, HEADER_TYPE, PAYMENT_RESULT_TOPIC};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{Payments, new_payment};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

const HELD: &str = "balance.held.v1";
const REJECTED: &str = "balance.rejected.v1";
const CAPTURED: &str = "balance.captured.v1";
const RELEASED: &str = "balance.released.v1";
const UNKNOWN: &str = "payment.result.unknown.v1";

const AMOUNT: (&str, &str) = ("\"amount\":15000", "\"amount\":1");
const SERVICE: (&str, &str) = ("electricity", "gas");

/// A service on a database, topics and a group of its own.
struct Service {
    payments: Payments,
    prefix: String,
    producer: BaseProducer,
    shutdown: CancellationToken,
    ran: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    async fn new() -> Self {
        let payments = Payments::new().await;
        let prefix = format!("test-{}-", Uuid::new_v4());
        let brokers =
            std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        for topic in [BALANCE_TOPIC, PAYMENT_RESULT_TOPIC] {
            let name = format!("{prefix}{topic}");
            // One partition: what is produced in one go is one batch.
            let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        let flags = [
            "payments-svc".to_owned(),
            "--listen-addr=127.0.0.1:0".to_owned(),
            "--admin-addr=127.0.0.1:0".to_owned(),
            format!("--database-url={}", payments.harness.service_url().unwrap()),
            format!("--kafka-brokers={brokers}"),
            format!("--group-id={prefix}"),
            format!("--topic-prefix={prefix}"),
            "--drain-ms=0".to_owned(),
        ];
        let config_of_service = payments_svc::config::Config::parse_from(flags);
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let ran = tokio::spawn(payments_svc::run(config_of_service, public, admin, shutdown.clone()));
        Self { payments, prefix, producer: config.create().unwrap(), shutdown, ran }
    }

    fn send(&self, topic: &str, kind: &str, user: Uuid, body: &str) {
        let topic = format!("{}{topic}", self.prefix);
        let headers = OwnedHeaders::new().insert(Header { key: HEADER_TYPE, value: Some(kind) });
        let key = user.to_string();
        let record = BaseRecord::to(&topic).key(&key).payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    fn flush(&self) {
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }

    fn produce(&self, kind: &str, (user, payment): (Uuid, Uuid), body: &str) {
        let topic = if kind == UNKNOWN { PAYMENT_RESULT_TOPIC } else { BALANCE_TOPIC };
        self.send(topic, kind, user, &about(body, user, payment));
        self.flush();
    }

    async fn until(&self, what: &str, done: impl AsyncFn() -> bool) {
        let began = Instant::now();
        while !done().await {
            let parked = self.payments.reasons().await;
            assert!(began.elapsed() < WAIT_TIMEOUT, "{what}; parked: {parked:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn parked(&self, count: usize) {
        self.until(&format!("{count} differ"), async || {
            let reasons = self.payments.reasons().await;
            reasons.iter().filter(|reason| reason.starts_with("differs: ")).count() == count
        })
        .await;
        assert_eq!(self.payments.reasons().await.len(), count);
    }

    async fn reaches(&self, payment: (Uuid, Uuid), status: &str) {
        self.until(status, async || self.payments.row(payment).await.0 == status).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.ran.await.unwrap().unwrap();
        self.payments.finish().await;
    }
}

impl Payments {
    async fn reasons(&self) -> Vec<String> {
        let rows = self.pool.get().await.unwrap().query("select reason from parked", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// A payment of what the golden events are about.
    async fn golden(&self) -> (Uuid, Uuid) {
        let payment =
            crate::NewPayment { client_number: "081234567890".into(), ..new_payment(Uuid::now_v7(), "key") };
        self.accept(std::slice::from_ref(&payment)).await;
        (payment.user_id, payment.payment_id)
    }
}

pub fn golden(kind: &str) -> String {
    let path = format!("{}/../saga/golden/{kind}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

pub fn about(body: &str, user: Uuid, payment: Uuid) -> String {
    let body = body.replace("0198c0de-0000-7000-8000-000000000001", &user.to_string());
    body.replace("0198c0de-0000-7000-8000-000000000002", &payment.to_string())
}

fn altered(kind: &str, (from, to): (&str, &str)) -> String {
    let body = golden(kind);
    assert!(body.contains(from), "{kind} has no {from}");
    body.replace(from, to)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_says_of_another_amount_or_service_moves_no_payment() {
    let service = Service::new().await;
    let mut produced = 0;
    for (kind, change) in [(HELD, AMOUNT), (HELD, SERVICE), (REJECTED, AMOUNT), (REJECTED, SERVICE)] {
        let payment = service.payments.golden().await;
        service.produce(kind, payment, &altered(kind, change));
        produced += 1;
        service.parked(produced).await;
        assert_eq!(service.payments.row(payment).await.2, 1, "{kind} {change:?}");
    }
    let number = ("081234567890", "0812");
    for (kind, change) in [
        (CAPTURED, AMOUNT),
        (CAPTURED, SERVICE),
        (RELEASED, AMOUNT),
        (RELEASED, SERVICE),
        (UNKNOWN, AMOUNT),
        (UNKNOWN, SERVICE),
        (UNKNOWN, number),
    ] {
        let payment = service.payments.golden().await;
        service.produce(HELD, payment, &golden(HELD));
        service.reaches(payment, "authorized").await;
        service.produce(kind, payment, &altered(kind, change));
        produced += 1;
        service.parked(produced).await;
        assert_eq!(service.payments.row(payment).await.2, 2, "{kind} {change:?}");
        // What agrees moves it on; then what differs is no duplicate.
        service.produce(CAPTURED, payment, &golden(CAPTURED));
        service.reaches(payment, "completed").await;
        service.produce(CAPTURED, payment, &altered(CAPTURED, AMOUNT));
        produced += 1;
        service.parked(produced).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_itself_moves_no_payment() {
    let service = Service::new().await;
    let payment = service.payments.golden().await;
    let cases = [
        (HELD, golden(CAPTURED)),
        (HELD, golden(REJECTED)),
        (HELD, golden("balance.deposited.v1")),
        (REJECTED, golden(HELD)),
        (UNKNOWN, golden("payment.result.succeeded.v1")),
        // An entry that its database would refuse.
        (HELD, altered(HELD, ("\"phase\":1", "\"phase\":2"))),
        (REJECTED, altered(REJECTED, ("\"insufficient_funds\"", "null"))),
    ];
    for ((kind, body), count) in cases.iter().zip(1..) {
        service.produce(kind, payment, body);
        service.parked(count).await;
    }
    // On another topic than its own, and under another user's key.
    let (user, id) = payment;
    let body = about(&golden(HELD), user, id);
    service.send(PAYMENT_RESULT_TOPIC, HELD, user, &body);
    service.send(BALANCE_TOPIC, HELD, Uuid::now_v7(), &body);
    service.flush();
    service.parked(cases.len() + 2).await;
    assert_eq!(service.payments.row(payment).await.2, 1);
    service.stop().await;
}

/// One batch with a user's event and another user's about the same payment: the other's finds no payment, and holds
/// up nobody.
#[tokio::test]
async fn an_event_about_a_payment_of_another_user_is_not_applied_to_it() {
    let payments = Payments::new().await;
    let payment = payments.accepted().await;
    let stranger = (Uuid::now_v7(), payment.1);
    let held = |payment| crate::command(payment, payments_svc::saga::Event::Held);
    let refused = payments.apply(&[held(payment), held(stranger)]).await;
    let Err(saga::consumer::ApplyError::Missing(absent)) = refused else { panic!("{refused:?}") };
    assert_eq!(absent.iter().map(|absent| absent.index).collect::<Vec<_>>(), [1]);
    payments.apply(&[held(payment)]).await.unwrap();
    assert_eq!(payments.row(payment).await.0, "authorized");
    payments.finish().await;
}
