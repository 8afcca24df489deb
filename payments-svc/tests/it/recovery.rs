//! A database goes back to its backup under the service: it is closed, gets its payments back, and nothing is paid twice.
//!
//! The test is the relay: it produces the events of rows when it says so.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use brokers::Brokers;
use clap::Parser;
use payments_svc::saga::Event;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::CancellationToken;
use saga::contract::{
    BALANCE_TOPIC, HEADER_TYPE, OPERATOR_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC, SERVICE_TOPIC,
};
use saga::postgres::{self, Pool};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::restored::Restored;
use crate::{Payments, command, new_payment};

pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The published columns of a payment.
const PUBLISHED: &str = "(to_jsonb(p) - 'idempotency_key' - 'fingerprint')::text";

/// Topics of a test's own.
struct Topics {
    prefix: String,
    producer: BaseProducer,
}

impl Topics {
    async fn new() -> Self {
        let prefix = format!("test-{}-", Uuid::new_v4());
        let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
        let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
        let consumed = [BALANCE_TOPIC, PAYMENT_RESULT_TOPIC];
        let parked = consumed.map(|topic| format!("{topic}.parked"));
        let names = [PAYMENT_TOPIC, OPERATOR_TOPIC, SERVICE_TOPIC].into_iter().chain(consumed);
        for name in names.map(ToOwned::to_owned).chain(parked) {
            let name = format!("{prefix}{name}");
            let new = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        }
        Self { prefix, producer: config.create().unwrap() }
    }

    fn produce(&self, topic: &str, event_type: &str, user: &str, body: &str) {
        let topic = format!("{}{topic}", self.prefix);
        let headers = OwnedHeaders::new().insert(Header { key: HEADER_TYPE, value: Some(event_type) });
        let record = BaseRecord::to(&topic).key(user).payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
        tokio::task::block_in_place(|| self.producer.flush(WAIT_TIMEOUT)).unwrap();
    }

    /// Emits a row, perhaps one that is not in the database.
    fn emit_row(&self, row: &Value) {
        let event_type = format!("payment.{}.v1", row["event"].as_str().unwrap());
        self.produce(PAYMENT_TOPIC, &event_type, row["user_id"].as_str().unwrap(), &row.to_string());
    }

    /// Emits the present version of a payment.
    async fn emit(&self, pool: &Pool, payment_id: Uuid) {
        let row = published(pool, payment_id).await.expect("the payment is there");
        self.emit_row(&serde_json::from_str(&row).unwrap());
    }
}

async fn published(pool: &Pool, payment_id: Uuid) -> Option<String> {
    let query = format!("select {PUBLISHED} from payments p where payment_id = $1");
    let row = pool.get().await.unwrap().query_opt(&query, &[&payment_id]).await.unwrap();
    row.map(|row| row.get(0))
}

/// Every row of the database, byte by byte.
async fn all_rows(pool: &Pool) -> Vec<String> {
    let query = "select p::text from payments p union all select i::text from incarnations i order by 1";
    let rows = pool.get().await.unwrap().query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// A running service.
struct Service {
    public: String,
    admin: String,
    stop: CancellationToken,
    ran: JoinHandle<anyhow::Result<()>>,
}

/// An answer to a request of a client.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    is_replayed: bool,
    body: String,
}

impl Service {
    async fn new(database_url: &str, topics: &Topics) -> Self {
        let config = payments_svc::config::Config::parse_from([
            "payments-svc".to_owned(),
            "--listen-addr=127.0.0.1:0".to_owned(),
            "--admin-addr=127.0.0.1:0".to_owned(),
            format!("--database-url={database_url}"),
            format!("--kafka-brokers={}", std::env::var("KAFKA_BROKERS").unwrap()),
            format!("--group-id={}", topics.prefix),
            format!("--topic-prefix={}", topics.prefix),
            "--drain-ms=0".to_owned(),
        ]);
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses =
            [&public, &admin].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let [public_url, admin_url] = addresses;
        let stop = CancellationToken::new();
        let ran = tokio::spawn(payments_svc::run(config, public, admin, stop.clone()));
        Self { public: public_url, admin: admin_url, stop, ran }
    }

    async fn pay(&self, user: Uuid, key: &str, amount: i64) -> Answer {
        let body = json!({
            "client_number": "0812", "service_id": "electricity", "amount": amount, "idempotency_key": key
        });
        let client = saga::http_client::builder().build().unwrap();
        let request = client.post(format!("{}/payments", self.public));
        let request = request.header("x-user-id", user.to_string()).body(body.to_string());
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        let (status, is_replayed) = (answer.status(), answer.headers().contains_key("idempotent-replayed"));
        Answer { status: status.as_u16(), is_replayed, body: answer.text().await.unwrap() }
    }

    async fn get(&self, user: Uuid, path: &str) -> (u16, String) {
        let client = saga::http_client::builder().build().unwrap();
        let request = client.get(format!("{}{path}", self.public)).header("x-user-id", user.to_string());
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn ready(&self) -> (u16, String) {
        let client = saga::http_client::builder().build().unwrap();
        let answer = client.get(format!("{}/ready", self.admin)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn becomes_ready(&self) {
        let began = Instant::now();
        loop {
            let answer = self.ready().await;
            if answer.0 == 200 {
                return;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.ran.await.unwrap().unwrap();
    }
}

/// The id of the payment of an answer.
fn id(answer: &Answer) -> Uuid {
    assert_eq!(answer.status, 201, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    body["payment_id"].as_str().unwrap().parse().unwrap()
}

/// Runs `payments-svc recover` as an operator does.
async fn recover(database_url: &str, topics: &Topics, flags: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_payments-svc"));
    command.arg("recover").args(["--operator=ada", "--reason=the disk was lost"]).args(flags);
    command.env_clear().env("DATABASE_URL", database_url);
    command.env("KAFKA_BROKERS", std::env::var("KAFKA_BROKERS").unwrap());
    command.env("TOPIC_PREFIX", &topics.prefix);
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_closed_until_it_has_its_payments_again_and_nothing_is_paid_twice() {
    let (payments, topics) = (Payments::new().await, Topics::new().await);
    let before = Service::new(&payments.harness.service_url().unwrap(), &topics).await;
    before.becomes_ready().await;
    let (user, pool) = (Uuid::now_v7(), &payments.pool);
    let kept = id(&before.pay(user, "kept", 1).await);
    let moved = id(&before.pay(user, "moved", 2).await);
    for payment in [kept, moved] {
        topics.emit(pool, payment).await;
    }
    let backup = Restored::dump(&payments.harness);

    // What the backup lacks: a transition, a payment with its end, and a transition that was not emitted.
    let apply = async |payment, event, amount| {
        let mut command = command((user, payment), event);
        command.terms.amount = amount;
        payments.apply(&[command]).await.unwrap();
    };
    apply(moved, Event::Held, 2).await;
    topics.emit(pool, moved).await;
    let lost_answer = before.pay(user, "lost", 3).await;
    let lost = id(&lost_answer);
    topics.emit(pool, lost).await;
    for event in [Event::Held, Event::Captured] {
        apply(lost, event, 3).await;
        topics.emit(pool, lost).await;
    }
    let held = id(&before.pay(user, "held", 4).await);
    topics.emit(pool, held).await;
    before.stop().await;
    let entry = json!({
        "user_id": user, "payment_id": held, "phase": 1, "kind": "hold", "amount": 4, "service_id": "electricity",
        "reason": null, "traceparent": null, "created_at": "2026-01-02T03:04:05Z"
    });
    topics.produce(BALANCE_TOPIC, "balance.held.v1", &user.to_string(), &entry.to_string());

    let restored = backup.restore().await;
    let after = Service::new(&restored.url, &topics).await;
    let refused = after.pay(user, "lost", 3).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let (status, why) = after.ready().await;
    assert!(status == 503 && why.contains("payments-svc recover"), "{status} {why}");
    let old = all_rows(&restored.pool).await;
    assert_eq!(old.len(), 3, "two payments and the first incarnation: {old:?}");

    let (done, text) = recover(&restored.url, &topics, &["--dry-run"]).await;
    assert!(done && text.contains(&format!("lacking: payment {lost}")), "{text}");
    assert!(
        text.contains(&format!("outdated: payment {moved}")) && !text.contains(&kept.to_string()),
        "{text}"
    );
    assert_eq!(all_rows(&restored.pool).await, old, "a dry run changes nothing");
    assert_eq!(after.ready().await.0, 503, "and opens nothing");

    let (done, text) = recover(&restored.url, &topics, &[]).await;
    assert!(done && text.contains("the database is open"), "{text}");
    for payment in [kept, moved, lost] {
        assert_eq!(published(&restored.pool, payment).await, published(pool, payment).await);
    }
    let derived: Value = serde_json::from_str(&published(&restored.pool, held).await.unwrap()).unwrap();
    assert_eq!((&derived["event"], &derived["version"]), (&json!("authorized"), &json!(2)));

    after.becomes_ready().await;
    repeated_requests_get_their_payments(&after, user, lost_answer).await;

    let present = all_rows(&restored.pool).await;
    let (done, text) = recover(&restored.url, &topics, &[]).await;
    assert!(done && text.contains("the database was open before"), "{text}");
    assert_eq!(all_rows(&restored.pool).await, present, "a second recovery changes nothing");
    after.stop().await;
    restored.finish().await;
    payments.finish().await;
}

async fn repeated_requests_get_their_payments(service: &Service, user: Uuid, lost_answer: Answer) {
    let lost = id(&lost_answer);
    let again = service.pay(user, "lost", 3).await;
    assert_eq!(again, Answer { is_replayed: true, ..lost_answer }, "the same payment, byte by byte");
    let reused = service.pay(user, "lost", 5).await;
    assert!(reused.status == 422 && reused.body.contains(&lost.to_string()), "{reused:?}");
    let (status, found) = service.get(user, "/payments?idempotency_key=lost").await;
    assert!(status == 200 && found.contains(&lost.to_string()), "{status} {found}");
    assert!(service.pay(user, "kept", 1).await.is_replayed, "by its own key");
    id(&service.pay(user, "new", 6).await);
    let stranger = Uuid::now_v7();
    assert_ne!(id(&service.pay(stranger, "lost", 3).await), lost, "another user's key");
}

/// Whether payments-svc gets a connection, or is refused one because the database is closed.
async fn is_open(guarded: &Pool) -> bool {
    let began = Instant::now();
    loop {
        match postgres::reachable(guarded).await {
            Ok(()) => return true,
            Err(why) if why.contains("payments-svc recover") => return false,
            // A busy machine may take longer for a connection than a service waits.
            Err(why) => assert!(began.elapsed() < WAIT_TIMEOUT, "{why}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_a_row_changes_nothing_and_keeps_the_database_closed() {
    let (payments, topics) = (Payments::new().await, Topics::new().await);
    let url = payments.harness.service_url().unwrap();
    let (_, payment) = payments.accepted().await;
    let row: Value = serde_json::from_str(&published(&payments.pool, payment).await.unwrap()).unwrap();
    let mut other_terms = row.clone();
    other_terms["amount"] = json!(1);
    let mut impossible = row.clone();
    impossible["version"] = json!(2);
    impossible["event"] = json!("failed");
    impossible["status"] = json!("failed");
    impossible["failed_at"] = row["initiated_at"].clone();
    for event in [&row, &other_terms, &impossible] {
        topics.emit_row(event);
    }
    topics.produce(PAYMENT_TOPIC, "payment.initiated.v1", "nobody", "{}");
    let disabled = json!({
        "service_id": "electricity", "name": "Electricity", "enabled": false, "event": "changed", "version": 2
    });
    topics.produce(SERVICE_TOPIC, "service.changed.v1", "electricity", &disabled.to_string());

    // Closed by hand, under a pool with a connection.
    let guarded = postgres::guarded_pool(&url, 2, "payments-svc").unwrap();
    assert!(is_open(&guarded).await);
    let owner = payments.harness.owner().await.unwrap();
    let close = "update incarnations set incarnation = incarnation || ' closed at ' || now()";
    owner.batch_execute(close).await.unwrap();
    let began = Instant::now();
    while is_open(&guarded).await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "the pool keeps its connection");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let old = all_rows(&payments.pool).await;

    let (done, text) = recover(&url, &topics, &[]).await;
    assert!(!done && text.contains("4 findings"), "{text}");
    assert!(text.contains("its event differs from the row in amount"), "{text}");
    assert!(text.contains("no transitions lead from version 1 to \"failed\" in version 2"), "{text}");
    assert!(text.contains("is no event of a payment"), "{text}");
    assert!(text.contains("service electricity has version 1"), "{text}");
    assert_eq!(all_rows(&payments.pool).await, old);
    assert!(!is_open(&guarded).await);

    let (done, text) = recover(&url, &topics, &["--open-despite-findings"]).await;
    assert!(done && text.contains("the database is open"), "{text}");
    assert!(is_open(&guarded).await);
    guarded.close();
    drop(owner);
    payments.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_is_later_than_the_backup_makes_nothing() {
    let (payments, topics) = (Payments::new().await, Topics::new().await);
    let url = payments.harness.service_url().unwrap();
    let mut rows = Vec::new();
    for key in ["first", "second"] {
        let payment = new_payment(Uuid::now_v7(), key);
        payments.accept(std::slice::from_ref(&payment)).await;
        let row = published(&payments.pool, payment.payment_id).await.unwrap();
        rows.push(serde_json::from_str::<Value>(&row).unwrap());
    }
    topics.emit_row(&rows[0]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let between = jiff::Timestamp::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    topics.emit_row(&rows[1]);
    let owner = payments.harness.owner().await.unwrap();
    owner.batch_execute("delete from payments").await.unwrap();

    let since = format!("--since={between}");
    let (done, text) = recover(&url, &topics, &[&since]).await;
    assert!(!done && text.contains("earlier"), "{text}");
    assert_eq!(payments.count("select count(*) from payments").await, 0, "{text}");
    let (done, text) = recover(&url, &topics, &[]).await;
    assert!(done && text.contains("2 lacking"), "{text}");
    let (done, text) = recover(&url, &topics, &[&since]).await;
    assert!(done && text.contains("0 lacking, 0 outdated, 1 events there"), "{text}");
    drop(owner);
    payments.finish().await;
}
