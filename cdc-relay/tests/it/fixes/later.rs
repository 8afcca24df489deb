//! Tests the fixes for a source that has streamed before its fault.

use super::{Case, database, doctor, fixes};
use crate::harness::Harness;
use crate::names::{arrived, routes, statements};

/// A source that has streamed, and the fault at its next start.
struct Later {
    case: Case,
    sql: &'static str,
    source: &'static str,
}

const ORDERS: &str = "publication = \"chosen\"\ntables = [{ name = \"orders\" }]";

const fn later(name: &'static str, schema: &'static str, sql: &'static str) -> Later {
    Later { case: Case { name, schema, source: ORDERS }, sql, source: ORDERS }
}

const LATER: &[Later] = &[
    Later {
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\", deletes = \"tombstone\" }]",
        ..later(
            "deletes",
            "create table orders (id int primary key, note text);
             create publication chosen for table orders with (publish = 'insert, update')",
            "select 1",
        )
    },
    // The table was never sent: nothing is left to do.
    Later {
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\" }, { name = \"other\" }]",
        ..later(
            "added",
            "create table orders (id int primary key, note text); create table other (id int primary key);
             create publication chosen for table orders with (publish = 'insert, update')",
            "select 1",
        )
    },
    later(
        "taken",
        "create table orders (id int primary key, note text); create table other (id int primary key);
         create publication chosen for table orders with (publish = 'insert, update')",
        "alter publication chosen drop table orders",
    ),
    later(
        "truncates",
        "create table orders (id int primary key, note text);
         create publication chosen for table orders with (publish = 'insert, update')",
        "alter publication chosen set (publish = 'insert, update, truncate')",
    ),
    later(
        "updates",
        "create table orders (id int primary key, note text);
         create publication chosen for table orders with (publish = 'insert, update')",
        "alter publication chosen set (publish = 'insert')",
    ),
    later(
        "gone",
        "create table orders (id int primary key, note text);
         create publication chosen for table orders with (publish = 'insert, update')",
        "drop publication chosen",
    ),
    later(
        "unlogged",
        "create table orders (id int primary key, note text);
         create publication chosen for all tables with (publish = 'insert, update')",
        "alter table orders set unlogged",
    ),
    later(
        "roots",
        "create table orders (id int primary key, note text) partition by range (id);
         create table orders_1 partition of orders for values from (0) to (1000);
         create publication chosen for table orders with (publish = 'insert, update', publish_via_partition_root)",
        "alter publication chosen set (publish_via_partition_root = false)",
    ),
];

/// A database whose source has streamed and then got its fault.
async fn streamed(later: &Later, index: usize) -> Harness {
    let mut harness = database(&later.case, index).await;
    let relay = harness.streaming().await;
    harness.sql.batch_execute("insert into orders values (1)").await.expect("a row");
    arrived(&format!("{}.orders", harness.name), 1).await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    harness.sql.batch_execute(later.sql).await.expect(later.sql);
    routes(&harness, later.source);
    harness
}

#[tokio::test]
async fn each_fix_for_a_source_that_has_streamed_says_what_is_left_to_do() {
    for later in LATER {
        let name = later.case.name;
        let mut harness = streamed(later, 0).await;
        let (code, findings) = doctor(&harness);
        assert_eq!(code, Some(1), "{name}: {findings:#?}");
        let relay = harness.start();
        let report = relay.state("refused").await;
        drop(relay);
        let printed = fixes(&findings);
        assert!(!printed.is_empty(), "{name}: {findings:#?}");
        for (index, fix) in printed.iter().enumerate() {
            let line = findings
                .iter()
                .flat_map(|finding| finding["fix"].as_array().cloned().unwrap_or_default())
                .find(|line| line.as_str().is_some_and(|line| line.starts_with(fix.as_str())))
                .expect("the line of the fix")
                .to_string();
            assert!(
                statements(&report).contains(&fix.trim_end_matches(';').to_owned()),
                "{name}: {fix}: {report}"
            );
            let mut harness = streamed(later, index + 1).await;
            harness.sql.batch_execute(fix).await.unwrap_or_else(|error| panic!("{name}: {fix}: {error:?}"));
            let mut relay = harness.start();
            let report = crate::harness::eventually("an end to starting", || async {
                let report = relay.get("/health")?;
                (report.contains("\"streaming\"") || report.contains("\"refused\"")).then_some(report)
            })
            .await;
            if report.contains("\"refused\"") {
                assert!(line.contains("cdc-relay resnapshot"), "{name}: {line}: {report}");
                assert!(report.contains("cdc-relay resnapshot"), "{name}: {fix}: {report}");
                drop(relay);
                let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("resnapshot");
                assert!(resnapshot.status.success(), "{name}: {fix}: {resnapshot:?}");
                relay = harness.streaming().await;
            }
            let topic = format!("{}.orders", harness.name);
            let before = crate::kafka::read(&topic).len();
            harness.sql.batch_execute("insert into orders values (2)").await.expect("a row");
            arrived(&topic, before + 1).await;
            drop(relay);
            harness.slot_is_free().await;
        }
    }
}
