//! An index that is made anew: on command, or because it is gone.

use std::cell::Cell;

use brokers::Brokers;
use reqwest::StatusCode;
use saga::CancellationToken;
use saga::consumer::GroupOffsets;
use saga::contract::PAYMENT_TOPIC;
use saga::search_index::{Body, Index, Method, SEARCH_TIMEOUT, SearchError, write_alias};
use search_indexer::config::Config;
use search_indexer::events::Document;
use search_indexer::rebuild::rebuild;
use search_indexer::store::{Store, WriteOutcome};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::hanging::Hanging;
use crate::harness::{Event, Harness, payment, service, until, variable};

/// Payments that are there before.
const BEFORE: usize = 1_000;

fn payments(count: usize) -> Vec<Event> {
    let user = Uuid::now_v7();
    (0..count).map(|_| payment("initiated", user, Uuid::now_v7(), 1)).collect()
}

async fn indexed(harness: &Harness) -> u64 {
    // There may be no index yet.
    let _ = harness.index.send(Method::POST, &format!("/{}/_refresh", harness.alias), Body::None).await;
    harness.count(json!({"term": {"kind": "payment"}})).await
}

/// The number of payments that a search finds in the time that the services allow; none if the server has too much to do. That is
/// no moment without what was there.
async fn searched(harness: &Harness) -> Option<u64> {
    let (path, query) = (format!("/{}/_count", harness.alias), json!({"term": {"kind": "payment"}}));
    let body = Body::Json(json!({ "query": query }));
    match harness.index.within(SEARCH_TIMEOUT).send(Method::POST, &path, body).await {
        Ok(found) => found["count"].as_u64(),
        Err(SearchError::Away(_) | SearchError::Refused { status: StatusCode::TOO_MANY_REQUESTS, .. }) => {
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_rebuild_under_load_leaves_no_moment_without_what_was_there() {
    let harness = Harness::new().await;
    harness.emit(&payments(BEFORE)).await;
    harness.emit(&[service("gas", "Gas", 1)]).await;
    let (first, second) = (harness.start().await, harness.start().await);
    until(&(BEFORE as u64), || indexed(&harness)).await;
    let old = harness.live().await;

    let (rebuilt, emitted) = (CancellationToken::new(), Cell::new(BEFORE));
    let emit = async || {
        harness.emit(&payments(5)).await;
        emitted.set(emitted.get() + 5);
    };
    let rebuilding = async {
        rebuild(&harness.config(), &CancellationToken::new()).await.unwrap();
        rebuilt.cancel();
    };
    let loading = async {
        while !rebuilt.is_cancelled() {
            emit().await;
            // Not more than can be indexed.
            until(&true, async || indexed(&harness).await >= emitted.get() as u64).await;
        }
        // Beyond the switch too.
        for _ in 0..20 {
            emit().await;
        }
    };
    let searching = async || {
        // Not only now and then: the moment of the switch is short, and a search must be under way in it.
        while !rebuilt.is_cancelled() {
            if let Some(found) = searched(&harness).await {
                assert!(found >= BEFORE as u64, "a search found {found} of {BEFORE}");
            }
        }
    };
    tokio::join!(rebuilding, loading, searching(), searching(), searching(), searching());
    let emitted = emitted.get();

    let new = harness.live().await;
    assert_eq!((old.ends_with("-1"), new.ends_with("-2")), (true, true), "{old} {new}");
    until(&(emitted as u64), || indexed(&harness)).await;
    assert_eq!(harness.document("service/gas", "services").await["version"], 1);
    let gone = harness.index.send(Method::GET, &format!("/{old}"), Body::None).await;
    assert!(gone.is_err_and(|error| error.is_not_found()), "the old index is deleted");
    first.stop().await;
    // One is enough, and has the partitions of the other.
    harness.emit(&payments(10)).await;
    until(&(emitted as u64 + 10), || indexed(&harness)).await;
    second.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn a_rebuild_that_was_interrupted_leaves_searches_as_they_were_and_goes_on() {
    let harness = Harness::new().await;
    // More than one batch, of which the next index gets the first.
    let all = 2_500;
    harness.emit(&payments(all)).await;
    let indexer = harness.start().await;
    until(&(all as u64), || indexed(&harness)).await;
    let next = format!("{}-2", harness.alias);
    let hanging = Hanging::at(&variable("SEARCH_URL"), format!("/{next}-write/_bulk"), 2).await;
    let stop = CancellationToken::new();
    let (config, stopped) = (harness.config_at(hanging.address), stop.clone());
    let rebuilding = tokio::spawn(async move { rebuild(&config, &stopped).await });
    hanging.hung().await;
    stop.cancel();
    let error = rebuilding.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("another rebuild goes on with it"), "{error:#}");
    assert!(harness.live().await.ends_with("-1"));
    assert_eq!(indexed(&harness).await, all as u64);
    let begun = harness.index.named(&next).await.unwrap().unwrap();
    harness.index.send(Method::POST, &format!("/{next}/_refresh"), Body::None).await.unwrap();
    let part = harness.index.send(Method::GET, &format!("/{next}/_count"), Body::None).await.unwrap();
    let part = part["count"].as_u64().unwrap();
    assert!((1..all as u64).contains(&part), "{part} of {all}");
    // One that ended between its switch and the end of the old index.
    let left = format!("/{}-0", harness.alias);
    harness.index.send(Method::PUT, &left, Body::None).await.unwrap();

    rebuild(&harness.config(), &CancellationToken::new()).await.unwrap();
    assert_eq!(harness.index.live().await.unwrap(), Some(begun), "the same index");
    let left = harness.index.send(Method::GET, &left, Body::None).await;
    assert!(left.is_err_and(|error| error.is_not_found()), "what an earlier rebuild left is deleted");
    assert_eq!(indexed(&harness).await, all as u64);
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn an_index_that_another_version_began_is_not_gone_on_with() {
    let harness = Harness::new().await;
    harness.emit(&payments(10)).await;
    let indexer = harness.start().await;
    until(&10, || indexed(&harness)).await;
    let next = format!("{}-2", harness.alias);
    for mapping in [json!({"dynamic": false}), json!({"_meta": {"made_from": "{}"}})] {
        let begun = Body::Json(json!({ "mappings": mapping }));
        harness.index.send(Method::PUT, &format!("/{next}"), begun).await.unwrap();
        let error = rebuild(&harness.config(), &CancellationToken::new()).await.unwrap_err();
        assert!(
            error.to_string().contains(&format!("{next} was begun by a version with other")),
            "{error:#}"
        );
        assert!(harness.live().await.ends_with("-1"));
        harness.index.send(Method::DELETE, &format!("/{next}"), Body::None).await.unwrap();
    }
    rebuild(&harness.config(), &CancellationToken::new()).await.unwrap();
    assert!(harness.live().await.ends_with("-2"));
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn two_rebuilds_at_once_both_succeed() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    until(&50, || indexed(&harness)).await;
    let (config, stop) = (harness.config(), CancellationToken::new());
    let (one, other) = tokio::join!(rebuild(&config, &stop), rebuild(&config, &stop));
    one.unwrap();
    other.unwrap();
    assert!(harness.live().await.ends_with("-2"));
    until(&50, || indexed(&harness)).await;
    indexer.stop().await;
    harness.finish().await;
}

/// Another rebuild may be first, and its answer may be lost.
#[tokio::test]
async fn a_switch_that_is_made_already_is_made_and_one_that_cannot_be_says_what_searches_use() {
    let harness = Harness::new().await;
    let store = Store::new(&harness.config().search).unwrap();
    let first = store.ensure().await.unwrap();
    let second = store.next(&first).await.unwrap();
    // A rebuild that comes after this one may have begun already.
    let third = store.next(&second).await.unwrap();
    for _ in 0..2 {
        store.switch(&first, &second).await.unwrap();
        assert_eq!(store.live().await.unwrap().as_ref(), Some(&second));
        assert_eq!(harness.index.named(&first.name).await.unwrap(), None);
        assert_eq!(harness.index.named(&third.name).await.unwrap().as_ref(), Some(&third));
    }
    let gone = store.switch(&first, &third).await.unwrap_err();
    assert!(gone.to_string().contains(&format!("searches use the index {}", second.name)), "{gone:#}");
    assert_eq!(store.live().await.unwrap(), Some(second));
    harness.finish().await;
}

/// Connections to Kafka that get no answer at first. Those that come after so many are forwarded.
async fn kafka_after(silent: usize, servers: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while held.len() < silent {
            held.push(listener.accept().await.unwrap());
        }
        drop(held);
        while let Ok((mut client, _)) = listener.accept().await {
            let mut broker = TcpStream::connect(&servers).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut broker).await });
        }
    });
    address
}

#[tokio::test]
async fn a_rebuild_waits_for_kafka() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    until(&50, || indexed(&harness)).await;
    let mut config = harness.config();
    // That of the consumer, that of the first question, and that of the next one, which a new client asks.
    config.consumer.kafka.servers = kafka_after(3, config.consumer.kafka.servers).await;
    rebuild(&config, &CancellationToken::new()).await.unwrap();
    assert!(harness.live().await.ends_with("-2"));
    assert_eq!(indexed(&harness).await, 50);
    indexer.stop().await;
    harness.finish().await;
}

#[tokio::test]
async fn a_rebuild_without_the_topic_of_payments_leaves_searches_as_they_were() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    until(&50, || indexed(&harness)).await;
    let mut config = harness.config();
    config.consumer.topic_prefix = "nowhere-".to_owned();
    let error = rebuild(&config, &CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("is TOPIC_PREFIX right?"), "{error:#}");
    assert!(harness.live().await.ends_with("-1"));
    assert_eq!(indexed(&harness).await, 50);
    indexer.stop().await;
    harness.finish().await;
}

/// Kafka gives no partitions of a topic that this user may not see. That is no empty topic.
#[tokio::test]
async fn a_topic_that_may_not_be_read_is_not_taken_for_one_that_does_not_exist() {
    let harness = Harness::new().await;
    harness.emit(&payments(1)).await;
    let mut config = harness.config();
    let topic = config.consumer.topic(PAYMENT_TOPIC);
    let index = Index { name: "none".to_owned(), uuid: "none".to_owned(), history: None };
    let ends = |config: &Config| GroupOffsets::new(&config.subscription(&index)).ends();
    assert!(ends(&config).unwrap().has_topic(&topic));
    // It may read the topics without a prefix only.
    let subscriber = variable("KAFKA_ADMIN_CONFIG").replace("admin.properties", "subscriber.properties");
    config.consumer.kafka = Brokers::read(&subscriber).unwrap();
    let error = ends(&config).unwrap_err();
    assert!(error.to_string().contains("does not give the partitions"), "{error:#}");
    harness.finish().await;
}

/// An index is written by its write alias alone, which goes with it.
#[tokio::test]
async fn an_index_that_is_deleted_is_not_made_again_by_what_comes_late() {
    let harness = Harness::new().await;
    let store = Store::new(&harness.config().search).unwrap();
    let live = store.ensure().await.unwrap();
    let document = Document {
        id: Uuid::now_v7().to_string(),
        routing: "a".to_owned(),
        version: 1,
        source: "{}".to_owned(),
    };
    assert_eq!(store.write(&live.name, &[&document]).await.unwrap(), [WriteOutcome::Applied]);
    // As on a server that makes indices by itself.
    let permit = json!({"persistent": {"action.auto_create_index": format!("+{}*", harness.alias)}});
    harness.index.send(Method::PUT, "/_cluster/settings", Body::Json(permit)).await.unwrap();
    harness.index.send(Method::DELETE, &format!("/{}", live.name), Body::None).await.unwrap();
    let late = store.write(&live.name, &[&document]).await;
    let reset = json!({"persistent": {"action.auto_create_index": null}});
    harness.index.send(Method::PUT, "/_cluster/settings", Body::Json(reset)).await.unwrap();
    assert!(late.is_err(), "{late:?}");
    for name in [write_alias(&live.name), live.name] {
        assert_eq!(harness.index.named(&name).await.unwrap(), None, "{name}");
    }
    harness.finish().await;
}

#[tokio::test]
async fn an_index_that_is_gone_is_made_anew_from_the_first_event() {
    let harness = Harness::new().await;
    harness.emit(&payments(50)).await;
    let indexer = harness.start().await;
    let all = || async { if harness.live().await.is_empty() { 0 } else { indexed(&harness).await } };
    until(&50, all).await;
    harness.index.send(Method::DELETE, &format!("/{}", harness.live().await), Body::None).await.unwrap();
    harness.emit(&payments(5)).await;
    until(&55, all).await;
    indexer.stop().await;
    harness.finish().await;
}

/// A snapshot that is restored into an index leaves its unique id as it was.
#[tokio::test]
async fn an_index_that_a_snapshot_was_restored_into_is_filled_from_the_first_event() {
    let harness = Harness::new().await;
    harness.emit(&payments(10)).await;
    let indexer = harness.start().await;
    until(&10, || indexed(&harness)).await;
    let before = harness.index.live().await.unwrap().unwrap();
    let repository = format!("/_snapshot/{}", harness.alias);
    let snapshot = format!("{repository}/one");
    let send = async |method, path: String, body| harness.index.send(method, &path, body).await.unwrap();
    let location = json!({"type": "fs", "settings": {"location": harness.alias}});
    send(Method::PUT, repository.clone(), Body::Json(location)).await;
    let this = || Body::Json(json!({"indices": before.name, "include_global_state": false}));
    send(Method::PUT, format!("{snapshot}?wait_for_completion=true"), this()).await;
    harness.emit(&payments(10)).await;
    until(&20, || indexed(&harness)).await;
    // The offsets of both are committed by then.
    indexer.stop().await;
    send(Method::POST, format!("/{}/_close", before.name), Body::None).await;
    send(Method::POST, format!("{snapshot}/_restore?wait_for_completion=true"), this()).await;
    let restored = harness.index.live().await.unwrap().unwrap();
    assert_eq!((&restored.name, &restored.uuid), (&before.name, &before.uuid));
    assert_eq!(indexed(&harness).await, 10);
    let indexer = harness.start().await;
    until(&20, || indexed(&harness)).await;
    indexer.stop().await;
    send(Method::DELETE, snapshot, Body::None).await;
    send(Method::DELETE, repository, Body::None).await;
    harness.finish().await;
}
