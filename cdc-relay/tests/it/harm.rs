//! Tests that the relay never harms the database it watches.
//!
//! * No update or delete of an application fails because the relay, or a tail, publishes its table.
//! * This holds when the relay starts, while it runs, and after it has refused.

mod judgement;
mod tail;

use crate::harness::{Harness, Relay, eventually};
use crate::kafka;

/// The server's major version.
pub async fn major(harness: &Harness) -> i32 {
    let row = harness.sql.query_one("select current_setting('server_version_num')::int", &[]).await;
    row.expect("version").get::<_, i32>(0) / 10_000
}

/// A routes file with nothing but tables; topics, slot and publication are the relay's own.
pub fn five_lines(harness: &Harness, tables: &str) -> String {
    let name = &harness.name;
    format!(
        "[relay]\nstate_topic = \"{name}.state\"\ndead_letter_topic = \"{name}.dead\"\n\n\
         [[sources]]\nname = \"{name}\"\nslot = \"{name}\"\nurl = \"${{IT_URL}}\"\ntables = [{tables}]\n"
    )
}

pub async fn run(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Waits until the relay has decided: whether it streams, and its report.
async fn decided(relay: &Relay) -> (bool, String) {
    eventually(&format!("a decision; now {:?}", relay.get("/health")), || async {
        let report = relay.get("/health")?;
        let is = |state: &str| report.contains(&format!("\"state\":\"{state}\""));
        (is("streaming") || is("refused")).then(|| (is("streaming"), report.clone()))
    })
    .await
}

/// A table as an application has it, with an update and a delete of its own.
struct Shape {
    name: &'static str,
    from: i32,
    tables: &'static str,
    /// Columns are `n`, `v`; the table is `t`.
    route: &'static str,
    /// Part of the fix that a refusal prints; empty where the relay can stream all changes of the table.
    fix: &'static str,
}

const fn shape(name: &'static str, tables: &'static str, route: &'static str, fix: &'static str) -> Shape {
    Shape { name, from: 14, tables, route, fix }
}

const SHAPES: &[Shape] = &[
    shape("no key", "create table t (n int, v text)", "{ name = \"t\" }", "give it"),
    shape(
        "no key, with the advised one in the routes",
        "create table t (n int, v text)",
        "{ name = \"t\", key = \"{n}\" }",
        "alter table",
    ),
    shape(
        "rows that are only ever inserted",
        "create table t (n int, v text)",
        "{ name = \"t\", key = \"{n}\", routes = [{ topic = \"TOPIC\", type = \"t.v1\", op = [\"insert\"] }] }",
        "",
    ),
    shape(
        "a deferrable primary key",
        "create table t (n int primary key deferrable, v text)",
        "{ name = \"t\" }",
        "alter table",
    ),
    shape(
        "identity nothing",
        "create table t (n int primary key, v text); alter table t replica identity nothing",
        "{ name = \"t\" }",
        "alter table",
    ),
    shape(
        "an identity whose index is gone",
        "create table t (n int primary key, v text not null); create unique index u on t (v);
         alter table t replica identity using index u; drop index u",
        "{ name = \"t\" }",
        "alter table",
    ),
    shape(
        "identity full on the root of a partitioned table only",
        "create table t (n int, v text) partition by range (n); alter table t replica identity full;
         create table t_1 partition of t for values from (0) to (1000)",
        "{ name = \"t\", key = \"{n}\" }",
        "alter table",
    ),
    shape(
        "a partition without an identity, deep in the tree",
        "create table t (n int primary key, v text) partition by range (n);
         create table t_1 partition of t for values from (0) to (1000) partition by range (n);
         create table t_2 partition of t_1 for values from (0) to (500);
         alter table t_2 replica identity nothing",
        "{ name = \"t\" }",
        "alter table",
    ),
    shape(
        "a partitioned table whose next partition will have no identity",
        "create table t (n int, v text) partition by range (n)",
        "{ name = \"t\", key = \"{n}\" }",
        "alter table",
    ),
    shape(
        "a table that inherits",
        "create table t (n int primary key, v text); create table c () inherits (t)",
        "{ name = \"t\" }, { name = \"c\", key = \"{n}\" }",
        "alter table",
    ),
    Shape {
        from: 18,
        ..shape(
            "identity full with a stored generated column",
            "create table t (n int primary key, v text, g int generated always as (n * 2) stored);
             alter table t replica identity full",
            "{ name = \"t\" }",
            "",
        )
    },
    Shape {
        from: 18,
        ..shape(
            "identity full with a virtual generated column",
            "create table t (n int primary key, v text, g int generated always as (n * 2));
             alter table t replica identity full",
            "{ name = \"t\" }",
            "alter table",
        )
    },
    Shape {
        from: 18,
        ..shape(
            "a primary key that is generated",
            "create table t (n int, v text, g int generated always as (n * 2) stored primary key)",
            "{ name = \"t\" }",
            "",
        )
    },
];

/// The statements of an application.
async fn application(harness: &Harness, shape: &str) {
    if shape.contains("next partition") {
        run(harness, "create table t_new partition of t for values from (0) to (1000)").await;
    }
    let target = if shape.contains("inherits") { "c" } else { "t" };
    for sql in [
        format!("insert into {target} (n, v) values (1, 'a'), (2, 'b')"),
        format!("update {target} set v = 'c' where n = 1"),
        format!("update {target} set n = 3 where n = 2"),
        format!("delete from {target} where n in (1, 3)"),
    ] {
        harness.sql.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{shape}: {sql}: {error:?}"));
    }
}

#[tokio::test]
async fn an_update_that_cannot_be_published_is_never_published() {
    for shape in SHAPES {
        let mut harness = Harness::bare("harmless").await;
        if major(&harness).await < shape.from {
            continue;
        }
        run(&harness, shape.tables).await;
        let topic = format!("{}.t", harness.name);
        harness.routes(&five_lines(&harness, &shape.route.replace("TOPIC", &topic)));
        let relay = harness.start();
        let (streams, report) = decided(&relay).await;
        application(&harness, shape.name).await;
        assert_eq!(streams, shape.fix.is_empty(), "{}: {report}", shape.name);
        if !streams {
            let count = "select count(*) from pg_publication";
            let publications: i64 = harness.sql.query_one(count, &[]).await.expect("catalog").get(0);
            assert_eq!(publications, 0, "{}: the refused relay made a publication", shape.name);
            assert!(!kafka::exists(&topic), "{}: the refused relay made a topic", shape.name);
            assert!(report.contains(shape.fix), "{}: no `{}`: {report}", shape.name, shape.fix);
        }
        drop(relay);
        harness.slot_is_free().await;
        application(&harness, &format!("{} once the relay has gone", shape.name.replace("next", "new")))
            .await;
    }
}

#[tokio::test]
async fn the_printed_fix_leads_to_a_relay_that_streams() {
    let mut harness = Harness::bare("harmfix").await;
    run(&harness, "create table hits (path text, n int)").await;
    harness.routes(&five_lines(&harness, "{ name = \"hits\", key = \"{path}\" }"));
    let relay = harness.start();
    let report = relay.state("refused").await;
    let fix = "alter table public.hits replica identity full";
    assert!(report.contains(fix), "{report}");
    run(&harness, fix).await;
    relay.streams().await;
    run(&harness, "insert into hits values ('/', 1); update hits set n = 2").await;
    kafka::distinct(&format!("{}.hits", harness.name), 2).await;
}

/// A version of the server, and a change that takes the identity of a published table away.
const LATER: &[(i32, &str)] = &[
    (14, "alter table t drop constraint t_pkey"),
    (14, "alter table t replica identity nothing"),
    (
        14,
        "create unique index u on t (v); alter table t alter v set not null;
         alter table t replica identity using index u; drop index u",
    ),
    (
        18,
        "alter table t replica identity full; alter table t add column g int generated always as (n * 2) virtual",
    ),
];

/// Waits until an application's update succeeds: it may fail for a moment, since only the server could prevent that.
async fn goes_on(harness: &Harness, change: &str) {
    eventually(&format!("an update to go on after {change}"), || async {
        harness.sql.batch_execute("update t set v = v || 'x' where n = 1").await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_table_that_loses_its_identity_while_the_relay_streams_is_taken_out() {
    for (from, change) in LATER {
        let mut harness = Harness::bare("harmlater").await;
        if major(&harness).await < *from {
            continue;
        }
        run(&harness, "create table t (n int primary key, v text); create table other (n int primary key)")
            .await;
        harness.routes(&five_lines(&harness, "{ name = \"t\" }, { name = \"other\" }"));
        let relay = harness.streaming().await;
        run(&harness, "insert into t values (1, 'a')").await;
        run(&harness, change).await;
        goes_on(&harness, change).await;
        let report = relay.state("refused").await;
        assert!(report.contains("public.t"), "{change}: {report}");
        goes_on(&harness, change).await;
    }
}

/// Nobody watches the table while the relay is away; when the relay starts, it takes the table out first.
#[tokio::test]
async fn a_table_that_lost_its_identity_while_the_relay_was_away_is_taken_out() {
    let mut harness = Harness::bare("harmaway").await;
    run(&harness, "create table t (n int primary key, v text); insert into t values (1, 'a')").await;
    harness.routes(&five_lines(&harness, "{ name = \"t\" }"));
    let relay = harness.streaming().await;
    assert_eq!(relay.stop().await, Some(0));
    run(&harness, "alter table t drop constraint t_pkey").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("alter table public.t"), "{report}");
    goes_on(&harness, "its primary key was dropped").await;
}

/// The relay does not change a publication that somebody else made: it refuses, and prints the fix.
#[tokio::test]
async fn a_publication_of_the_users_that_harms_is_refused_with_the_fix() {
    let mut harness = Harness::new("harmnamed").await;
    run(&harness, "alter table items drop constraint items_pkey").await;
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("public.items has no primary key"), "{report}");
    assert!(report.contains("alter table public.items replica identity full"), "{report}");
    assert!(!kafka::exists(&harness.topic()), "the refused relay made a topic");
    run(&harness, "alter table items replica identity full").await;
    relay.streams().await;
}

/// A migration locks a partition; the relay neither waits for it nor blocks it.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_partition_is_neither_waited_for_nor_locked_by_the_watch_of_the_publication() {
    let mut harness = Harness::bare("locked_partition").await;
    run(
        &harness,
        "create table ev (t date, n int, primary key (t, n)) partition by range (t);
         create table ev_1 partition of ev for values from ('2026-01-01') to ('2027-01-01');
         create table plain (n int primary key);",
    )
    .await;
    harness.routes(&five_lines(&harness, "{ name = \"ev\" }, { name = \"plain\" }"));
    let relay = harness.streaming().await;
    let migration = crate::harness::connect(&harness.url).await;
    migration.batch_execute("begin; lock table ev_1 in access exclusive mode").await.expect("the lock");
    // The watch has to read the catalog again, and to see this.
    run(&harness, &format!("alter publication cdc_relay_{} drop table plain", harness.name)).await;
    relay.state("refused").await;
    let waiting = "select count(*) from pg_locks where relation = 'ev_1'::regclass and not granted";
    let row = harness.sql.query_one(waiting, &[]).await.expect("locks");
    assert_eq!(row.get::<_, i64>(0), 0, "{}", relay.log());
    migration.batch_execute("rollback").await.expect("the end of the migration");
    drop(relay);
}
