//! Tests that a row that cannot be emitted halts its own key only, also where its key or the conditions cannot be read.

use crate::harness::{Harness, eventually, server};
use crate::kafka::{self, Event, distinct};
use crate::release::{cdc_relay, text};

/// Orders whose key may be null or empty, and a large column that only a condition needs.
const SCHEMA: &str = "
    create table orders (id bigint primary key, customer text, version int not null default 1, note text);
    alter table orders alter note set storage external;
    create publication events for table orders with (publish = 'insert, update');";

async fn harness(test: &str, key: &str, conditions: &str) -> Harness {
    let harness = Harness::bare(test).await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    routes(&harness, key, conditions);
    harness
}

fn routes(harness: &Harness, key: &str, conditions: &str) {
    let topic = harness.topic();
    harness.routes_of(
        "",
        &format!(
            r#"
[[sources.tables]]
name = "orders"
key = "{key}"
id = "{{id}}/{{version}}"

[[sources.tables.routes]]
topic = "{topic}"
type = "order"
omit = ["note"]
{conditions}
"#
        ),
    );
}

async fn sql(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.expect(sql);
}

async fn emitted_ids(harness: &Harness, count: usize) -> Vec<String> {
    let mut ids: Vec<String> = distinct(&harness.topic(), count)
        .await
        .iter()
        .map(|event| event.header("ce_id").to_owned())
        .collect();
    ids.sort_unstable();
    ids
}

/// Waits for `count` dead letters.
async fn dead_letters(harness: &Harness, count: usize) -> Vec<serde_json::Value> {
    let topic = harness.dead_letter_topic();
    eventually(&format!("{count} dead letters"), || async {
        let dead_letters = kafka::read(&topic);
        (dead_letters.len() >= count).then(|| dead_letters.iter().map(Event::json).collect())
    })
    .await
}

fn listed(harness: &Harness) -> Vec<serde_json::Value> {
    let output = cdc_relay(harness, &["dead-letters", "--json"]);
    let lines = String::from_utf8_lossy(&output.stdout);
    lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Runs the command that `dead-letters` prints for a key.
fn release(harness: &Harness, line: &serde_json::Value, code: i32) -> String {
    let command = line["release"].as_str().expect("a command").to_owned();
    let arguments = command.strip_prefix("cdc-relay ").expect("our command");
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!("exec \"$PROGRAM\" {arguments}"))
        .env("PROGRAM", env!("CARGO_BIN_EXE_cdc-relay"))
        .env("KAFKA_CONFIG", server("KAFKA_ADMIN_CONFIG"))
        .env("AMQP_URL", &harness.amqp_url)
        .env("IT_URL", &harness.url)
        .output()
        .expect("the command");
    assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output));
    text(&output)
}

#[tokio::test]
async fn rows_without_a_key_halt_nothing_but_themselves_and_are_released_one_by_one() {
    let mut harness = harness("nokey", "{customer}", "").await;
    let relay = harness.streaming().await;
    sql(&harness, "insert into orders values (1, null), (2, 'b'), (3, null), (4, '')").await;
    // A row that gets its key later goes on: it never had another key.
    sql(
        &harness,
        "update orders set customer = 'c', version = 2 where id = 1; insert into orders values (5, 'b')",
    )
    .await;
    assert_eq!(emitted_ids(&harness, 4).await, ["1/2", "2/1", "4/1", "5/1"]);
    let dead = dead_letters(&harness, 2).await;
    assert!(dead.iter().all(|dead_letter| dead_letter["key"].is_null()), "{dead:?}");
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 2.0);
    harness.confirmed().await;
    relay.kill();

    // The routes no longer have the cause.
    routes(&harness, "{customer|guest}", "");
    let relay = harness.streaming().await;
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 2.0, "the dead-letter topic alone has the halted keys");
    sql(&harness, "insert into orders values (6, null)").await;
    emitted_ids(&harness, 5).await;
    let lines = listed(&harness);
    let rows: Vec<&str> = lines.iter().filter_map(|line| line["keyless"].as_str()).collect();
    assert_eq!(rows, [r#"public.orders["1"]"#, r#"public.orders["3"]"#]);
    let message = release(&harness, &lines[1], 0);
    assert!(message.contains("released; 1 row emitted"), "{message}");
    assert_eq!(emitted_ids(&harness, 6).await, ["1/2", "2/1", "3/1", "4/1", "5/1", "6/1"]);
    assert_eq!(listed(&harness).len(), 1, "the other one waits");
    release(&harness, &listed(&harness)[0], 0);
    assert!(listed(&harness).is_empty());
    drop(relay);
}

#[tokio::test]
async fn an_empty_key_is_a_key() {
    let mut harness = harness("emptykey", "{customer}", "headers = { size = \"{note}\" }").await;
    harness.routes(
        &std::fs::read_to_string(std::env::temp_dir().join(&harness.name).join("relay.toml"))
            .expect("routes")
            .replace("[relay]", "[relay]\nmax_record_bytes = 4000"),
    );
    let relay = harness.streaming().await;
    sql(
        &harness,
        "insert into orders values (1, '', 1, repeat('x', 5000)), (2, 'b', 1, null), (3, '', 1, null)",
    )
    .await;
    assert_eq!(emitted_ids(&harness, 1).await, ["2/1"]);
    let dead = dead_letters(&harness, 2).await;
    assert!(dead.iter().all(|dead_letter| dead_letter["key"] == ""), "{dead:?}");
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);
    harness.confirmed().await;
    relay.kill();
    routes(&harness, "{customer}", "");
    let relay = harness.streaming().await;
    let message = release(&harness, &listed(&harness)[0], 0);
    assert!(message.contains("released; 2 rows emitted"), "{message}");
    assert_eq!(emitted_ids(&harness, 3).await, ["1/1", "2/1", "3/1"]);
    drop(relay);
}

/// The condition of the route needs a value that the WAL lacks after the update.
#[tokio::test]
async fn a_condition_on_a_large_unchanged_value_halts_the_rows_own_key() {
    let when = "when = { note = { not = [\"hidden\"] }, version = [\"1\", \"2\", \"4\"] }";
    let mut harness = harness("whentoast", "{customer}", when).await;
    let relay = harness.streaming().await;
    sql(&harness, "insert into orders values (1, 'a', 1, repeat('x', 9000)), (2, 'b', 1, repeat('y', 9000))")
        .await;
    // Another condition decides without the value.
    sql(&harness, "update orders set version = 3 where id = 2").await;
    sql(&harness, "update orders set version = 2 where id = 1").await;
    sql(&harness, "insert into orders values (3, 'b', 1, 'z'), (4, 'a', 1, 'z')").await;
    assert_eq!(emitted_ids(&harness, 3).await, ["1/1", "2/1", "3/1"]);
    let dead = dead_letters(&harness, 2).await;
    let keys: Vec<&str> = dead.iter().filter_map(|dead_letter| dead_letter["key"].as_str()).collect();
    assert_eq!(keys, ["a", "a"]);
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0);
    // The table still has the value.
    let message = release(&harness, &listed(&harness)[0], 0);
    assert!(message.contains("released; 2 rows emitted"), "{message}");
    assert_eq!(emitted_ids(&harness, 5).await, ["1/1", "1/2", "2/1", "3/1", "4/1"]);
    drop(relay);
}

/// A null is never large, so that a test for null needs no value.
#[tokio::test]
async fn a_large_unchanged_value_is_known_not_to_be_null() {
    let mut harness = harness("notnull", "{customer}", "when = { note = { null = false } }").await;
    let relay = harness.streaming().await;
    sql(&harness, "insert into orders values (1, 'a', 1, repeat('x', 9000)); update orders set version = 2")
        .await;
    assert_eq!(emitted_ids(&harness, 2).await, ["1/1", "1/2"]);
    drop(relay);
}

/// Every update has a large key in the WAL, as the key of the old row.
#[tokio::test]
async fn a_large_unchanged_key_is_known() {
    let mut harness = harness("largekey", "{customer}", "").await;
    sql(
        &harness,
        "alter table orders alter customer set storage external, alter customer set not null;
         alter table orders drop constraint orders_pkey, add primary key (customer, id)",
    )
    .await;
    let relay = harness.streaming().await;
    sql(&harness, "insert into orders values (1, repeat('k', 2300)); update orders set version = 2").await;
    assert_eq!(emitted_ids(&harness, 2).await, ["1/1", "1/2"]);
    assert!(kafka::read(&harness.topic()).iter().all(|event| event.key.len() == 2300));
    drop(relay);
}

/// No event has a null key: a row that gets a key ends none, and a row that loses its key ends that one.
#[tokio::test]
async fn a_key_that_comes_or_goes_ends_the_events_under_the_old_one() {
    let mut harness = harness("keycomes", "{customer}", "deletes = \"tombstone\"").await;
    sql(
        &harness,
        "alter table orders replica identity full;
         alter publication events set (publish = 'insert, update, delete')",
    )
    .await;
    let relay = harness.streaming().await;
    sql(&harness, "insert into orders values (1, null)").await;
    sql(&harness, "update orders set customer = 'a', version = 2").await;
    sql(&harness, "update orders set customer = null, version = 3").await;
    sql(&harness, "update orders set customer = 'b', version = 4").await;
    assert_eq!(emitted_ids(&harness, 3).await, ["1/2", "1/2/tombstone", "1/4"]);
    assert_eq!(dead_letters(&harness, 2).await.len(), 2);
    assert_eq!(relay.metric("cdc_relay_halted_keys"), 1.0, "one row, twice");
    drop(relay);
}
