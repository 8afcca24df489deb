//! Tests replays: rows are emitted again with the same ids, and never for the first time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Harness, connect};
use crate::kafka::{self, Event, distinct, first_emissions};
use crate::release::{cdc_relay, text};

/// Replays rows of `items`, checks the exit code, and returns the output.
fn replay(harness: &Harness, arguments: &[&str], code: i32) -> String {
    let output = cdc_relay(harness, &[&["replay", "--table", "items"], arguments].concat());
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    text(&output)
}

/// Replays rows of `items`, and returns the one value on standard output: standard error may have warnings.
fn replay_json(harness: &Harness, arguments: &[&str]) -> serde_json::Value {
    let output = cdc_relay(harness, &[&["replay", "--table", "items", "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

/// The number of events with this id, and how many of them were re-emitted, without a position.
fn count(events: &[Event], id: &str) -> (usize, usize) {
    let all: Vec<&Event> = events.iter().filter(|event| event.header("ce_id") == id).collect();
    (all.len(), all.iter().filter(|event| event.header("pg_position").is_empty()).count())
}

#[tokio::test]
async fn rows_are_re_emitted_by_key_time_and_condition_with_the_same_ids() {
    let mut harness = Harness::new("again").await;
    let relay = harness.streaming().await;
    for (owner, id) in [("a", 1), ("a", 2), ("b", 3)] {
        harness.row(owner, id, 1, "made").await;
    }
    harness.row("a", 1, 2, "made").await;
    harness
        .sql
        .batch_execute("update items set at = '2020-01-01', version = 2 where id = 3")
        .await
        .expect("old");
    let emitted = distinct(&harness.topic(), 5).await.len();

    // Without agreement the replay is only shown.
    let shown = replay(&harness, &["--key", "a", "--dry-run"], 0);
    assert!(shown.contains("it/items/a/1/2") && shown.contains("2 events would be emitted"), "{shown}");
    let line = replay_json(&harness, &["--where", "owner = 'b'", "--dry-run"]);
    assert_eq!((&line["id"], &line["value"]["version"]), (&"it/items/b/3/2".into(), &2.into()));
    let message = replay(&harness, &["--key", "a"], 64);
    assert!(message.contains("--yes"), "{message}");
    assert_eq!(kafka::read(&harness.topic()).len(), emitted, "rows were emitted without --yes");

    let message = replay(&harness, &["--key", "a", "--yes"], 0);
    assert!(message.contains("2 events emitted again"), "{message}");
    let events = kafka::read(&harness.topic());
    assert_eq!(count(&events, "it/items/a/1/2"), (2, 1));
    assert_eq!(count(&events, "it/items/a/2/1"), (2, 1));
    assert_eq!(count(&events, "it/items/a/1/1"), (1, 0), "a version that is gone cannot be re-emitted");
    assert_eq!(count(&events, "it/items/b/3/2"), (1, 0));
    let again: Vec<&Event> =
        events.iter().filter(|event| event.header("ce_id") == "it/items/a/2/1").collect();
    assert_eq!((&again[0].value, &again[0].key), (&again[1].value, &again[1].key));

    replay(&harness, &["--since", "1h", "--yes"], 0);
    let events = kafka::read(&harness.topic());
    assert_eq!((count(&events, "it/items/a/2/1").0, count(&events, "it/items/b/3/2").0), (3, 1));
    let report = replay_json(&harness, &["--where", "id > 0", "--limit", "1", "--yes"]);
    assert_eq!(report["rows"], 1);
    assert_eq!(kafka::read(&harness.topic()).len(), emitted + 5);
    drop(relay);
}

#[tokio::test]
async fn a_condition_is_one_statement_that_reads() {
    let mut harness = Harness::new("condition").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    for condition in
        ["true); delete from items; --", "true); commit; delete from items where (true", "nonsense"]
    {
        replay(&harness, &["--where", condition, "--yes"], 2);
    }
    let rows = harness.sql.query("select 1 from items", &[]).await.expect("rows");
    assert_eq!(rows.len(), 1);
    harness
        .sql
        .batch_execute(
            "create function erase() returns boolean language sql as 'delete from items returning true'",
        )
        .await
        .expect("function");
    let message = replay(&harness, &["--where", "erase()", "--yes"], 2);
    assert!(message.contains("read-only transaction"), "{message}");
    drop(relay);
}

#[tokio::test]
async fn a_row_that_was_not_emitted_yet_is_not_emitted_by_a_replay() {
    let mut harness = Harness::new("first").await;
    harness.routes(&harness.default_routes().replace("[relay]", "[relay]\nmax_record_bytes = 5000"));
    let relay = harness.streaming().await;
    harness
        .sql
        .batch_execute("insert into items (owner, id, version, note) values ('a', 1, 1, repeat('x', 9000))")
        .await
        .expect("a large row");
    harness.row("a", 2, 1, "made").await;
    harness.row("b", 3, 1, "made").await;
    harness.confirmed().await;
    // A halted key waits for its release: even those of its rows that could be emitted.
    let message = replay(&harness, &["--where", "id > 1", "--yes"], 1);
    assert!(message.contains("1 events left out") && message.contains("1 events emitted again"), "{message}");
    let events = kafka::read(&harness.topic());
    assert_eq!((count(&events, "it/items/a/2/1"), count(&events, "it/items/b/3/1")), ((0, 0), (2, 1)));
    // Without a running relay it is unknown whether new rows are emitted.
    relay.kill();
    harness.row("b", 4, 1, "made").await;
    let message = replay(&harness, &["--where", "id > 1", "--yes", "--timeout", "1"], 2);
    assert!(
        message.contains("no relay reads the slot") && message.contains("has not emitted all"),
        "{message}"
    );
    assert_eq!(kafka::read(&harness.topic()).len(), events.len());
    // The relay runs with other routes, which would emit something else.
    let relay = harness.streaming().await;
    harness.routes(&harness.default_routes().replace("\"work\"", "\"other\""));
    let message = replay(&harness, &["--where", "id = 3", "--yes"], 2);
    assert!(message.contains("other routes"), "{message}");
    drop(relay);
}

/// Commits versions of a few rows until it is stopped. Returns the last version.
async fn load(url: String, stop: Arc<AtomicBool>) -> i32 {
    let sql = connect(&url).await;
    let insert = sql
        .prepare(
            "insert into items (owner, id, version) select 'o' || n, 1, $1 from generate_series(1, 5) n
             on conflict (owner, id) do update set version = excluded.version",
        )
        .await
        .expect("statement");
    let mut version = 0;
    while !stop.load(Ordering::Relaxed) {
        version += 1;
        sql.execute(&insert, &[&version]).await.expect("commit");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    version
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_under_load_reorder_no_first_emission() {
    let mut harness = Harness::new("load").await;
    let relay = harness.streaming().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(harness.url.clone(), Arc::clone(&stop)));
    for _ in 0..5 {
        replay(&harness, &["--where", "true", "--yes"], 0);
    }
    stop.store(true, Ordering::Relaxed);
    let last = load.await.expect("load");
    let events = distinct(&harness.topic(), last as usize * 5).await;
    let again = events.iter().filter(|event| event.header("pg_position").is_empty()).count();
    assert!(again >= 20, "{again} were re-emitted");
    for (owner, events) in first_emissions(&events) {
        let versions = events.iter().map(|event| event.json()["version"].as_i64().expect("version"));
        assert!(versions.eq(1..=i64::from(last)), "{owner}");
        // The first emission of each row is the stream's, with its position.
        assert!(events.iter().all(|event| !event.header("pg_position").is_empty()), "{owner}");
    }
    let ids: BTreeSet<&str> = events.iter().map(|event| event.header("ce_id")).collect();
    assert_eq!(ids.len(), last as usize * 5);
    drop(relay);
}
