//! The projection on a real Kafka and a real OpenSearch.
//!
//! Each test has topics and an alias of its own.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod hanging;
mod harness;
mod outages;
mod rebuilds;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Harness, in_path, payment, service, until};

fn source(event: &harness::Event, kind: &str, record: &Value) -> Value {
    let mut expected = event.body.clone();
    (expected["kind"], expected["record"]) = (json!(kind), record.clone());
    expected
}

#[tokio::test]
async fn the_last_version_stays_whatever_order_and_repetitions() {
    let harness = Harness::new().await;
    let (user, [first, second]) = (Uuid::now_v7(), [Uuid::now_v7(), Uuid::now_v7()]);
    let completed = payment("completed", user, first, 3);
    // One batch, since nobody reads yet: the last version first, and again.
    harness.emit(std::slice::from_ref(&completed)).await;
    for name in ["initiated", "authorized"] {
        harness.emit(&[payment(name, user, first, if name == "initiated" { 1 } else { 2 })]).await;
    }
    harness.emit(std::slice::from_ref(&completed)).await;
    let indexer = harness.start().await;
    let routing = user.to_string();
    let version = |id: Uuid| {
        let (harness, routing) = (&harness, &routing);
        async move { harness.document(&id.to_string(), routing).await["version"].clone() }
    };
    until(&json!(3), || version(first)).await;
    // Other batches: an older one changes nothing.
    harness.emit(&[payment("initiated", user, second, 1)]).await;
    until(&json!(1), || version(second)).await;
    harness.emit(&[payment("authorized", user, first, 2), payment("failed", user, second, 3)]).await;
    until(&json!(3), || version(second)).await;
    let document = harness.document(&first.to_string(), &routing).await;
    assert_eq!(document["version"], 3);
    assert_eq!(document["source"], source(&completed, "payment", &document["source"]["record"]));
    let record = document["source"]["record"].as_str().unwrap();
    assert!(record.contains("PaymentTopic/"), "{record}");
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn a_service_is_one_document_with_its_last_name() {
    let harness = Harness::new().await;
    let id = "strom-1";
    harness.emit(&[service(id, "Strom", 1), service(id, "\u{d6}kostrom", 2)]).await;
    let indexer = harness.start().await;
    let document = || harness.document("service/strom-1", "services");
    until(&json!(2), || async { document().await["version"].clone() }).await;
    assert_eq!(document().await["source"]["name"], "\u{d6}kostrom");
    // By the beginning of a word, without accents and capitals.
    let found = |text: &str| {
        let query = json!({"bool": {"filter": [{"term": {"kind": "service"}}, {"match": {"name": text}}]}});
        harness.count(query)
    };
    until(&1, || found("oko")).await;
    assert_eq!(found("\u{d6}KOS").await, 1);
    // A mark of its own, as some keyboards send it.
    assert_eq!(found("o\u{308}kostrom").await, 1);
    assert_eq!(found("strom").await, 0, "the old name is gone, and this is no beginning of the new one");
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn a_client_number_is_found_by_its_beginning_in_digits_and_in_words() {
    let harness = Harness::new().await;
    let user = Uuid::now_v7();
    for number in ["0812-3456.7890", "5551234-decline", "Z\u{e4}hler 77", "x".repeat(64).as_str()] {
        let mut event = payment("initiated", user, Uuid::now_v7(), 1);
        event.body["client_number"] = json!(number);
        harness.emit(&[event]).await;
    }
    let indexer = harness.start().await;
    until(&4, || harness.count(json!({"term": {"user_id": user.to_string()}}))).await;
    let found = |field: &str, text: &str| {
        let query = json!({"match": {field: {"query": text, "operator": "and"}}});
        harness.count(query)
    };
    let long = "x".repeat(64);
    for (field, text, expected) in [
        ("client_number", "0812", 1),
        ("client_number", "3456", 1),
        ("client_number", "456", 0),
        ("client_number", "5551234-dec", 1),
        ("client_number", "DECL", 1),
        ("client_number", "zahler", 1),
        ("client_number", long.as_str(), 1),
        ("client_number", "0812*", 1),
        ("client_number", "--", 0),
        ("client_number.digits", "081234", 1),
        ("client_number.digits", "08 12-34", 1),
        ("client_number.digits", "55512", 1),
        ("client_number.digits", "1234", 0),
        ("client_number.digits", "abc", 0),
    ] {
        assert_eq!(found(field, text).await, expected, "{field} {text}");
    }
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn what_cannot_be_indexed_is_parked_and_the_rest_goes_on() {
    let harness = Harness::new().await;
    let (user, id) = (Uuid::now_v7(), Uuid::now_v7());
    let good = payment("initiated", user, id, 1);
    let mut places = Vec::new();
    places.push(harness.produce(&good, "not json".to_owned()).await);
    let unknown = harness::Event { event_type: "payment.exploded.v1".to_owned(), ..good.clone() };
    places.push(harness.produce(&unknown, good.body.to_string()).await);
    // Another user's key.
    let forged = harness::Event { key: Uuid::now_v7().to_string(), ..good.clone() };
    places.push(harness.produce(&forged, good.body.to_string()).await);
    // A term that Lucene refuses: no keyword is so long.
    let mut long = payment("initiated", user, Uuid::now_v7(), 1);
    long.body["service_id"] = json!("x".repeat(40_000));
    places.push(harness.produce(&long, long.body.to_string()).await);
    // A version and an id for which OpenSearch refuses the whole request, and so the documents beside them.
    let mut negative = payment("initiated", user, Uuid::now_v7(), 1);
    negative.body["version"] = json!(-1);
    places.push(harness.produce(&negative, negative.body.to_string()).await);
    let far = service(&"x".repeat(600), "Far", 1);
    places.push(harness.produce(&far, far.body.to_string()).await);
    // A type that is longer than a term of the index of parked messages may be.
    let typed = harness::Event { event_type: "x".repeat(40_000), ..good.clone() };
    places.push(harness.produce(&typed, good.body.to_string()).await);
    harness.emit(&[good, service("near", "Near", 1)]).await;
    let indexer = harness.start().await;
    until(&json!(1), || async {
        harness.document(&id.to_string(), &user.to_string()).await["version"].clone()
    })
    .await;
    until(&json!(1), || async { harness.document("service/near", "services").await["version"].clone() })
        .await;
    for place in &places {
        let path = format!("/{}-parked/_doc/{}", harness.alias, in_path(place));
        until(&true, || async {
            let found =
                harness.index.send(saga::search_index::Method::GET, &path, saga::search_index::Body::None);
            found.await.is_ok_and(|found| !found["_source"]["reason"].as_str().unwrap().is_empty())
        })
        .await;
    }
    indexer.stop().await;
    harness.finish().await;
}
