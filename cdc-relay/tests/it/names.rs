//! Tests names that SQL, the shell or the routes file would read as something else, and patterns of names.

use crate::harness::{Harness, eventually};
use crate::kafka;

/// The statements in backticks that a refusal prints.
pub fn statements(text: &str) -> Vec<String> {
    let keywords = ["create ", "alter ", "drop ", "grant ", "select "];
    let quoted = text.split('`').skip(1).step_by(2);
    // The status is JSON.
    let statements = quoted.filter(|part| keywords.iter().any(|keyword| part.starts_with(keyword)));
    statements.map(|statement| statement.replace("\\\"", "\"")).collect()
}

/// Runs the statements that a refusal prints.
async fn obeyed(harness: &Harness, relay: &crate::harness::Relay) -> Vec<String> {
    let printed = statements(&relay.state("refused").await);
    assert!(!printed.is_empty(), "{:?}", relay.get("/health"));
    for statement in &printed {
        harness.sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    printed
}

/// A routes file of one source without topics of its own.
pub fn routes(harness: &Harness, source: &str) {
    let name = &harness.name;
    harness.routes(&format!(
        "relay.state_topic = \"{name}.state\"\nrelay.dead_letter_topic = \"{name}.dead\"\n\
         [[sources]]\nname = \"{name}\"\nurl = \"${{IT_URL}}\"\nslot = \"{name}\"\n{source}\n"
    ));
}

pub async fn arrived(topic: &str, count: usize) -> Vec<kafka::Event> {
    eventually(&format!("{count} records in {topic}"), || async {
        Some(kafka::read(topic)).filter(|events| events.len() >= count)
    })
    .await
}

const TABLES: &str = r#"
    create schema "order"; create schema "my.schema";
    create table "order"."Order Items" (id int primary key, "weird:col" text, "a|b" text, "x}y" jsonb);
    create table "user" (id int primary key, "select" text);
    create table "my.schema"."it's ""here""" (id int primary key, "weird:col" text, "a|b" text, "x}y" jsonb);"#;

#[tokio::test]
async fn statements_in_a_refusal_are_quoted_as_the_server_reads_them() {
    let mut harness = Harness::bare("quoted").await;
    harness.sql.batch_execute(TABLES).await.expect("tables");
    let topic = format!("{}.all", harness.name);
    routes(
        &harness,
        &format!(
            "publication = \"Order\"\ntables = [{{ name = \"order.Order Items\", topic = \"{topic}\" }}, \
             {{ name = \"user\", topic = \"{topic}\" }}]"
        ),
    );
    let relay = harness.start();
    let statements_run = obeyed(&harness, &relay).await;
    relay.streams().await;
    assert!(
        statements_run[0].starts_with(r#"create publication "Order" for table "order"."Order Items""#),
        "{statements_run:?}"
    );
    let insert =
        r#"insert into "order"."Order Items" values (1, 'w', 'p', '{}'); insert into "user" values (1, 's')"#;
    harness.sql.batch_execute(insert).await.expect("rows");
    arrived(&topic, 2).await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    harness.sql.batch_execute(r#"alter publication "Order" drop table "user""#).await.expect("drop");
    let relay = harness.start();
    let added = obeyed(&harness, &relay).await;
    assert_eq!(added, [r#"alter publication "Order" add table public."user""#]);
    // The rows that the table sent in between are unknown: the relay emits every row again first.
    eventually("the refusal of the gap", || async {
        relay.get("/health").filter(|report| report.contains("cdc-relay resnapshot"))
    })
    .await;
    assert_eq!(relay.stop().await, Some(0));
    let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("resnapshot");
    assert!(resnapshot.status.success(), "{resnapshot:?}");
    harness.streaming().await.stop().await;
}

#[tokio::test]
async fn every_name_that_a_database_may_have_can_be_routed() {
    let mut harness = Harness::bare("routable").await;
    harness.sql.batch_execute(TABLES).await.expect("tables");
    let topic = format!("{}.all", harness.name);
    routes(
        &harness,
        &format!(
            r#"
[[sources.tables]]
name = "\"my.schema\".\"it's \"\"here\"\"\""
key = '{{"weird:col"}}/{{"a|b"|none}}'
topic = "{topic}"
snapshot = true
[sources.tables.body]
column = '{{"weird:col"}}'
json = '{{"x}}y":json}}'"#
        ),
    );
    let insert = r#"insert into "my.schema"."it's ""here""" values"#;
    harness.sql.batch_execute(&format!("{insert} (0, 'before', null, '[]')")).await.expect("a row");
    let relay = harness.streaming().await;
    arrived(&topic, 1).await;
    harness.sql.batch_execute(&format!("{insert} (1, 'after', 'p', '{{}}')")).await.expect("a row");
    let events = arrived(&topic, 2).await;
    let mut keys: Vec<&str> = events.iter().map(|event| event.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["after/p", "before/none"]);
    let after = events.iter().find(|event| event.key == "after/p").expect("the second row");
    assert_eq!(after.json(), serde_json::json!({"column": "after", "json": {}}));
    drop(relay);
}

/// The table that a migration makes belongs to the source by its name; the other one is ignored by its name.
#[tokio::test]
async fn a_new_table_of_all_tables_is_routed_by_a_pattern_and_stops_nothing() {
    let mut harness = Harness::bare("patterns").await;
    let tables = "create schema audit; create table audit.log (id int primary key);
                  create table orders (id int primary key);
                  create publication everything for all tables with (publish = 'insert, update')";
    harness.sql.batch_execute(tables).await.expect("tables");
    routes(
        &harness,
        "publication = \"everything\"\nignore = [\"*_tmp\"]\n\
         tables = [{ name = \"orders\" }, { name = \"audit.*\" }]",
    );
    let relay = harness.streaming().await;
    let migration = "create table audit.added (id int primary key); insert into audit.added values (7);
                     create table swap_tmp (id int primary key); insert into swap_tmp values (1);
                     insert into audit.log values (1); insert into orders values (1)";
    harness.sql.batch_execute(migration).await.expect("a migration");
    for (table, id) in [("audit.log", 1), ("orders", 1), ("audit.added", 7)] {
        let events = arrived(&format!("{}.{table}", harness.name), 1).await;
        assert_eq!(events[0].json(), serde_json::json!({ "id": id }), "{table}");
    }
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let relay = harness.streaming().await;
    harness.sql.batch_execute("insert into audit.added values (8)").await.expect("a row");
    arrived(&format!("{}.audit.added", harness.name), 2).await;
    assert_eq!(kafka::read(&harness.dead_letter_topic()).len(), 0);
    drop(relay);
}

/// A pattern that matches nothing, or may be meant in two ways, is a mistake that an operator has to correct.
#[tokio::test]
async fn a_pattern_that_means_nothing_is_refused() {
    let tables = "create schema audit; create table audit.log (id int primary key);
                  create table orders (id int primary key);
                  create publication everything for all tables with (publish = 'insert, update')";
    for (index, (entries, reason)) in [
        (
            r#"tables = [{ name = "adit.*" }], ignore = ["orders", "audit.*"]"#,
            "`adit.*` matches no published table",
        ),
        (
            r#"tables = [{ name = "audit.*" }, { name = "*.l*" }], ignore = ["orders"]"#,
            "matches two patterns",
        ),
        (r#"tables = [{ name = "*.*" }], ignore = ["order"]"#, "did you mean"),
        (r#"tables = [{ name = "*.*" }], ignore = ["adit.*"]"#, "there is no schema `adit`"),
    ]
    .iter()
    .enumerate()
    {
        let mut harness = Harness::bare(&format!("nothing{index}")).await;
        harness.sql.batch_execute(tables).await.expect("tables");
        routes(
            &harness,
            &format!("publication = \"everything\"\n{}", entries.replace("], ignore", "]\nignore")),
        );
        let relay = harness.start();
        let report = relay.state("refused").await;
        assert!(report.contains(reason), "{entries}: {report}");
        assert_eq!(harness.command("doctor").output().expect("doctor").status.code(), Some(1), "{entries}");
        drop(relay);
    }
}
