//! Tests several sources of one kind: they emit the same events, each in a chain of its own, and come and go while the relay
//! runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Harness, Relay, connect, eventually};
use crate::kafka::{self, Event, chain, distinct};

/// The routes of these sources, all of one kind. `more` goes into each.
fn routes(topics_of: &Harness, sources: &[(&str, &Harness)], more: &str) -> String {
    let name = &topics_of.name;
    let mut text = format!(
        r#"
[relay]
state_topic = "{name}.state"
dead_letter_topic = "{name}.dead"

[[topics]]
name = "{name}.items"
partitions = 2

[[kinds]]
name = "it"
publication = "events"
event_source = "/it"

[[kinds.tables]]
name = "items"
key = "{{owner}}"
id = "{{@source}}/items/{{owner}}/{{id}}/{{version}}"
topic = "{name}.items"
type = "item.{{kind}}.v1"
"#
    );
    for (source, database) in sources {
        let Harness { url, name: slot, .. } = database;
        write!(
            text,
            "\n[[sources]]\nname = \"{source}\"\nkind = \"it\"\nurl = \"{url}\"\nslot = \"{slot}\"\n{more}\n"
        )
        .expect("a String");
    }
    text
}

/// Waits until this source streams.
async fn streams(relay: &Relay, source: &str) {
    eventually(&format!("{source} to stream"), || async {
        (relay.health()["sources"][source]["state"] == "streaming").then_some(())
    })
    .await;
}

/// Waits until the relay has no such source.
async fn is_gone(relay: &Relay, source: &str) {
    eventually(&format!("{source} to end"), || async {
        relay.health()["sources"]
            .as_object()
            .is_some_and(|sources| !sources.contains_key(source))
            .then_some(())
    })
    .await;
}

/// The events of each chain.
fn by_chain(events: &[Event]) -> BTreeMap<String, Vec<Event>> {
    let mut chains = BTreeMap::<String, Vec<Event>>::new();
    for event in events {
        chains.entry(event.header("pg_chain").to_owned()).or_default().push(event.clone());
    }
    chains
}

fn ids(events: &[Event]) -> Vec<String> {
    let mut ids: Vec<String> = events.iter().map(|event| event.header("ce_id").to_owned()).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The exit code and the answer of `verify`.
fn verify(harness: &Harness) -> (Option<i32>, Value) {
    let output = harness.command("verify").arg("--json").output().expect("verify");
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), answer)
}

/// Prevents a false gap, and an event that consumers do not recognise because another shard emitted it.
#[tokio::test(flavor = "multi_thread")]
async fn two_databases_emit_the_same_events_each_in_a_chain_of_its_own() {
    let mut harness = Harness::new("shards").await;
    let other = Harness::new("shards_1").await;
    harness.routes(&routes(&harness, &[("it-0", &harness), ("it-1", &other)], ""));
    let relay = harness.start();
    streams(&relay, "it-0").await;
    streams(&relay, "it-1").await;
    for id in 0..10 {
        harness.row("a", id, 1, "made").await;
        // The same rows: a row that moves has one event, whoever emits it.
        other.row("a", id, 1, "made").await;
        other.row("b", id, 1, "made").await;
    }
    distinct(&harness.topic(), 20).await;
    harness.confirmed().await;
    other.confirmed().await;
    let events = kafka::read(&harness.topic());
    assert!(events.iter().all(|event| event.header("ce_source") == "/it"));
    let chains = by_chain(&events);
    let sources: Vec<&str> = chains.keys().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
    assert_eq!(sources, ["it-0", "it-1"]);
    let transactions: Vec<usize> = chains.values().map(|events| chain(events)).collect();
    assert_eq!(transactions, [10, 20]);
    let (first, second) = (&chains.values().next().expect("two"), &chains.values().nth(1).expect("two"));
    assert!(ids(first).iter().all(|id| ids(second).contains(id)), "the same ids");
    let (code, report) = verify(&harness);
    assert_eq!((code, report["chains"].as_array().map(Vec::len)), (Some(0), Some(2)), "{report:#}");
    drop(relay);
}

/// Prevents a loss at the seams: what is committed while a source is not in the file is emitted once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_comes_and_goes_while_the_relay_runs() {
    let mut harness = Harness::new("comes").await;
    let other = Harness::new("comes_1").await;
    let (one, both) = (
        routes(&harness, &[("it-0", &harness)], ""),
        routes(&harness, &[("it-0", &harness), ("it-1", &other)], ""),
    );
    harness.routes(&one);
    let relay = harness.start();
    streams(&relay, "it-0").await;
    harness.routes(&both);
    streams(&relay, "it-1").await;
    other.row("b", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    other.confirmed().await;

    // It goes, and takes with it everything but its slot.
    harness.routes(&one);
    is_gone(&relay, "it-1").await;
    other.slot_is_free().await;
    assert!(!relay.get("/metrics").unwrap_or_default().contains("source=\"it-1\""));
    let confirmed = other.positions().await.1.expect("its slot stays");
    let (topic, key) = (format!("{}.state", harness.name), format!("it-1/{}", other.name));
    let checkpoint =
        kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("a checkpoint").json();
    let (high, low) =
        checkpoint["acknowledged"].as_str().and_then(|lsn| lsn.split_once('/')).expect("a position");
    let part = |digits| u64::from_str_radix(digits, 16).expect("a position");
    assert!(
        part(high) << 32 | part(low) >= confirmed,
        "the checkpoint is saved before the slot is confirmed"
    );
    other.row("b", 2, 1, "made").await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 2).await;

    // It is back, without a gap. Nobody else was disturbed.
    harness.routes(&both);
    relay.signal(Signal::HUP);
    streams(&relay, "it-1").await;
    distinct(&harness.topic(), 3).await;
    other.confirmed().await;
    harness.confirmed().await;
    for (name, events) in by_chain(&kafka::read(&harness.topic())) {
        assert_eq!(chain(&events), if name.starts_with("it-0/") { 1 } else { 2 }, "{name}");
    }
    assert_eq!(verify(&harness).0, Some(0));
    assert_eq!(relay.metric("cdc_relay_sessions_total{source=\"it-0\"}"), 1.0, "one session all the time");
    assert_eq!(relay.stop().await, Some(0));
}

/// Prevents an outage by a slip of the editor.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_changes_nothing_and_is_shown() {
    let mut harness = Harness::new("slips").await;
    let good = routes(&harness, &[("it", &harness)], "");
    harness.routes(&good);
    let relay = harness.streaming().await;
    let slips = [
        (good.replace("kind = \"it\"", "kind = \"itt\""), "`itt` is not one of [[kinds]]"),
        (good.replace("[[sources]]", "[[sources]"), "syntax"),
        (good.replace("url = \"postgres", "url = \"postgress"), "`url` of source it"),
        // Only the database knows that there is no such column.
        (good.replace("key = \"{owner}\"", "key = \"{ownerr}\""), "ownerr"),
        (good.replace("[relay]", "[relay]\nin_flight_bytes = 1000000"), "restart the relay"),
    ];
    for (id, (slip, problem)) in (0i64..).zip(&slips) {
        harness.routes(slip);
        eventually(problem, || async {
            let file = relay.health()["routes_file"].clone();
            (file["current"] == false && file["problem"].as_str().is_some_and(|text| text.contains(problem)))
                .then_some(())
        })
        .await;
        assert_eq!(relay.metric("cdc_relay_routes_file_refused"), 1.0);
        assert!(relay.log().contains(problem), "{}", relay.log());
        assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
        harness.row("a", id, 1, "made").await;
        distinct(&harness.topic(), id as usize + 1).await;
    }
    harness.routes(&good);
    relay.signal(Signal::HUP);
    eventually("the file to be in use", || async {
        (relay.health()["routes_file"]["current"] == true).then_some(())
    })
    .await;
    assert_eq!(relay.metric("cdc_relay_routes_file_refused"), 0.0);
    assert_eq!(relay.metric("cdc_relay_sessions_total{source=\"it\"}"), 1.0, "one session all the time");
}

/// A source that was changed goes on from its slot with the new routes.
#[tokio::test(flavor = "multi_thread")]
async fn other_routes_are_taken_up_without_a_restart_and_without_loss() {
    let mut harness = Harness::new("rerouted").await;
    let good = routes(&harness, &[("it", &harness)], "");
    harness.routes(&good);
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    harness.routes(&good.replace("type = \"item.{kind}.v1\"", "type = \"item.{kind}.v2\""));
    // Rows all the while, until one of them has the new type.
    let mut id = 1;
    loop {
        id += 1;
        harness.row("a", id, 1, "made").await;
        let events = distinct(&harness.topic(), id as usize).await;
        if events.iter().any(|event| event.header("ce_type") == "item.made.v2") {
            break;
        }
        assert!(id < 5_000, "the routes were not taken up");
    }
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    assert_eq!(ids(&events).len(), id as usize);
    assert_eq!(by_chain(&events).len(), 1, "the chain goes on");
    assert_eq!(verify(&harness).0, Some(0));
    drop(relay);
}

/// The repetition it prevents: the target of a logical replication emits what its source has emitted.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_copied_from_another_server_is_not_emitted() {
    let mut harness = Harness::new("copied").await;
    harness.routes(&routes(&harness, &[("it", &harness)], "origin = \"none\""));
    let relay = harness.streaming().await;
    // As the worker of a subscription writes.
    let copier = connect(&harness.url).await;
    let origin = [&harness.name as &(dyn tokio_postgres::types::ToSql + Sync)];
    copier.query("select pg_replication_origin_create($1)", &origin).await.expect("an origin");
    copier.query("select pg_replication_origin_session_setup($1)", &origin).await.expect("its session");
    for id in 0..5 {
        let copy = "insert into items (owner, id, version) values ('copied', $1, 1)";
        copier.execute(copy, &[&i64::from(id)]).await.expect("a copy");
        harness.row("own", i64::from(id), 1, "made").await;
    }
    let events = distinct(&harness.topic(), 5).await;
    harness.confirmed().await;
    let events: Vec<Event> = kafka::read(&harness.topic()).into_iter().chain(events).collect();
    assert!(events.iter().all(|event| event.key == "own"), "{:?}", ids(&events));
    assert_eq!(chain(&events), 5);
    let version = harness.sql.query_one("show server_version_num", &[]).await.expect("the version");
    let before_16 = version.get::<_, String>(0).parse::<u32>().expect("a number") < 160_000;
    let left_out = relay.metric("cdc_relay_left_out_transactions_total");
    assert_eq!(left_out, if before_16 { 5.0 } else { 0.0 });
    assert_eq!(verify(&harness).0, Some(0));

    // A source that does not say so emits them.
    let reader = "select active_pid from pg_replication_slots where slot_name = $1";
    let reader = || async {
        harness.sql.query_one(reader, &[&harness.name]).await.expect("the slot").get::<_, Option<i32>>(0)
    };
    let before = reader().await;
    harness.routes(&routes(&harness, &[("it", &harness)], ""));
    relay.signal(Signal::HUP);
    eventually("the new session", || async { reader().await.filter(|now| Some(*now) != before) }).await;
    copier
        .execute("update items set version = 2 where owner = 'copied' and id = 1", &[])
        .await
        .expect("a copy");
    let events = distinct(&harness.topic(), 6).await;
    assert!(events.iter().any(|event| event.key == "copied"), "{:?}", ids(&events));
    copier.batch_execute("select pg_replication_origin_session_reset()").await.expect("reset");
    copier.query("select pg_replication_origin_drop($1)", &origin).await.expect("dropped");
}
