//! The documents for subscribers say what the code does. Nothing here needs a stack.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use coroctl::topics::Event;
use saga::contract::{BALANCE_TOPIC, EventType, OPERATOR_TOPIC, PAYMENT_TOPIC, SERVICE_TOPIC};
use serde_json::{Value, json};

use crate::asyncapi::{AsyncApi, Message, docs, event_schemas, text};

const PARKED: &str = "message.parked.v1";
/// Acts of operators. No service consumes them, so the code of the saga does not know them.
const OPERATORS: [&str; 6] = [
    "message.retried.v1",
    "message.dismissed.v1",
    "resolution.proposed.v1",
    "resolution.confirmed.v1",
    "database.opened.v1",
    "database.closed.v1",
];
/// No service consumes it either.
const FRAUD_ALERT: &str = "fraud.alert.v1";
/// Schemas that are no event's: rows, headers, and records that have no type.
const OTHER_SCHEMAS: [&str; 7] = [
    "charges.row",
    "cloudevents.headers",
    "dead-letter",
    "ledger.row",
    "payments.row",
    "services.row",
    "work-message",
];

fn read(path: &str) -> String {
    let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn golden(name: &str) -> Value {
    serde_json::from_str(&read(&format!("saga/golden/{name}.json"))).unwrap()
}

/// The event of a golden file, as the relay emits it.
fn golden_event(event_type: EventType) -> Event {
    let (topic, value) = (event_type.topic(), golden(event_type.as_str()));
    let (key, subject) = match topic {
        SERVICE_TOPIC => ("service_id", "service_id"),
        _ => ("user_id", "payment_id"),
    };
    let subject = text(&value[subject]);
    let (source, id) = match topic {
        PAYMENT_TOPIC => ("/coro/payments", format!("payments/payments/{subject}/{}", value["version"])),
        SERVICE_TOPIC => ("/coro/payments", format!("payments/services/{subject}/{}", value["version"])),
        BALANCE_TOPIC => ("/coro/balance", format!("balance/ledger/{subject}/{}", value["phase"])),
        _ => ("/coro/processor", format!("processor/charges/{subject}/{}", value["version"])),
    };
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", id.as_str()),
        ("ce_source", source),
        ("ce_type", event_type.as_str()),
        ("ce_time", "2026-01-02T03:04:06.123456Z"),
        ("ce_subject", subject),
        ("content-type", "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("pg_chain", "payments/2026-01-02T03:04:05.123456Z"),
        ("pg_position", "0/26FA4A0;0;0/26F8960"),
    ];
    Event {
        topic: topic.to_owned(),
        partition: 0,
        offset: 0,
        key: text(&value[key]).to_owned(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        value: serde_json::to_vec(&value).unwrap(),
    }
}

/// A value of another type.
fn of_another_type(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::String(number.to_string()),
        Value::String(_) => json!(15_000),
        Value::Bool(flag) => Value::String(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => json!(true),
    }
}

#[test]
fn every_golden_event_is_valid_and_no_field_of_it_may_be_missing_or_of_another_type() {
    let asyncapi = AsyncApi::read();
    for event_type in EventType::ALL {
        let (name, event) = (event_type.as_str(), golden_event(*event_type));
        assert_eq!(asyncapi.errors(&event), Vec::<String>::new(), "{name}");
        let error = |value: &Value| asyncapi.payload_error(&event.topic, name, value);
        let value = golden(name);
        for (field, content) in value.as_object().unwrap() {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(field);
            assert!(error(&without).is_some(), "{name} is valid without {field}");
            let mut other = value.clone();
            other[field] = of_another_type(content);
            assert!(error(&other).is_some(), "{name} is valid with {field} = {}", other[field]);
        }
        let mut more = value.clone();
        more["surprise"] = json!("x");
        let found = error(&more).unwrap_or_else(|| panic!("{name} is valid with a field that nobody knows"));
        assert!(found.contains("surprise"), "{found}");
        assert_eq!(asyncapi.published_error(name, &more), None, "a subscriber ignores what it does not know");
    }
}

/// Nothing, a debt, and what a reader of JSON would round.
#[test]
fn no_event_has_an_amount_that_no_ledger_has() {
    let asyncapi = AsyncApi::read();
    for event_type in EventType::ALL {
        let (name, topic) = (event_type.as_str(), event_type.topic());
        let golden = golden(name);
        if golden.get("amount").is_none() {
            assert_eq!(topic, SERVICE_TOPIC, "{name}");
            continue;
        }
        for amount in [0, -1, 9_007_199_254_740_992_i64] {
            let mut value = golden.clone();
            value["amount"] = json!(amount);
            assert!(asyncapi.published_error(name, &value).is_some(), "{name} is valid with {amount}");
        }
    }
}

#[test]
fn an_event_of_one_type_is_not_valid_as_another() {
    let asyncapi = AsyncApi::read();
    for event_type in EventType::ALL {
        for other in EventType::ALL.iter().filter(|other| *other != event_type) {
            let error = asyncapi.published_error(other.as_str(), &golden(event_type.as_str()));
            assert!(error.is_some(), "{event_type:?} is valid as {other:?}");
        }
    }
}

#[test]
fn key_and_headers_are_held_too() {
    let asyncapi = AsyncApi::read();
    type Change = fn(&mut Event);
    let wrong: [(&str, Change); 10] = [
        ("no id", |event| drop(event.headers.remove("ce_id"))),
        ("another id", |event| drop(event.headers.insert("ce_id".into(), "payments/payments/x/1".into()))),
        ("another type", |event| drop(event.headers.insert("ce_type".into(), "payment.failed.v1".into()))),
        ("a type of another topic", |event| {
            drop(event.headers.insert("ce_type".into(), "balance.held.v1".into()));
        }),
        ("another source", |event| drop(event.headers.insert("ce_source".into(), "/coro/balance".into()))),
        ("a time without zone", |event| {
            drop(event.headers.insert("ce_time".into(), "2026-01-02T03:04:06.123456".into()));
        }),
        ("a chain without a beginning", |event| {
            drop(event.headers.insert("pg_chain".into(), "payments".into()));
        }),
        ("a header that nobody knows", |event| drop(event.headers.insert("x".into(), "y".into()))),
        ("no user as its key", |event| event.key = "k".into()),
        ("another user as its key", |event| event.key = "0198c0de-0000-7000-8000-00000000000f".into()),
    ];
    for (what, change) in wrong {
        let mut event = golden_event(EventType::PaymentCompleted);
        change(&mut event);
        assert!(!asyncapi.errors(&event).is_empty(), "{what}");
    }
    // Rows that are emitted again by hand have no position; a deposit has no trace.
    let mut event = golden_event(EventType::BalanceDeposited);
    event.headers.retain(|name, _| name != "pg_position" && name != "traceparent");
    assert_eq!(asyncapi.errors(&event), Vec::<String>::new());
}

#[test]
fn every_type_of_the_code_has_a_schema_and_a_message_and_no_other_has() {
    let asyncapi = AsyncApi::read();
    let types: BTreeSet<&str> = EventType::ALL
        .iter()
        .map(|event| event.as_str())
        .chain([PARKED, FRAUD_ALERT])
        .chain(OPERATORS)
        .collect();
    let schemas = event_schemas();
    let expected: BTreeSet<&str> = types.iter().copied().chain(OTHER_SCHEMAS).collect();
    assert_eq!(schemas.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (name, schema) in &schemas {
        assert!(!text(&schema["title"]).is_empty() && !text(&schema["description"]).is_empty(), "{name}");
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert!(name == "work-message" || schema.get("description").is_some(), "{name}: {field}");
        }
    }
    let mut messages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Message { topic, name, definition } in asyncapi.messages() {
        assert_eq!(definition["payload"]["$ref"], format!("events/{name}.json"));
        if types.contains(name.as_str()) {
            assert_eq!(definition["headers"]["properties"]["ce_type"]["const"], name, "{topic}");
        }
        messages.entry(topic).or_default().insert(name);
    }
    for (topic, names) in messages {
        let of_topic = EventType::ALL.iter().filter(|event| event.topic() == topic);
        let mut expected: BTreeSet<String> = of_topic.map(|event| event.as_str().to_owned()).collect();
        if topic.ends_with(".parked") {
            expected.insert(PARKED.to_owned());
        } else if topic == OPERATOR_TOPIC {
            expected.extend(OPERATORS.map(str::to_owned));
        } else if topic == "FraudAlertTopic" {
            expected.insert(FRAUD_ALERT.to_owned());
        } else if expected.is_empty() {
            expected.insert("dead-letter".to_owned());
        }
        assert_eq!(names, expected, "{topic}");
    }
}

/// Without what an environment may set in front of it.
fn plain(name: &str) -> String {
    name.replace("${TOPIC_PREFIX:-}", "").replace("${QUEUE:-PaymentInitiated}", "PaymentInitiated")
}

#[test]
fn the_channels_are_the_topics_and_the_queue_of_the_relay() {
    let asyncapi = AsyncApi::read();
    let routes: Value = toml::from_str(&read("cdc-relay/relay.toml")).unwrap();
    let alerts: Value = toml::from_str(&read("consumers/fraud/relay.toml")).unwrap();
    let listed = [&routes, &alerts].into_iter().flat_map(|routes| routes["topics"].as_array().unwrap());
    let mut topics: BTreeMap<String, [Value; 3]> = listed
        .map(|topic| {
            let config = &topic["config"];
            let retention = text(&config["retention.ms"]).parse::<i64>().unwrap();
            let of_topic = [topic["partitions"].clone(), json!(retention), config["cleanup.policy"].clone()];
            (plain(text(&topic["name"])), of_topic)
        })
        .collect();
    // The relay makes it itself, with one partition, for ever.
    let dead_letters = plain(text(&routes["relay"]["dead_letter_topic"]));
    topics.insert(dead_letters, [json!(1), json!(-1), Value::Null]);
    let channels = asyncapi.document["channels"].as_object().unwrap();
    let kafka = channels.values().filter_map(|channel| {
        let kafka = channel["bindings"].get("kafka")?;
        let config = &kafka["topicConfiguration"];
        // AsyncAPI has a list where Kafka has commas.
        let of_topic =
            [&kafka["partitions"], &config["retention.ms"], &config["cleanup.policy"][0]].map(Value::clone);
        Some((text(&channel["address"]).to_owned(), of_topic))
    });
    assert_eq!(kafka.collect::<BTreeMap<_, _>>(), topics);
    let queues = routes["queues"].as_array().unwrap().iter().map(|queue| plain(text(&queue["name"])));
    let amqp = channels.values().filter_map(|channel| channel["bindings"].get("amqp"));
    let amqp = amqp.map(|binding| text(&binding["queue"]["name"]).to_owned());
    assert_eq!(amqp.collect::<Vec<_>>(), queues.collect::<Vec<_>>());

    let operations = asyncapi.document["operations"].as_object().unwrap().values();
    let used: Vec<&Value> = operations.map(|operation| asyncapi.resolve(&operation["channel"])).collect();
    for (name, channel) in channels {
        assert_eq!(used.iter().filter(|used| **used == channel).count(), 1, "{name} has one operation");
    }
}

#[test]
fn the_examples_are_the_golden_files() {
    let asyncapi = AsyncApi::read();
    for (name, message) in asyncapi.document["components"]["messages"].as_object().unwrap() {
        let examples = message["examples"].as_array().unwrap();
        let [example] = examples.as_slice() else { panic!("{name} has one example") };
        let payload = &example["payload"];
        let schema = text(&message["payload"]["$ref"]);
        let schema = schema.strip_prefix("events/").and_then(|name| name.strip_suffix(".json")).unwrap();
        assert_eq!(asyncapi.published_error(schema, payload), None, "{name}");
        if EventType::parse(name).is_some() {
            assert_eq!(payload, &golden(name), "{name}");
        } else if name == "work" {
            assert_eq!(payload, &golden("work-message"));
        }
    }
}

#[test]
fn the_page_quotes_the_snippets_as_they_are() {
    let page = read("docs/SUBSCRIBE.md");
    let languages = BTreeMap::from([("py", "python"), ("ts", "typescript"), ("rs", "rust"), ("sh", "sh")]);
    let mut quoted: BTreeMap<&str, usize> = languages.values().map(|language| (*language, 0)).collect();
    for entry in fs::read_dir(docs("subscribe")).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let Some(language) = languages.get(extension) else { continue };
        let content = fs::read_to_string(&path).unwrap();
        let block = format!("```{language}\n{content}```\n");
        assert!(page.contains(&block), "SUBSCRIBE.md does not quote {} as it is", path.display());
        *quoted.entry(language).or_default() += 1;
    }
    for (language, files) in quoted {
        assert!(files > 0, "no snippet in {language}");
        let blocks = page.matches(&format!("```{language}\n")).count();
        assert_eq!(blocks, files, "every block of {language} is a file of docs/subscribe");
    }
}
