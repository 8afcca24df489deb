//! Tests that each printed fix leads to a relay that streams. Each fix runs in a database of its own.

mod later;

use serde_json::Value;

use crate::harness::Harness;
use crate::kafka;
use crate::names::{arrived, routes, statements};

struct Case {
    name: &'static str,
    /// The database before the relay's first start.
    schema: &'static str,
    source: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "missing",
        schema: "create table orders (id int primary key)",
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\", deletes = \"tombstone\" }]",
    },
    Case {
        name: "lacking",
        schema: "create table orders (id int primary key); create table other (id int primary key);
                 create publication chosen for table other with (publish = 'insert, update')",
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\" }, { name = \"other\" }]",
    },
    Case {
        name: "deletes",
        schema: "create table orders (id int primary key);
                 create publication chosen for table orders with (publish = 'insert')",
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\", deletes = \"event\" }]",
    },
    Case {
        name: "truncates",
        schema: "create table orders (id int primary key); create publication chosen for table orders",
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
    },
    Case {
        name: "unlogged",
        schema: "create unlogged table orders (id int primary key)",
        source: "tables = [{ name = \"orders\" }]",
    },
    Case {
        name: "keyless",
        schema: "create table orders (id int)",
        source: "tables = [{ name = \"orders\", key = \"{id}\" }]",
    },
    Case {
        name: "roots",
        schema: "create table orders (id int primary key) partition by range (id);
                 create table orders_1 partition of orders for values from (0) to (1000);
                 create publication chosen for table orders with (publish = 'insert, update')",
        source: "publication = \"chosen\"\ntables = [{ name = \"orders\" }]",
    },
];

async fn database(case: &Case, index: usize) -> Harness {
    let harness = Harness::bare(&format!("fix_{}{index}", case.name)).await;
    // One by one: some statements must not share a transaction.
    for statement in case.schema.split(';') {
        harness.sql.batch_execute(statement).await.expect(statement);
    }
    routes(&harness, case.source);
    harness
}

fn doctor(harness: &Harness) -> (Option<i32>, Vec<Value>) {
    let output = harness.command("doctor").arg("--json").output().expect("doctor");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sections = report["sections"].as_array().expect("sections");
    let findings = sections.iter().flat_map(|section| section["findings"].as_array().expect("findings"));
    (output.status.code(), findings.cloned().collect())
}

/// The statements among the fixes of failures, without those that leave something to fill in.
fn fixes(findings: &[Value]) -> Vec<String> {
    let bad = findings
        .iter()
        .filter(|finding| finding["severity"].as_str().is_some_and(|s| s.starts_with("would")))
        // How long the server keeps the WAL of an idle slot depends on other tests.
        .filter(|finding| finding["check"] != "slot.wal_status");
    let lines = bad.flat_map(|finding| finding["fix"].as_array().cloned().unwrap_or_default());
    let sql = ["create ", "alter ", "drop ", "grant ", "begin"];
    let lines = lines.filter_map(|line| Some(line.as_str()?.split("   -- ").next()?.to_owned()));
    lines.filter(|line| sql.iter().any(|word| line.starts_with(word)) && !line.contains('…')).collect()
}

#[tokio::test]
async fn each_fix_that_is_printed_leads_to_a_relay_that_streams() {
    for case in CASES {
        let mut harness = database(case, 0).await;
        let (code, findings) = doctor(&harness);
        assert_eq!(code, Some(1), "{}: {findings:#?}", case.name);
        let mut printed = fixes(&findings);
        assert!(!printed.is_empty(), "{}: {findings:#?}", case.name);
        let relay = harness.start();
        printed
            .extend(statements(&relay.state("refused").await).into_iter().filter(|sql| !sql.contains('…')));
        drop(relay);
        printed.sort_unstable_by(|a, b| a.trim_end_matches(';').cmp(b.trim_end_matches(';')));
        printed.dedup_by(|a, b| a.trim_end_matches(';') == b.trim_end_matches(';'));
        for (index, fix) in printed.iter().enumerate() {
            let mut harness = database(case, index + 1).await;
            harness
                .sql
                .batch_execute(fix)
                .await
                .unwrap_or_else(|error| panic!("{}: {fix}: {error:?}", case.name));
            let (code, findings) = doctor(&harness);
            assert_eq!(code, Some(0), "{}: after {fix}: {findings:#?}", case.name);
            let relay = harness.start();
            let report = crate::harness::eventually("an end to starting", || async {
                relay
                    .get("/health")
                    .filter(|report| report.contains("streaming") || report.contains("refused"))
            })
            .await;
            assert!(report.contains("streaming"), "{}: after {fix}: {report}", case.name);
            harness.sql.batch_execute("insert into orders values (1)").await.expect("a row");
            arrived(&format!("{}.orders", harness.name), 1).await;
            assert_eq!(relay.stop().await, Some(0));
            harness.slot_is_free().await;
        }
    }
}

/// `run` makes the publication and the slot: that they are not there yet is no fault.
#[tokio::test]
async fn doctor_before_the_first_run_judges_what_run_would_make() {
    let mut harness = Harness::bare("first").await;
    harness.sql.batch_execute("create table orders (id int primary key, note text)").await.expect("a table");
    routes(&harness, "tables = [{ name = \"orders\" }]");
    let (code, findings) = doctor(&harness);
    assert_eq!(code, Some(0), "{findings:#?}");
    let relay = harness.streaming().await;
    drop(relay);
    harness.slot_is_free().await;
    // While other tests write much, the slot of a relay that is gone is rightly found to be at risk.
    crate::harness::eventually("a doctor without findings that lose data", || async {
        let (code, _) = doctor(&harness);
        (code == Some(0)).then_some(())
    })
    .await;
}

/// The refusal names the relation, the nearest name, and why it cannot be streamed; the relay makes no topic for it.
#[tokio::test]
async fn a_relation_that_is_no_table_is_refused_by_its_kind_before_topics_are_made() {
    let tables = "create schema audit; create table orders (id int primary key);
                  create table audit.log (id int primary key); create unlogged table loose (id int primary key);
                  create view seen as select * from orders; create materialized view kept as select * from orders;
                  create sequence counter";
    let cases: &[(&str, &[&str])] = &[
        ("ordres", &["public.ordres", "did you mean `orders`"]),
        ("adit.log", &["adit.log", "did you mean `audit`"]),
        ("audit.lgo", &["audit.lgo", "did you mean `audit.log`"]),
        ("log", &["public.log", "did you mean `audit.log`"]),
        ("Orders", &["public.Orders", "did you mean `orders`"]),
        ("loose", &["public.loose", "unlogged"]),
        ("seen", &["public.seen", "view"]),
        ("kept", &["public.kept", "materialized view"]),
        ("counter", &["public.counter", "sequence"]),
        ("pg_catalog.pg_class", &["pg_catalog.pg_class", "system table"]),
    ];
    let mut harness = Harness::bare("no_table").await;
    harness.sql.batch_execute(tables).await.expect("tables");
    for (table, parts) in cases {
        let topic = format!("{}.{table}.none", harness.name);
        routes(
            &harness,
            &format!("tables = [{{ name = \"{table}\", topic = \"{topic}\", key = \"{{id}}\" }}]"),
        );
        let relay = harness.start();
        let report = relay.state("refused").await;
        for part in *parts {
            assert!(report.contains(part), "{table}: {part}: {report}");
        }
        assert!(!kafka::exists(&topic), "{table}");
        drop(relay);
    }
    let left = harness.sql.query("select 1 from pg_publication", &[]).await.expect("publications");
    assert!(left.is_empty());
    for (table, parts) in cases {
        routes(&harness, &format!("tables = [{{ name = \"{table}\", key = \"{{id}}\" }}]"));
        let (code, findings) = doctor(&harness);
        assert_eq!(code, Some(1), "{table}");
        for part in *parts {
            assert!(
                Value::from(findings.clone()).to_string().contains(part),
                "{table}: {part}: {findings:#?}"
            );
        }
    }
}

/// A source that is refused has no topics, whoever streams beside it.
#[tokio::test]
async fn a_source_beside_a_refused_one_makes_topics_of_its_own_only() {
    let mut harness = Harness::bare("beside").await;
    harness.sql.batch_execute("create table orders (id int primary key)").await.expect("a table");
    let name = harness.name.clone();
    routes(
        &harness,
        &format!(
            "tables = [{{ name = \"orders\" }}]\n\
             [[sources]]\nname = \"{name}_b\"\nurl = \"${{IT_URL}}\"\nslot = \"{name}_b\"\ntables = [{{ name = \"ordres\" }}]"
        ),
    );
    let relay = harness.start();
    relay.state("refused").await;
    relay.streams().await;
    assert!(kafka::exists(&format!("{name}.orders")));
    assert!(!kafka::exists(&format!("{name}_b.ordres")));
    drop(relay);
}

/// An invalid file is reported as invalid, not as missing.
#[tokio::test]
async fn an_invalid_routes_file_is_not_a_missing_one() {
    let harness = Harness::bare("invalid").await;
    harness.routes("[[sources]]\nname = \"x\"");
    for command in ["doctor", "verify"] {
        let stderr = |file: &str| {
            let output = harness.command(command).env("RELAY_ROUTES", file).output().expect(command);
            assert_eq!(output.status.code(), Some(64), "{command}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let path = std::env::temp_dir().join(&harness.name).join("relay.toml").display().to_string();
        assert!(!stderr(&path).contains("without a routes file"), "{command}: {}", stderr(&path));
        assert!(stderr(&path).contains("is missing"), "{command}: {}", stderr(&path));
        assert!(stderr("/nowhere/relay.toml").contains("without a routes file"), "{command}");
    }
}
