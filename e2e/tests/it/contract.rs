//! The wire contract, read back from the brokers: every header, every field, and the work message's bytes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use coroctl::client::order;
use coroctl::topics::{self, Event, SAGA_TOPICS};
use jiff::Timestamp;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use saga::contract::{
    BALANCE_TOPIC, ChargeResult, EventType, LedgerEntry, PAYMENT_QUEUE, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC,
    Payment, SERVICE_TOPIC, Service,
};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Pays with a trace context of its own.
async fn pay_traced(harness: &Harness, user: Uuid, client_number: &str, amount: i64) -> Uuid {
    let body = order(client_number, &harness.stack.demo_service_id, amount, &Uuid::new_v4().to_string());
    let request = reqwest::Client::new().post(format!("{}/payments", harness.stack.payments_url)).json(&body);
    let request = request.header("x-user-id", user.to_string()).header("traceparent", TRACEPARENT);
    let payment: Value = request.send().await.unwrap().json().await.unwrap();
    payment["payment_id"].as_str().unwrap().parse().unwrap()
}

/// The payment's events, once the last of them is there.
async fn events(harness: &Harness, payment_id: Uuid, since: Timestamp, last: &str) -> Vec<Event> {
    let began = Instant::now();
    loop {
        let brokers = harness.stack.kafka_brokers.clone();
        let read = move || topics::read(&brokers, &SAGA_TOPICS, since).unwrap();
        let mut events = tokio::task::spawn_blocking(read).await.unwrap();
        events.retain(|event| event.subject() == payment_id.to_string());
        if events.iter().any(|event| event.event_type() == last) {
            return events;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{last} was not emitted; emitted: {events:#?}");
    }
}

fn check(event: &Event, user: Uuid, payment_id: Uuid) {
    let event_type = EventType::parse(event.event_type()).unwrap();
    let name = event_type.as_str();
    assert_eq!(event.topic, event_type.topic(), "{name}");
    assert_eq!(event.key, user.to_string(), "{name}: ordered per user");
    let headers: BTreeSet<&str> = event.headers.keys().map(String::as_str).collect();
    let expected = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_subject",
        "content-type",
        "traceparent",
        "pg_chain",
        "pg_position",
    ];
    assert_eq!(headers, BTreeSet::from(expected), "{name}");
    assert_eq!(event.header("ce_specversion"), "1.0");
    assert_eq!(event.header("content-type"), "application/json");
    assert_eq!(event.header("traceparent"), TRACEPARENT, "{name}");
    let body = event.json().unwrap();
    let (id, source) = match event.topic.as_str() {
        PAYMENT_TOPIC => (format!("payments/payments/{payment_id}/{}", body["version"]), "/coro/payments"),
        BALANCE_TOPIC => (format!("balance/ledger/{payment_id}/{}", body["phase"]), "/coro/balance"),
        _ => (format!("processor/charges/{payment_id}/{}", body["version"]), "/coro/processor"),
    };
    assert_eq!((event.header("ce_id"), event.header("ce_source")), (id.as_str(), source));
    let time = event.header("ce_time");
    assert!(time.ends_with('Z') && time.parse::<Timestamp>().is_ok(), "{time}");
    let chain =
        event.header("pg_chain").rsplit_once('/').map(|(of, began)| (of, began.parse::<Timestamp>().is_ok()));
    assert_eq!(chain, source.strip_prefix("/coro/").map(|of| (of, true)), "{name}");
    position(event.header("pg_position"));
    shape(&event.topic, &event.value);
    let golden = format!("{}/../saga/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(fields(&body), fields(&golden), "{name}");
}

/// Commit LSN, ordinal, previous commit LSN.
fn position(text: &str) {
    let parts: Vec<&str> = text.split(';').collect();
    let lsn = |text: &str| {
        let (high, low) = text.split_once('/').unwrap();
        u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
    };
    assert_eq!(parts.len(), 3, "{text}");
    assert!(parts[1].parse::<u32>().is_ok(), "{text}");
    assert!(lsn(parts[2]) < lsn(parts[0]), "{text}");
}

fn shape(topic: &str, value: &[u8]) {
    match topic {
        PAYMENT_TOPIC => drop(serde_json::from_slice::<Payment>(value).unwrap()),
        BALANCE_TOPIC => drop(serde_json::from_slice::<LedgerEntry>(value).unwrap()),
        PAYMENT_RESULT_TOPIC => drop(serde_json::from_slice::<ChargeResult>(value).unwrap()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_event_of_a_payment_is_emitted_with_its_headers_and_fields() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(100_000).await.unwrap();
    let since = Timestamp::now();
    let ways = [
        (
            "0812",
            10,
            "payment.completed.v1",
            ["initiated", "authorized", "completed"].as_slice(),
            ["held", "captured"].as_slice(),
        ),
        (
            "0812-decline",
            10,
            "payment.failed.v1",
            &["initiated", "authorized", "failed"],
            &["held", "released"],
        ),
        ("0812", 1_000_000, "payment.rejected.v1", &["initiated", "rejected"], &["rejected"]),
    ];
    for (client_number, amount, last, payment_events, balance_events) in ways {
        let payment_id = pay_traced(&harness, user, client_number, amount).await;
        let events = events(&harness, payment_id, since, last).await;
        for event in &events {
            check(event, user, payment_id);
        }
        let on = |topic: &str| -> Vec<String> {
            let types = events.iter().filter(|event| event.topic == topic).map(Event::event_type);
            types.map(|name| name.split('.').rev().nth(1).unwrap().to_owned()).collect()
        };
        assert_eq!(on(PAYMENT_TOPIC), payment_events, "in commit order");
        assert_eq!(on(BALANCE_TOPIC), balance_events, "in commit order");
    }
}

/// The events of a service, once there are so many.
async fn service_events(harness: &Harness, service_id: &str, count: usize) -> Vec<Event> {
    let began = Instant::now();
    loop {
        let brokers = harness.stack.kafka_brokers.clone();
        let read = move || topics::read(&brokers, &[SERVICE_TOPIC], Timestamp::UNIX_EPOCH).unwrap();
        let mut events = tokio::task::spawn_blocking(read).await.unwrap();
        events.retain(|event| event.key == service_id);
        if events.len() >= count {
            return events;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{service_id}: {events:#?}");
    }
}

#[tokio::test]
async fn a_service_that_is_changed_by_hand_is_emitted_with_a_version_of_its_own() {
    let harness = Harness::shared().await;
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let operator = coroctl::databases::connect(&format!("{server}/payments")).await.unwrap();
    let id = format!("heat-{}", Uuid::new_v4().simple());
    let add = "insert into services (service_id, name, enabled) values ($1, 'Heat', false)";
    operator.execute(add, &[&id]).await.unwrap();
    // Nobody has to think of the version.
    let rename =
        "update services set name = 'District heat', version = 1, event = 'added' where service_id = $1";
    operator.execute(rename, &[&id]).await.unwrap();
    let other_id = "update services set service_id = 'other' where service_id = $1";
    assert!(operator.execute(other_id, &[&id]).await.is_err(), "payments name it");

    let events = service_events(&harness, &id, 2).await;
    let found: Vec<(&str, &str, Service)> = events
        .iter()
        .map(|event| {
            (event.event_type(), event.header("ce_id"), serde_json::from_slice(&event.value).unwrap())
        })
        .collect();
    let service = |name: &str, event: &str, version| Service {
        service_id: id.clone(),
        name: name.to_owned(),
        enabled: false,
        event: event.to_owned(),
        version,
    };
    let ids = [1, 2].map(|version| format!("payments/services/{id}/{version}"));
    let expected = [
        ("service.added.v1", ids[0].as_str(), service("Heat", "added", 1)),
        ("service.changed.v1", ids[1].as_str(), service("District heat", "changed", 2)),
    ];
    assert_eq!(found, expected);
    for event in &events {
        assert_eq!((event.subject(), event.header("ce_source")), (id.as_str(), "/coro/payments"));
        // Compaction would remove links of the chain.
        assert_eq!(event.header("pg_position"), "");
    }
}

#[tokio::test]
async fn the_services_of_before_the_relay_are_on_their_topic() {
    let harness = Harness::shared().await;
    let events = service_events(&harness, &harness.stack.demo_service_id, 1).await;
    assert_eq!(
        events[0].event_type(),
        "service.added.v1",
        "`migrate` adds it before the relay makes its slot"
    );
}

#[tokio::test]
async fn the_work_message_is_the_contract_byte_for_byte() {
    let harness = Harness::alone().await;
    let user = harness.client.user_with(100_000).await.unwrap();
    harness.cargo_stack("stop", "processor-svc").await;
    let payment_id = pay_traced(&harness, user, "081234567890", 15_000).await;
    let message = {
        let connection =
            lapin::Connection::connect(&harness.stack.amqp_url, lapin::ConnectionProperties::default())
                .await
                .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let began = Instant::now();
        let message = loop {
            let got =
                channel.basic_get(PAYMENT_QUEUE.into(), BasicGetOptions { no_ack: false }).await.unwrap();
            if let Some(message) = got {
                break message;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "no work message");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        // Not acknowledged: closing gives it back to the queue.
        connection.close(200, "done".into()).await.unwrap();
        message
    };
    harness.cargo_stack("start", "processor-svc").await;

    let expected = format!(
        r#"{{"payload":{{"user_id":"{user}","client_number":"081234567890","service_id":"{}","amount":"15000","transaction_id":"{payment_id}"}}}}"#,
        harness.stack.demo_service_id
    );
    assert_eq!(String::from_utf8_lossy(&message.data), expected);
    let properties = &message.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    assert_eq!(text(properties.message_id()), Some(format!("payments/payments/{payment_id}/2")));
    assert_eq!(text(properties.kind()), Some("payment.authorized.v1".into()));
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
    assert!(properties.timestamp().is_some());
    let header =
        |name: &str| match properties.headers().as_ref().and_then(|table| table.inner().get(name).cloned()) {
            Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            other => panic!("header {name}: {other:?}"),
        };
    assert_eq!(header("traceparent"), TRACEPARENT);
    assert!(header("expires_at").parse::<Timestamp>().is_ok());
    let payment = harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
    assert_eq!(payment["status"], "completed", "the message given back is done after all");
}
