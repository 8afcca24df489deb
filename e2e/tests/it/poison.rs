//! Messages that cannot be applied, on every topic and on the queue: each subscriber they concern parks them,
//! publishes and counts that, and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use coroctl::stack::Stack;
use coroctl::topics::{self, Event};
use jiff::Timestamp;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use saga::contract::{BALANCE_TOPIC, HEADER_TYPE, PAYMENT_QUEUE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{EXPLAINED, Harness, WAIT_TIMEOUT, get, producer};

/// Database and id of something parked.
type Parked = BTreeSet<(&'static str, String)>;

struct Poison {
    topic: &'static str,
    /// `ce_type`; empty: the header is missing.
    kind: &'static str,
    body: String,
    /// The databases of those who must set it aside; to everybody else it means nothing.
    parked_in: &'static [&'static str],
}

#[expect(clippy::needless_pass_by_value, reason = "an event or a literal, as it comes")]
fn poison(
    topic: &'static str,
    kind: &'static str,
    body: impl ToString,
    parked_in: &'static [&'static str],
) -> Poison {
    Poison { topic, kind, body: body.to_string(), parked_in }
}

/// Poison for the subscribers of each topic: no type, an unknown one, a body that cannot be parsed, and events that are
/// impossible after one payment `completed` and one was `rejected`. `published` has their events.
fn poisons(published: &[Event], rejected: Uuid) -> Vec<Poison> {
    let event =
        |kind: &str| published.iter().find(|event| event.event_type() == kind).unwrap().json().unwrap();
    let with = |mut event: Value, field: &str, value: Value| {
        event[field] = value;
        event
    };
    let initiated = with(event("payment.initiated.v1"), "payment_id", Uuid::now_v7().to_string().into());
    let other_amount = with(event("payment.authorized.v1"), "amount", 401.into());
    let unknown = with(event("payment.result.succeeded.v1"), "payment_id", rejected.to_string().into());
    let on_payments: &[&str] = &["balance", "processor"];
    let on_results: &[&str] = &["balance", "payments"];
    vec![
        poison(PAYMENT_TOPIC, "", "{}", on_payments),
        poison(PAYMENT_TOPIC, "payment.exploded.v1", "{}", on_payments),
        // Text that Postgres cannot store as it is.
        poison(PAYMENT_TOPIC, "payment.\0.v1", "\0", on_payments),
        poison(PAYMENT_TOPIC, "payment.initiated.v1", "not json", &["balance"]),
        poison(PAYMENT_TOPIC, "payment.cancel_requested.v1", "\0", &["processor"]),
        // A hold of nothing, which a constraint refuses; another charge than the one that was made.
        poison(PAYMENT_TOPIC, "payment.initiated.v1", with(initiated, "amount", 0.into()), &["balance"]),
        poison(PAYMENT_TOPIC, "payment.cancel_requested.v1", other_amount, &["processor"]),
        poison(BALANCE_TOPIC, "", "{}", &["payments"]),
        poison(BALANCE_TOPIC, "balance.exploded.v1", "{}", &["payments"]),
        poison(BALANCE_TOPIC, "balance.held.v1", "not json", &["payments"]),
        poison(BALANCE_TOPIC, "balance.rejected.v1", event("balance.captured.v1"), &["payments"]),
        poison(PAYMENT_RESULT_TOPIC, "", "{}", on_results),
        poison(PAYMENT_RESULT_TOPIC, "payment.result.exploded.v1", "{}", on_results),
        poison(PAYMENT_RESULT_TOPIC, "payment.result.succeeded.v1", "not json", &["balance"]),
        poison(PAYMENT_RESULT_TOPIC, "payment.result.unknown.v1", "[]", &["payments"]),
        poison(
            PAYMENT_RESULT_TOPIC,
            "payment.result.declined.v1",
            event("payment.result.succeeded.v1"),
            &["balance"],
        ),
        poison(PAYMENT_RESULT_TOPIC, "payment.result.unknown.v1", unknown, &["payments"]),
    ]
}

/// Produces it under this key; returns where it will be parked.
async fn produce(producer: &FutureProducer, key: &str, poison: &Poison) -> Parked {
    let headers = OwnedHeaders::new().insert(Header { key: EXPLAINED.0, value: Some(EXPLAINED.1) });
    let headers = match poison.kind {
        "" => headers,
        kind => headers.insert(Header { key: HEADER_TYPE, value: Some(kind) }),
    };
    let record = FutureRecord::to(poison.topic).key(key).payload(&poison.body).headers(headers);
    let at = producer.send(record, WAIT_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
    let parked_id = format!("{}/{}/{}", poison.topic, at.partition, at.offset);
    poison.parked_in.iter().map(|database| (*database, parked_id.clone())).collect()
}

/// Work that is none: unreadable, of another type, and another charge than the one made for this payment.
async fn misplace(harness: &Harness, user: Uuid, completed: Uuid) -> Parked {
    let connection =
        Connection::connect(&harness.stack.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let service = &harness.stack.demo_service_id;
    let work = format!(
        r#"{{"payload":{{"user_id":"{user}","client_number":"0812","service_id":"{service}","amount":"401","transaction_id":"{completed}"}}}}"#
    );
    let mut expected = Parked::new();
    for (kind, body) in [
        ("payment.authorized.v1", "not json"),
        ("payment.authorized.v1", "{}"),
        ("payment.exploded.v1", work.as_str()),
        ("payment.authorized.v1", work.as_str()),
    ] {
        let id = format!("poison-{}", Uuid::new_v4());
        let mut headers = FieldTable::default();
        headers.insert(EXPLAINED.0.into(), AMQPValue::LongString(EXPLAINED.1.into()));
        let properties = BasicProperties::default().with_message_id(id.as_str().into());
        let properties = properties.with_type(kind.into()).with_headers(headers);
        let options = BasicPublishOptions::default();
        let published =
            channel.basic_publish("".into(), PAYMENT_QUEUE.into(), options, body.as_bytes(), properties);
        assert!(published.await.unwrap().await.unwrap().is_ack());
        expected.insert(("processor", format!("{PAYMENT_QUEUE}/{id}")));
    }
    connection.close(200, "done".into()).await.unwrap();
    expected
}

/// How many messages each service says it has parked, all instances of it together, by the name of its database.
async fn counted(stack: &Stack) -> BTreeMap<&'static str, f64> {
    let mut counted = BTreeMap::new();
    for (database, admin_url) in [
        ("payments", &stack.payments_admin_url),
        ("payments", &stack.payments_2_admin_url),
        ("balance", &stack.balance_admin_url),
        ("processor", &stack.processor_admin_url),
    ] {
        let text = get(format!("{admin_url}/metrics")).await.unwrap().text().await.unwrap();
        let parked =
            ["consumer_records_total{outcome=\"parked\"} ", "processor_jobs_total{result=\"parked\"} "];
        let lines = text.lines().filter_map(|line| parked.iter().find_map(|name| line.strip_prefix(name)));
        *counted.entry(database).or_default() +=
            lines.map(|number| number.parse::<f64>().unwrap()).sum::<f64>();
    }
    counted
}

/// The records of parked messages that were published since then.
async fn parked_records(harness: &Harness, since: Timestamp) -> Parked {
    let parked = [PAYMENT_TOPIC, BALANCE_TOPIC, PAYMENT_RESULT_TOPIC, PAYMENT_QUEUE];
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || {
        let names = parked.map(|source| format!("{source}.parked"));
        topics::read(&brokers, &names.each_ref().map(String::as_str), since).unwrap()
    };
    let events = tokio::task::spawn_blocking(read).await.unwrap();
    let mut found = Parked::new();
    for event in events {
        assert_eq!(event.event_type(), "message.parked.v1");
        let database = match event.header("ce_source") {
            "/coro/payments" => "payments",
            "/coro/balance" => "balance",
            "/coro/processor" => "processor",
            source => panic!("{source}"),
        };
        let source = event.topic.strip_suffix(".parked").unwrap();
        assert!(event.subject().starts_with(&format!("{source}/")), "{} on {}", event.subject(), event.topic);
        found.insert((database, event.subject().to_owned()));
    }
    found
}

#[tokio::test]
async fn a_message_that_cannot_be_applied_is_parked_published_and_counted_and_the_rest_goes_on() {
    // Others park messages too, and each service counts all of them.
    let harness = Harness::alone().await;
    let since = Timestamp::now();
    let user = harness.client.user_with(10_000).await.unwrap();
    let id_of = |payment: Value| payment["payment_id"].as_str().unwrap().parse::<Uuid>().unwrap();
    let completed = id_of(harness.settle(user, "0812", 400).await);
    let rejected = id_of(harness.settle(user, "0812", 1_000_000).await);
    let brokers = harness.stack.kafka_brokers.clone();
    let read = move || topics::read(&brokers, &topics::SAGA_TOPICS, since).unwrap();
    let mut published = tokio::task::spawn_blocking(read).await.unwrap();
    published.retain(|event| event.subject() == completed.to_string());
    let before = counted(&harness.stack).await;

    // Under the user's key: on the partitions of the user's payments.
    let producer = producer();
    let mut expected = misplace(&harness, user, completed).await;
    for poison in poisons(&published, rejected) {
        expected.extend(produce(&producer, &user.to_string(), &poison).await);
    }
    let next = harness.settle(user, "0812", 400).await;
    assert_eq!(next["status"], "completed", "payments behind it on the same partitions go on");

    let ids: BTreeSet<&String> = expected.iter().map(|(_, parked_id)| parked_id).collect();
    let ours = |found: Parked| -> Parked { found.into_iter().filter(|(_, id)| ids.contains(id)).collect() };
    let of =
        |database: &str| expected.iter().filter(|(in_database, _)| *in_database == database).count() as f64;
    let count: BTreeMap<_, _> = before.into_iter().map(|(name, count)| (name, count + of(name))).collect();
    let began = Instant::now();
    loop {
        let parked = ours(harness.explained().await);
        let published = ours(parked_records(&harness, since).await);
        let counted = counted(&harness.stack).await;
        if parked == expected && published == expected && counted == count {
            break;
        }
        let missing: Vec<_> = expected.difference(&parked).collect();
        let missing_records: Vec<_> = expected.difference(&published).collect();
        assert!(
            began.elapsed() < WAIT_TIMEOUT,
            "not parked: {missing:#?}, not published: {missing_records:#?}, counted {counted:?} of {count:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(harness.client.balance(user).await.unwrap(), (9_200, 0), "it moved no money");
}
