//! Tests bytes that are no UTF-8.
//!
//! * The type "char" has them above 0x7F. Postgres prints them as they are before 15, and as `\351` since.
//! * These tests run against 14 and against a newer server.

use crate::harness::{Harness, eventually};
use crate::kafka::{self, Event, distinct};
use crate::release::{cdc_relay, text};

const SCHEMA: &str = r#"
    create type pair as (a "char", b text);
    create table marks (c "char" primary key, version int not null default 1, duo pair, several "char"[], note text);
    alter table marks alter note set storage external;
    create publication events for table marks with (publish = 'insert, update');"#;

async fn harness(test: &str, relay: &str, more: &str) -> Harness {
    let harness = Harness::bare(test).await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    let topic = harness.topic();
    harness.routes_of(
        relay,
        &format!(
            r#"
[[sources.tables]]
name = "marks"
id = "{{c}}/{{version}}"
subject = "{{c}}"
headers = {{ duo = "{{duo}}" }}
{more}

[[sources.tables.routes]]
topic = "{topic}"
type = "mark"
"#
        ),
    );
    harness
}

async fn sql(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.expect(sql);
}

/// Whether the server prints the byte itself.
async fn prints_bytes(harness: &Harness) -> bool {
    let query = "select current_setting('server_version_num')::int < 150000";
    harness.sql.query_one(query, &[]).await.expect("version").get(0)
}

/// A newer server's backslash makes it quote the member of a composite type.
async fn duo(harness: &Harness) -> &'static str {
    if prints_bytes(harness).await { r"(\351,é)" } else { r#"("\\351",é)"# }
}

#[tokio::test]
async fn a_byte_that_is_no_utf_8_is_emitted_as_newer_servers_print_it() {
    let mut harness = harness("bytes", "", "").await;
    let relay = harness.streaming().await;
    let high = r#"(-23)::"char""#;
    sql(&harness, &format!("insert into marks values ({high}, 1, row({high}, 'é'), array[{high}, 'x'])"))
        .await;
    sql(&harness, "insert into marks values ('x')").await;
    let emitted = distinct(&harness.topic(), 2).await;
    let event = emitted.iter().find(|event| event.header("ce_id") == r"\351/1").expect("the mark");
    assert_eq!((event.key.as_str(), event.header("ce_subject")), (r"\351", r"\351"));
    let duo = duo(&harness).await;
    assert_eq!(event.header("duo"), duo);
    let body = event.json();
    assert_eq!((&body["c"], &body["duo"]), (&r"\351".into(), &duo.into()));
    assert_eq!(body["several"], serde_json::json!([r"\351", "x"]));
    assert_eq!(relay.metric("cdc_relay_sessions_total"), 1.0);
    drop(relay);
}

/// A dead letter is always readable: by the next relay, and by people.
#[tokio::test]
async fn a_dead_letter_with_such_bytes_is_readable_and_is_released() {
    let mut harness = harness("deadbytes", "max_record_bytes = 4000", "").await;
    let relay = harness.streaming().await;
    let high = r#"(-23)::"char""#;
    sql(
        &harness,
        &format!("insert into marks values ({high}, 1, row({high}, 'é'), null, repeat('x', 5000))"),
    )
    .await;
    sql(&harness, r#"insert into marks values ((-22)::"char")"#).await;
    sql(&harness, &format!("update marks set version = 2, note = '' where c = {high}")).await;
    let topic = harness.dead_letter_topic();
    let dead_letters: Vec<serde_json::Value> = eventually("two dead letters", || async {
        let dead_letters = kafka::read(&topic);
        (dead_letters.len() >= 2).then(|| dead_letters.iter().map(Event::json).collect())
    })
    .await;
    for dead_letter in &dead_letters {
        assert_eq!(
            (&dead_letter["key"], &dead_letter["row"]["c"]),
            (&r"\351".into(), &r"\351".into()),
            "{dead_letter}"
        );
    }
    let old = prints_bytes(&harness).await;
    assert_eq!(dead_letters[0].get("bytes").and_then(|names| names.as_str()), old.then_some("c,duo"));
    assert_eq!(distinct(&harness.topic(), 1).await[0].key, r"\352", "another byte is another key");
    relay.kill();

    let routes = std::env::temp_dir().join(&harness.name).join("relay.toml");
    let text_of = std::fs::read_to_string(&routes).expect("routes");
    harness.routes(&text_of.replace("max_record_bytes = 4000", ""));
    let relay = harness.streaming().await;
    let listed = cdc_relay(&harness, &["dead-letters"]);
    assert!(text(&listed).contains(r"--key='\351'"), "{}", text(&listed));
    let released = cdc_relay(&harness, &["release", "--key", r"\351"]);
    assert!(text(&released).contains("released; 2 rows emitted"), "{}", text(&released));
    let emitted = distinct(&harness.topic(), 3).await;
    let first = emitted.iter().find(|event| event.header("ce_id") == r"\351/1").expect("the first");
    assert_eq!(first.json()["duo"], duo(&harness).await);
    drop(relay);
}

/// The snapshot reads existing rows by their primary key.
#[tokio::test]
async fn existing_rows_with_such_keys_are_emitted_each() {
    let mut harness = harness("snapbytes", "", "snapshot = true").await;
    sql(&harness, r#"insert into marks (c) select (n - 256)::"char" from generate_series(128, 255) n"#).await;
    let relay = harness.streaming().await;
    let emitted = distinct(&harness.topic(), 128).await;
    assert!(emitted.iter().all(|event| event.key.starts_with('\\') && event.key.len() == 4));
    drop(relay);
}
