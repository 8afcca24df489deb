//! Tests that doctor and run judge a database alike, before the first start and after it.

use serde_json::Value;

use crate::harm::{major, run};
use crate::harness::{Harness, Relay, eventually};
use crate::kafka;
use crate::names::{arrived, routes};

struct SetUp {
    name: &'static str,
    from: i32,
    schema: &'static str,
    source: &'static str,
    streams: bool,
}

const fn good(name: &'static str, schema: &'static str, source: &'static str) -> SetUp {
    SetUp { name, from: 14, schema, source, streams: true }
}

const fn bad(name: &'static str, schema: &'static str, source: &'static str) -> SetUp {
    SetUp { streams: false, ..good(name, schema, source) }
}

const SET_UPS: &[SetUp] = &[
    good("the five lines", "create table orders (id int primary key)", "tables = [{ name = \"orders\" }]"),
    good(
        "a domain over a timestamp that is cast",
        "create domain moment as timestamptz; create domain day as date;
         create table orders (id int primary key, at moment, day day)",
        "tables = [{ name = \"orders\", cast = { at = \"epoch_ms\", day = \"epoch_ms\" } }]",
    ),
    good(
        "a domain of a domain as the key",
        "create domain a as bigint check (value > 0); create domain b as a; create table orders (id b primary key)",
        "tables = [{ name = \"orders\", snapshot = true, deletes = \"tombstone\" }]",
    ),
    bad(
        "an enum that is cast as if it were a timestamp",
        "create type mood as enum ('fine'); create table orders (id int primary key, at mood)",
        "tables = [{ name = \"orders\", cast = { at = \"epoch_ms\" } }]",
    ),
    good(
        "a snapshot",
        "create table orders (id int primary key, note text)",
        "tables = [{ name = \"orders\", snapshot = true }]",
    ),
    bad(
        "a snapshot without a primary key",
        "create table orders (id int); alter table orders replica identity full",
        "tables = [{ name = \"orders\", key = \"{id}\", snapshot = true }]",
    ),
    good(
        "no primary key, and no snapshot",
        "create table orders (id int); alter table orders replica identity full",
        "tables = [{ name = \"orders\", key = \"{id}\" }]",
    ),
    bad("no identity", "create table orders (id int)", "tables = [{ name = \"orders\", key = \"{id}\" }]"),
    bad(
        "a publication that is not there",
        "create table orders (id int primary key)",
        "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
    ),
    bad(
        "a publication without updates",
        "create table orders (id int primary key); create publication chosen for table orders with (publish = 'insert')",
        "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
    ),
    bad(
        "a publication of truncates",
        "create table orders (id int primary key); create publication chosen for table orders",
        "publication = \"chosen\"\ntables = [{ name = \"orders\", deletes = \"tombstone\" }]",
    ),
    bad(
        "a table that is published and has no routes",
        "create table orders (id int primary key); create table other (id int primary key);
         create publication chosen for table orders, other with (publish = 'insert, update')",
        "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
    ),
    good(
        "everything, by a pattern",
        "create table orders (id int primary key);
         create publication chosen for all tables with (publish = 'insert, update')",
        "publication = \"chosen\"\ntables = [{ name = \"order*\" }]",
    ),
    bad(
        "a pattern that matches nothing",
        "create table orders (id int primary key);
         create publication chosen for all tables with (publish = 'insert, update')",
        "publication = \"chosen\"\ntables = [{ name = \"orders\" }, { name = \"none*\" }]",
    ),
    bad(
        "a literal that is never printed so",
        "create table orders (id int primary key, note char(10))",
        "tables = [{ name = \"orders\", when = { note = [\"paid\"] } }]",
    ),
    bad(
        "a column that is not there",
        "create table orders (id int primary key)",
        "tables = [{ name = \"orders\", key = \"{ident}\" }]",
    ),
    bad(
        "a view",
        "create table rows (id int primary key); create view orders as select * from rows",
        "tables = [{ name = \"orders\", key = \"{id}\" }]",
    ),
    SetUp {
        from: 15,
        ..bad(
            "a row filter, and routes without `deletes`",
            "create table orders (id int primary key);
             create publication chosen for table orders where (id > 0) with (publish = 'insert, update')",
            "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
        )
    },
];

/// Whether doctor finds no failure, and its failures. `slot.wal_status` is left out: how long the server keeps the WAL
/// of an idle slot depends on other tests.
fn doctor(harness: &Harness) -> (bool, Vec<Value>) {
    let output = harness.command("doctor").arg("--json").output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sections = report["sections"].as_array().expect("sections").clone();
    let findings =
        sections.iter().flat_map(|section| section["findings"].as_array().expect("findings").clone());
    let bad = findings.filter(|finding| {
        finding["severity"].as_str().is_some_and(|s| s.starts_with("would"))
            && finding["check"] != "slot.wal_status"
    });
    let bad: Vec<Value> = bad.collect();
    (bad.is_empty(), bad)
}

/// Whether the relay streams, and its report.
async fn decided(relay: &Relay) -> (bool, String) {
    eventually("a decision", || async {
        let report = relay.get("/health")?;
        let is = |state: &str| report.contains(&format!("\"state\":\"{state}\""));
        (is("streaming") || is("refused")).then(|| (is("streaming"), report.clone()))
    })
    .await
}

/// Fails unless run reports each of doctor's findings in the same words.
fn assert_reported(report: &str, findings: &[Value], what: &str) {
    let report: Value =
        serde_json::from_str(report.rsplit("\r\n\r\n").next().expect("a body")).expect("JSON");
    let report = report.to_string();
    for finding in findings {
        let found = finding["found"].to_string();
        assert!(report.contains(found.trim_matches('"')), "{what}: {finding:#}\n{report}");
    }
}

#[tokio::test]
async fn doctor_and_run_judge_a_database_alike() {
    for set_up in SET_UPS {
        let mut harness = Harness::bare("agree").await;
        if major(&harness).await < set_up.from {
            continue;
        }
        for statement in set_up.schema.split(';') {
            run(&harness, statement).await;
        }
        routes(&harness, set_up.source);
        let (fine, findings) = doctor(&harness);
        assert_eq!(fine, set_up.streams, "{}: {findings:#?}", set_up.name);
        let relay = harness.start();
        let (streams, report) = decided(&relay).await;
        assert_eq!(streams, set_up.streams, "{}: {report}", set_up.name);
        assert_reported(&report, &findings, set_up.name);
        if streams {
            assert_eq!(relay.stop().await, Some(0));
            harness.slot_is_free().await;
        } else {
            drop(relay);
        }
        let (fine, findings) = doctor(&harness);
        assert_eq!(fine, set_up.streams, "{}, after a start: {findings:#?}", set_up.name);
    }
}

/// A change of a source that has streamed, and whether it streams on.
const LATER: &[(&str, bool)] = &[
    ("select 1", true),
    ("create table other (id int primary key)", true),
    ("alter table orders add column more text", true),
    ("alter publication chosen drop table orders; alter publication chosen add table orders", false),
    (
        "alter publication chosen set (publish = 'update'); alter publication chosen set (publish = 'insert, update')",
        false,
    ),
    (
        "drop publication chosen; create publication chosen for table orders with (publish = 'insert, update')",
        false,
    ),
    ("drop publication chosen", false),
    ("alter table orders rename note to remark", false),
    ("alter table orders drop constraint orders_pkey", false),
];

#[tokio::test]
async fn doctor_and_run_judge_a_source_alike_that_has_streamed() {
    for (change, streams_on) in LATER {
        let mut harness = Harness::bare("agreelater").await;
        run(&harness, "create table orders (id int primary key, note text)").await;
        run(&harness, "create publication chosen for table orders with (publish = 'insert, update')").await;
        routes(
            &harness,
            "publication = \"chosen\"\ntables = [{ name = \"orders\", headers = { note = \"{note}\" } }]",
        );
        let relay = harness.streaming().await;
        run(&harness, "insert into orders values (1)").await;
        arrived(&format!("{}.orders", harness.name), 1).await;
        assert_eq!(relay.stop().await, Some(0));
        harness.slot_is_free().await;
        run(&harness, change).await;
        let (fine, before) = doctor(&harness);
        let relay = harness.start();
        let (streams, report) = decided(&relay).await;
        assert_eq!(streams, *streams_on, "{change}: {report}");
        assert_eq!(fine, streams, "{change}: {before:#?}\n{report}");
        assert_reported(
            &report,
            &before.iter().filter(|f| f["check"] != "publication.coverage").cloned().collect::<Vec<_>>(),
            change,
        );
        drop(relay);
        harness.slot_is_free().await;
        let (fine, after) = doctor(&harness);
        assert_eq!(fine, streams, "{change}, after a start: {after:#?}");
        // A recorded break stays one, whatever the publication is now.
        if report.contains("may not have been sent") {
            assert!(after.iter().any(|f| f["check"] == "publication.coverage"), "{change}: {after:#?}");
            kafka::write(
                &format!("{}.state", harness.name),
                &format!("{0}/{0}/publication", harness.name),
                None,
            );
            assert!(doctor(&harness).0, "{change}");
        }
    }
}
