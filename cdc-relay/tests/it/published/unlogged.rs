//! Tests tables that were unlogged for a while: the WAL lacks the rows of that time.

use super::{refused_in_time, resnapshot, run, version};
use crate::harness::{Harness, Relay};
use crate::kafka;

/// The WAL lacks the rows of an unlogged table. The server refuses to make a table unlogged that a publication has by
/// name.
const UNLOGGED: &str =
    "alter table t set unlogged; insert into t values (7, 'lost'); alter table t set logged";
const BY_SCHEMA: [(i32, &str); 3] = [
    (
        14,
        "create table t (id int primary key, note text);
          create publication p for all tables with (publish = 'insert, update')",
    ),
    (
        15,
        "create table t (id int primary key, note text);
          create publication p for tables in schema public with (publish = 'insert, update')",
    ),
    (
        14,
        "create table r (id int primary key, note text) partition by range (id);
          create table t partition of r for values from (0) to (100);
          create publication p for table r with (publish = 'insert, update', publish_via_partition_root)",
    ),
];

/// A relay that streams a table after its rows were rewritten, which is no reason to refuse; and the table's name.
async fn rewritten(schema: &str) -> (Harness, Relay, &'static str) {
    let mut harness = Harness::bare("unlogged").await;
    run(&harness, schema).await;
    let table = if schema.contains("table r") { "r" } else { "t" };
    let routes = crate::harm::five_lines(&harness, &format!("{{ name = \"{table}\" }}"));
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.streaming().await;
    run(&harness, "insert into t values (1, 'a')").await;
    harness.confirmed().await;
    run(&harness, "vacuum full t").await;
    run(&harness, "cluster t using t_pkey").await;
    run(&harness, &format!("begin; alter table {table} add column more text; truncate t; commit")).await;
    harness.publication_checked().await;
    relay.streams().await;
    (harness, relay, table)
}

/// Checks the reason of a refusal, and that a resnapshot emits the row that the WAL lacks.
async fn unlogged((harness, relay): (&Harness, &Relay), (schema, table): (&str, &str), report: &str) {
    assert!(report.contains("unlogged"), "{schema}: {report}");
    resnapshot(harness);
    relay.streams().await;
    let events = kafka::read(&format!("{}.{table}", harness.name));
    assert!(events.iter().any(|event| event.value.contains("lost")), "{schema}");
}

/// The schemas that the shared server takes.
async fn schemas() -> impl Iterator<Item = &'static str> {
    let version = version(&Harness::bare("unlogged").await).await;
    BY_SCHEMA.into_iter().filter(move |(from, _)| version >= *from).map(|(_, schema)| schema)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_unlogged_for_a_while_is_noticed() {
    for schema in schemas().await {
        let (harness, relay, table) = rewritten(schema).await;
        run(&harness, UNLOGGED).await;
        let report = refused_in_time(&relay, schema).await;
        unlogged((&harness, &relay), (schema, table), &report).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_unlogged_while_the_relay_was_away_is_noticed() {
    for schema in schemas().await {
        let (mut harness, relay, table) = rewritten(schema).await;
        assert_eq!(relay.stop().await, Some(0));
        harness.slot_is_free().await;
        for sql in ["vacuum full t", "truncate t"] {
            run(&harness, sql).await;
        }
        let relay = harness.streaming().await;
        assert_eq!(relay.stop().await, Some(0));
        harness.slot_is_free().await;
        run(&harness, UNLOGGED).await;
        let relay = harness.start();
        let report = relay.state("refused").await;
        unlogged((&harness, &relay), (schema, table), &report).await;
    }
}
