//! Tests the queue: the content of a message, and outages of the broker.

use std::collections::BTreeSet;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};

use crate::harness::{Harness, eventually, server, with_database};
use crate::kafka::{self, distinct};
use crate::proxy::Proxy;

/// Connects; `None` while the broker is away.
pub async fn attempt(url: &str) -> Option<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.ok()?;
    let channel = connection.create_channel().await.ok()?;
    Some((connection, channel))
}

async fn channel() -> (Connection, Channel) {
    attempt(&server("AMQP_URL")).await.expect("RabbitMQ")
}

async fn take(channel: &Channel, queue: &str) -> BasicGetMessage {
    eventually(&format!("a message in {queue}"), || async {
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("get")
    })
    .await
}

fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        other => panic!("{other:?}"),
    }
}

/// Accepts and authorizes a payment.
const AUTHORIZED: &str = "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id,
                                   amount, expires_at, traceparent)
             values ('0196f1d2-0000-7000-8000-000000000001', '0196f1d2-0000-7000-8000-0000000000aa', 'k', '', '+7 \"9\"',
                     'electricity', 15000, '2026-11-23 01:02:03+00', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
             update payments set status = 'authorized', event = 'authorized', version = 2, authorized_at = now()";

/// The contract of this product, with its own schema and routes file.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorized_payment_is_work_byte_for_byte() {
    let mut harness = Harness::bare("work").await;
    let admin = server("POSTGRES_ADMIN_URL");
    // The passwords of existing roles are in use.
    if harness
        .sql
        .query("select from pg_roles where rolname = 'coro_relay'", &[])
        .await
        .expect("roles")
        .is_empty()
    {
        sql::bootstrap(&admin, &sql::Passwords::from_fn(|role| format!("it-{role}"))).await.expect("roles");
    }
    let database = format!("{}_p", harness.name);
    sql::create_database(&admin, sql::Database::Payments, &database).await.expect("payments");
    harness.url = with_database(&admin, &database);
    harness.sql = crate::harness::connect(&harness.url).await;
    let routes = include_str!("../../relay.toml").replace("cdc_relay_payments", &harness.name);
    harness.routes(&routes);
    let (prefix, queue) = (format!("{}.", harness.name), harness.queue());
    let url = harness.url.clone();
    let environment = [
        ("TOPIC_PREFIX", prefix.as_str()),
        ("QUEUE", queue.as_str()),
        ("PAYMENTS_RELAY_URL", url.as_str()),
        ("BALANCE_RELAY_URL", "postgres://unused"),
        ("PROCESSOR_RELAY_URL", "postgres://unused"),
    ];
    let relay = harness.start_with(&["--source", "payments"], &environment);
    relay.streams().await;
    harness.sql.batch_execute(AUTHORIZED).await.expect("payment");
    let (_connection, channel) = channel().await;
    let message = take(&channel, &queue).await;
    assert_eq!(
        String::from_utf8_lossy(&message.data),
        concat!(
            r#"{"payload":{"user_id":"0196f1d2-0000-7000-8000-000000000001","client_number":"+7 \"9\"","#,
            r#""service_id":"electricity","amount":"15000","transaction_id":"0196f1d2-0000-7000-8000-0000000000aa"}}"#
        )
    );
    let properties = &message.properties;
    let id = "payments/payments/0196f1d2-0000-7000-8000-0000000000aa/2";
    assert_eq!(properties.message_id().as_ref().map(|id| id.as_str()), Some(id));
    assert_eq!(properties.kind().as_ref().map(|kind| kind.as_str()), Some("payment.authorized.v1"));
    assert_eq!(properties.content_type().as_ref().map(|kind| kind.as_str()), Some("application/json"));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!(properties.timestamp().is_some());
    let headers = properties.headers().as_ref().expect("headers").inner();
    assert_eq!(text(&headers["expires_at"]), "2026-11-23T01:02:03.000000Z");
    assert_eq!(text(&headers["traceparent"]), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let events = distinct(&format!("{prefix}PaymentTopic"), 2).await;
    assert_eq!(events[1].header("ce_id"), id);
    assert_eq!(events[1].header("ce_type"), "payment.authorized.v1");
    assert_eq!(events[1].json()["amount"], 15000);
    assert!(events[1].json().get("fingerprint").is_none(), "an unpublished column left the database");
    drop(relay);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("delete");
    crate::harness::connect(&admin)
        .await
        .batch_execute(&format!(
            "select pg_drop_replication_slot('{}'); drop database {database} with (force)",
            harness.name
        ))
        .await
        .ok();
}

/// All messages in the queue, by their amount, acknowledged.
async fn drain(channel: &Channel, queue: &str, count: usize) -> Vec<String> {
    let (mut known, mut order) = (BTreeSet::new(), Vec::new());
    while known.len() < count {
        let message = take(channel, queue).await;
        channel.basic_ack(message.delivery_tag, BasicAckOptions::default()).await.expect("ack");
        let id = message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).expect("id");
        if known.insert(id.clone()) {
            order.push(id);
        }
    }
    order
}

/// The ids of all messages in the queue, without repeats, in order. The queue is gone afterwards.
pub async fn drain_all(channel: &Channel, queue: &str) -> Vec<String> {
    let (mut known, mut order) = (BTreeSet::new(), Vec::new());
    let get = || channel.basic_get(queue.into(), BasicGetOptions { no_ack: true });
    while let Some(message) = get().await.expect("get") {
        let id = message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).expect("id");
        if known.insert(id.clone()) {
            order.push(id);
        }
    }
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("delete");
    order
}

pub async fn cuttable(harness: &mut Harness) -> Proxy {
    let uri = server("AMQP_URL");
    let (scheme, rest) = uri.split_once("://").expect("AMQP_URL");
    let (login, rest) = rest.rsplit_once('@').expect("a login in AMQP_URL");
    let (address, vhost) = rest.split_once('/').unwrap_or((rest, ""));
    let proxy = Proxy::to(address.to_owned()).await;
    harness.amqp_url = format!("{scheme}://{login}@{}/{vhost}", proxy.address);
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_away_neither_stops_kafka_nor_loses_work() {
    let mut harness = Harness::new("rabbit").await;
    let proxy = cuttable(&mut harness).await;
    let relay = harness.streaming().await;
    let (_connection, channel) = channel().await;
    harness.row("a", 0, 1, "work").await;
    harness.confirmed().await;
    proxy.cut();
    harness.row("a", 1, 1, "work").await;
    // Until the first of them was committed, the slot may still have followed what other databases of the server write.
    let (first, _) = harness.positions().await;
    for id in 2..=300 {
        harness.row("a", id, 1, "work").await;
    }
    // Kafka has them all, and the slot stays where it is: a transaction is done when every sink has acknowledged it.
    distinct(&harness.topic(), 301).await;
    assert!(harness.positions().await.1 <= Some(first));
    proxy.mend();
    let expected: Vec<String> = (0..=300).map(|id| format!("it/items/a/{id}/1")).collect();
    assert_eq!(drain(&channel, &harness.queue(), 301).await, expected);
    harness.confirmed().await;
    drop(relay);
    channel
        .queue_delete(harness.queue().as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stays_away_for_long_does_not_break_the_session() {
    let mut harness = Harness::new("pressure").await;
    let proxy = cuttable(&mut harness).await;
    // The in-flight limit holds a few messages only, and the server ends sessions that are silent for six seconds.
    harness.routes(&harness.default_routes().replace("[relay]", "[relay]\nin_flight_bytes = 20000"));
    let relay = harness.streaming().await;
    proxy.cut();
    let cut = harness.sql.query_one("select clock_timestamp()::text", &[]).await.expect("the time");
    let cut: String = cut.get(0);
    for id in 0..400 {
        harness.row("a", id, 1, "work").await;
    }
    eventually("an answer to the server after its time-out", || async {
        let answers = "select 1 from pg_stat_activity join pg_stat_replication using (pid)
                       where pg_stat_activity.datname = current_database()
                         and reply_time > $1::text::timestamptz + '7 seconds'";
        (!harness.sql.query(answers, &[&cut]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    assert!((kafka::read(&harness.topic()).len()) < 400, "nothing was held back");
    assert_eq!(relay.metric("cdc_relay_sessions_total"), 1.0, "the session did not survive");
    proxy.mend();
    let (_connection, channel) = channel().await;
    let expected: Vec<String> = (0..400).map(|id| format!("it/items/a/{id}/1")).collect();
    assert_eq!(drain(&channel, &harness.queue(), 400).await, expected);
    distinct(&harness.topic(), 400).await;
    harness.confirmed().await;
    assert_eq!(relay.metric("cdc_relay_sessions_total"), 1.0);
    drop(relay);
    channel
        .queue_delete(harness.queue().as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_gone_holds_its_work_until_it_is_back() {
    let mut harness = Harness::new("queue").await;
    let relay = harness.streaming().await;
    let (_connection, channel) = channel().await;
    harness.row("a", 0, 1, "work").await;
    harness.confirmed().await;
    channel
        .queue_delete(harness.queue().as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("delete");
    // RabbitMQ returns the message as unroutable: the relay connects again, and thereby declares the queue.
    harness.row("a", 1, 1, "work").await;
    harness.confirmed().await;
    let declare = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    channel
        .queue_declare(harness.queue().as_str().into(), declare, FieldTable::default())
        .await
        .expect("the queue");
    assert_eq!(drain(&channel, &harness.queue(), 1).await, ["it/items/a/1/1"]);
    drop(relay);
    channel
        .queue_delete(harness.queue().as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("delete");
}
