//! Tests the release of halted keys: in order, before anything later, whatever crashes.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Harness, connect, eventually, server};
use crate::kafka::{self, Event, chain, distinct, first_emissions};

/// Runs another command of the program to its end.
pub fn cdc_relay(harness: &Harness, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cdc-relay"))
        .args(arguments)
        .env("RELAY_ROUTES", std::env::temp_dir().join(&harness.name).join("relay.toml"))
        .env("KAFKA_CONFIG", server("KAFKA_ADMIN_CONFIG"))
        .env("AMQP_URL", &harness.amqp_url)
        .env("IT_URL", &harness.url)
        .output()
        .expect("the command")
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Releases, checks the exit code, and returns the output.
fn release(harness: &Harness, arguments: &[&str], code: i32) -> String {
    let output = cdc_relay(harness, &[&["release"], arguments].concat());
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    text(&output)
}

/// Writes routes under which a record of more than `bytes` cannot be emitted.
fn limit(harness: &Harness, bytes: usize) {
    harness.routes(
        &harness.default_routes().replace("[relay]", &format!("[relay]\nmax_record_bytes = {bytes}")),
    );
}

async fn large(harness: &Harness, owner: &str, id: i64, bytes: i32) {
    let insert = "insert into items (owner, id, version, note) values ($1, $2, 1, repeat('x', $3))";
    harness.sql.execute(insert, &[&owner, &id, &bytes]).await.expect("a large row");
}

/// Waits for `count` records in the dead-letter topic, dead letters and notes.
async fn records(harness: &Harness, count: usize) -> Vec<Event> {
    let topic = harness.dead_letter_topic();
    eventually(&format!("{count} records of dead letters"), || async {
        let records = kafka::read(&topic);
        (records.len() >= count).then_some(records)
    })
    .await
}

/// The ids of a key's rows in the order of their first emission.
fn ids(events: &[Event], key: &str) -> Vec<i64> {
    let events = first_emissions(events).remove(key).unwrap_or_default();
    events.iter().map(|event| event.json()["id"].as_i64().expect("id")).collect()
}

/// Checks that the chain of positions is closed, with dead letters and notes and without re-emitted rows. Returns its
/// number of transactions.
fn whole_chain(harness: &Harness) -> usize {
    let mut all = kafka::read(&harness.topic());
    all.extend(kafka::read(&harness.dead_letter_topic()));
    all.retain(|event| !event.header("pg_position").is_empty());
    chain(&all)
}

#[tokio::test]
async fn a_released_key_is_emitted_in_order_before_anything_later() {
    let mut harness = Harness::new("release").await;
    limit(&harness, 5000);
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    large(&harness, "a", 2, 9000).await;
    harness.row("a", 3, 1, "made").await;
    harness.row("b", 4, 1, "made").await;
    records(&harness, 2).await;
    relay.kill();
    // The routes no longer have the cause; the key is still halted.
    limit(&harness, 20_000);
    let relay = harness.streaming().await;
    harness.row("a", 5, 1, "made").await;
    records(&harness, 3).await;
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);

    let listed = text(&cdc_relay(&harness, &["dead-letters"]));
    assert!(listed.contains("bytes; 5000 are allowed"), "{listed}");
    assert!(
        listed.contains(&format!("--source it --destination topic:{} --key=a", harness.topic())),
        "{listed}"
    );
    let message = release(&harness, &["--source", "it", "--key", "a"], 0);
    assert!(message.contains("released; 3 rows emitted"), "{message}");
    harness.row("a", 6, 1, "made").await;
    let events = distinct(&harness.topic(), 6).await;
    assert_eq!(ids(&events, "a"), [1, 2, 3, 5, 6]);
    let again = events.iter().find(|event| event.header("ce_id") == "it/items/a/2/1").expect("the large row");
    assert_eq!(again.header("pg_position"), "");
    assert_eq!(again.header("ce_type"), "item.made.v1");
    assert_eq!(again.json()["note"].as_str().map(str::len), Some(9000));
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 0.0);
    harness.confirmed().await;
    // Six rows and the release.
    assert_eq!(whole_chain(&harness), 7);
    let output = cdc_relay(&harness, &["dead-letters"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    // A new relay knows this from the topic alone.
    relay.kill();
    let relay = harness.streaming().await;
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 0.0);
    harness.row("a", 7, 1, "made").await;
    assert_eq!(ids(&distinct(&harness.topic(), 7).await, "a"), [1, 2, 3, 5, 6, 7]);
    drop(relay);
}

#[tokio::test]
async fn a_row_that_failed_by_its_cast_is_emitted_once_the_cast_is_gone_and_another_key_waits_on() {
    let mut harness = Harness::new("cast").await;
    let good = harness.default_routes();
    let cast = good.replacen(
        "type = \"item.{kind}.v1\"\n",
        "type = \"item.{kind}.v1\"\ncast = { note = \"number\" }\n",
        1,
    );
    harness.routes(&cast);
    let relay = harness.streaming().await;
    for (owner, id, note) in [("a", 1, "x"), ("b", 2, "y"), ("a", 3, "3"), ("b", 4, "4"), ("c", 5, "5")] {
        let insert = "insert into items (owner, id, version, note) values ($1, $2, 1, $3)";
        harness.sql.execute(insert, &[&owner, &i64::from(id), &note]).await.expect("a row");
    }
    records(&harness, 4).await;
    relay.kill();
    harness.routes(&good);
    let relay = harness.streaming().await;
    let message = release(&harness, &["--key", "a", "--json"], 0);
    let note: serde_json::Value =
        serde_json::from_str(message.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&note["key"], &note["emitted"], &note["release"]), (&"a".into(), &2.into(), &true.into()));
    harness.row("b", 6, 1, "made").await;
    harness.row("a", 7, 1, "made").await;
    let events = distinct(&harness.topic(), 4).await;
    assert_eq!((ids(&events, "a"), ids(&events, "b")), (vec![1, 3, 7], vec![]));
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);
    let listed = cdc_relay(&harness, &["dead-letters", "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("one line of JSON");
    assert_eq!(
        (&line["key"], &line["dead_letters"], &line["table"]),
        (&"b".into(), &3.into(), &"public.items".into())
    );
    // The command refuses a key that is not halted, and lists the halted ones.
    let message = release(&harness, &["--key", "nobody"], 2);
    assert!(message.contains("key b towards topic:"), "{message}");
    release(&harness, &["--all"], 0);
    assert_eq!(ids(&distinct(&harness.topic(), 7).await, "b"), [2, 4, 6]);
    harness.confirmed().await;
    whole_chain(&harness);
    drop(relay);
}

#[tokio::test]
async fn without_a_relay_the_next_start_releases_before_anything_later() {
    let mut harness = Harness::new("asleep").await;
    limit(&harness, 5000);
    let relay = harness.streaming().await;
    large(&harness, "a", 1, 9000).await;
    harness.row("a", 2, 1, "made").await;
    records(&harness, 2).await;
    harness.confirmed().await;
    relay.kill();
    harness.slot_is_free().await;
    limit(&harness, 20_000);
    harness.row("a", 3, 1, "made").await;
    let message = release(&harness, &["--key", "a"], 1);
    assert!(message.contains("no relay reads the slot"), "{message}");
    harness.row("a", 4, 1, "made").await;
    let relay = harness.streaming().await;
    let events = distinct(&harness.topic(), 4).await;
    assert_eq!(ids(&events, "a"), [1, 2, 3, 4]);
    harness.confirmed().await;
    whole_chain(&harness);
    drop(relay);
}

#[tokio::test]
async fn a_dead_letter_that_still_fails_keeps_its_key_from_there_on() {
    let mut harness = Harness::new("still").await;
    limit(&harness, 5000);
    let relay = harness.streaming().await;
    for (id, bytes) in [(1, 3000), (2, 10), (3, 15_000), (4, 10)] {
        large(&harness, "a", id, bytes).await;
    }
    records(&harness, 4).await;
    relay.kill();
    limit(&harness, 10_000);
    let relay = harness.streaming().await;
    let message = release(&harness, &["--key", "a"], 1);
    assert!(
        message.contains("stays halted; 2 rows emitted") && message.contains("10000 are allowed"),
        "{message}"
    );
    harness.row("a", 5, 1, "made").await;
    // Four dead letters, two notes, and the row that follows.
    records(&harness, 7).await;
    assert_eq!(ids(&distinct(&harness.topic(), 2).await, "a"), [1, 2]);
    // The same after a start, which knows only the topic.
    relay.kill();
    let relay = harness.streaming().await;
    let line = cdc_relay(&harness, &["dead-letters", "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&line.stdout).expect("one line of JSON");
    assert_eq!((&line["dead_letters"], &line["id"]), (&3.into(), &"it/items/a/3/1".into()));
    let message = release(&harness, &["--key", "a", "--skip"], 0);
    assert!(message.contains("2 rows emitted, 1 skipped"), "{message}");
    harness.row("a", 6, 1, "made").await;
    assert_eq!(ids(&distinct(&harness.topic(), 5).await, "a"), [1, 2, 4, 5, 6]);
    // The key is halted once more in the same session: the earlier dead letters are done.
    large(&harness, "a", 7, 15_000).await;
    harness.row("a", 8, 1, "made").await;
    harness.confirmed().await;
    let message = release(&harness, &["--key", "a", "--skip"], 0);
    assert!(message.contains("1 row emitted, 1 skipped"), "{message}");
    harness.confirmed().await;
    whole_chain(&harness);
    drop(relay);
}

#[tokio::test]
async fn a_value_missing_in_the_wal_is_emitted_from_the_table_while_it_is_the_same_version() {
    let mut harness = Harness::new("present").await;
    let relay = harness.streaming().await;
    for owner in ["a", "b"] {
        let large = "insert into items (owner, id, version, note)
                     select $1, 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
        harness.sql.execute(large, &[&owner]).await.expect("a large row");
        harness
            .sql
            .execute("update items set version = 2 where owner = $1", &[&owner])
            .await
            .expect("update");
    }
    // Two versions of b are dead letters, and the table has the later one.
    harness.sql.batch_execute("update items set version = 3 where owner = 'b'").await.expect("update");
    records(&harness, 3).await;
    release(&harness, &["--key", "a"], 0);
    let message = release(&harness, &["--key", "b"], 1);
    assert!(message.contains("the row has changed since"), "{message}");
    release(&harness, &["--key", "b", "--skip"], 0);
    let events = distinct(&harness.topic(), 4).await;
    let versions = |key: &str| {
        let events = first_emissions(&events).remove(key).unwrap_or_default();
        let version =
            |event: &Event| (event.json()["version"].as_i64(), event.json()["note"].as_str().map(str::len));
        events.iter().map(version).collect::<Vec<_>>()
    };
    assert_eq!(versions("a"), [(Some(1), Some(12_800)), (Some(2), Some(12_800))]);
    assert_eq!(versions("b"), [(Some(1), Some(12_800)), (Some(3), Some(12_800))]);
    drop(relay);
}

/// Commits rows of a key, one after the other, until it is stopped. Returns their number.
async fn load(url: String, first: i64, stop: Arc<AtomicBool>) -> i64 {
    let sql = connect(&url).await;
    let insert =
        sql.prepare("insert into items (owner, id, version) values ('a', $1, 1)").await.expect("statement");
    let mut id = first;
    while !stop.load(Ordering::Relaxed) {
        sql.execute(&insert, &[&id]).await.expect("commit");
        id += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    id - first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_under_load_and_kills_loses_and_reorders_nothing() {
    let mut harness = Harness::new("kills").await;
    const DEAD_LETTERS: i64 = 600;
    /// The rows of each release, during which the relay is killed.
    const MOMENTS: [usize; 5] = [0, 1, 50, 300, 599];
    let mut next = 0;
    for moment in MOMENTS {
        limit(&harness, 5000);
        let relay = harness.streaming().await;
        large(&harness, "a", next, 9000).await;
        let follow = "insert into items (owner, id, version) select 'a', $1 + n, 1 from generate_series(1, $2::int8) n";
        harness.sql.execute(follow, &[&next, &(DEAD_LETTERS - 1)]).await.expect("rows");
        harness.confirmed().await;
        relay.kill();
        limit(&harness, 20_000);
        let relay = harness.streaming().await;
        let stop = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(load(harness.url.clone(), next + DEAD_LETTERS, Arc::clone(&stop)));
        let before = ids(&kafka::read(&harness.topic()), "a").len();
        // The release may be complete by then or not.
        cdc_relay(&harness, &["release", "--key", "a", "--timeout", "0"]);
        eventually("the moment to kill", || async {
            (kafka::read(&harness.topic()).len() >= before + moment).then_some(())
        })
        .await;
        relay.kill();
        let relay = harness.streaming().await;
        stop.store(true, Ordering::Relaxed);
        next += DEAD_LETTERS + load.await.expect("load");
        let events = distinct(&harness.topic(), next as usize).await;
        assert!(ids(&events, "a").into_iter().eq(0..next), "killed after {moment}");
        harness.confirmed().await;
        assert_eq!(relay.metric("cdc_relay_halted_keys"), 0.0);
        relay.kill();
    }
    whole_chain(&harness);
}
