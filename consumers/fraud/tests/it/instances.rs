//! Two detectors in processes of their own, one of which is killed.

use std::time::{Duration, Instant};

use brokers::Brokers;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use saga::contract::{HEADER_TYPE, PAYMENT_TOPIC, Payment};
use saga::postgres::{self, Pool};
use sql::Database;
use sql::harness::Harness;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::{RULES, alerts, expected, payment};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const USERS: usize = 16;

fn start(harness: &Harness, prefix: &str) -> Child {
    let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run `cargo stack test`");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fraud"));
    command.args([
        "--admin-addr=127.0.0.1:0".to_owned(),
        format!("--database-url={}", harness.service_url().unwrap()),
        format!("--kafka-brokers={brokers}"),
        format!("--group-id={prefix}"),
        format!("--topic-prefix={prefix}"),
        format!("--window-s={}", RULES.window_s),
        format!("--payment-count-max={}", RULES.payment_count_max),
        format!("--payment-sum-max={}", RULES.payment_sum_max),
        format!("--payment-amount-max={}", RULES.payment_amount_max),
    ]);
    command.kill_on_drop(true).spawn().unwrap()
}

async fn producer(prefix: &str) -> BaseProducer {
    let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let name = format!("{prefix}{PAYMENT_TOPIC}");
    let topic = NewTopic::new(&name, 4, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    config.create().unwrap()
}

fn publish(producer: &BaseProducer, prefix: &str, payment: &Payment) {
    let (topic, key) = (format!("{prefix}{PAYMENT_TOPIC}"), payment.user_id.to_string());
    let body = serde_json::to_string(payment).unwrap();
    let kind = Header { key: HEADER_TYPE, value: Some("payment.initiated.v1") };
    let record = BaseRecord::to(&topic).key(&key).payload(&body).headers(OwnedHeaders::new().insert(kind));
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Waits until two members have divided the partitions of the topic among them.
async fn until_shared(group_id: &str) {
    let config = Brokers::from_env("KAFKA_ADMIN_CONFIG").unwrap().config();
    let client: BaseConsumer = config.create().unwrap();
    let began = Instant::now();
    loop {
        let groups =
            tokio::task::block_in_place(|| client.fetch_group_list(Some(group_id), WAIT_TIMEOUT)).unwrap();
        // The assignment of ranges gives each of them two of the four partitions.
        let group = groups.groups().iter().find(|group| group.name() == group_id);
        if group.is_some_and(|group| group.state() == "Stable" && group.members().len() == 2) {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "the group has not two members");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_seen(pool: &Pool, count: usize) {
    let began = Instant::now();
    loop {
        let query = "select count(*) from payments";
        let seen: i64 = pool.get().await.unwrap().query_one(query, &[]).await.unwrap().get(0);
        if usize::try_from(seen) == Ok(count) {
            return;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{seen} of {count} payments were seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_share_the_users_a_kill_of_one_loses_no_alert() {
    let harness = Harness::new(Database::Fraud).await.unwrap();
    let pool = postgres::pool(&harness.service_url().unwrap(), 2, "test").unwrap();
    let prefix = format!("test-{}-", Uuid::new_v4());
    let producer = producer(&prefix).await;
    let users: Vec<Uuid> = (0..USERS).map(|_| Uuid::now_v7()).collect();
    let of_round = |round: i64| users.iter().map(move |user| payment(*user, 30, round * 10));
    let mut payments: Vec<Payment> = (0..3).flat_map(of_round).collect();
    let (mut first, _second) = (start(&harness, &prefix), start(&harness, &prefix));
    until_shared(&prefix).await;
    payments.iter().for_each(|payment| publish(&producer, &prefix, payment));
    until_seen(&pool, payments.len()).await;
    first.kill().await.unwrap();
    // The window of each user was half full.
    let more: Vec<Payment> = (3..6).flat_map(of_round).collect();
    more.iter().for_each(|payment| publish(&producer, &prefix, payment));
    tokio::task::block_in_place(|| producer.flush(WAIT_TIMEOUT)).unwrap();
    payments.extend(more);
    until_seen(&pool, payments.len()).await;
    let found = alerts(&pool, &users).await;
    assert_eq!(found, expected(&payments));
    assert!(found.len() >= 2 * USERS, "{found:?}");
    let parked = "select count(*) from parked";
    let parked: i64 = pool.get().await.unwrap().query_one(parked, &[]).await.unwrap().get(0);
    assert_eq!(parked, 0);
    pool.close();
    harness.finish().await.unwrap();
}
