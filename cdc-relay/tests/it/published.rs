//! Tests a publication that changes while a relay streams or is away.
//!
//! * The relay never passes over rows that a routed table may not have sent.

mod less;
mod unlogged;

use std::time::{Duration, Instant};

use crate::harness::{Harness, Relay, eventually};
use crate::kafka;
use crate::load::under_load;

const REFUSAL_TIMEOUT: Duration = Duration::from_secs(20);

async fn version(harness: &Harness) -> i32 {
    let ask = "select current_setting('server_version_num')::int / 10000";
    harness.sql.query_one(ask, &[]).await.expect("version").get(0)
}

async fn run(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Waits until the source is refused after this change; returns the report.
async fn refused_in_time(relay: &Relay, what: &str) -> String {
    let began = Instant::now();
    loop {
        let report = relay.get("/health").unwrap_or_default();
        if report.contains("\"state\":\"refused\"") {
            return report;
        }
        assert!(began.elapsed() < REFUSAL_TIMEOUT, "{what}: {report}\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Exit code and answer of a command.
fn answer(harness: &Harness, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = harness.command(command).args(arguments).output().expect("the program");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn resnapshot(harness: &Harness) {
    let (code, text) = answer(harness, "resnapshot", &["--yes"]);
    assert_eq!(code, Some(0), "{text}");
}

fn ids(harness: &Harness) -> Vec<String> {
    kafka::read(&harness.topic()).iter().map(|event| event.header("ce_id").to_owned()).collect()
}

/// The loss it prevents: a row is on no topic, and everything is green.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_taken_out_and_put_in_again_is_refused_until_a_resnapshot() {
    let mut harness = Harness::new("taken_out").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    // Faster than the watch's interval.
    run(
        &harness,
        "alter publication events drop table items; insert into items (owner, id, version) values ('lost', 1, 1);
         alter publication events add table items",
    )
    .await;
    let report = refused_in_time(&relay, "taken out").await;
    for part in ["public.items", "put in again", "cdc-relay resnapshot"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(relay.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
    harness.row("a", 2, 1, "made").await;
    // Another relay refuses too, and verify does not call the topics complete.
    let other = harness.start();
    assert!(other.state("refused").await.contains("put in again"));
    relay.stop().await;
    assert!(other.state("refused").await.contains("put in again"));
    assert_eq!(ids(&harness), ["it/items/a/1/1"]);
    let (code, text) = answer(&harness, "verify", &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("put in again") && !text.contains("is whole"), "{text}");
    let (code, text) = answer(&harness, "verify", &["--json"]);
    assert_eq!(code, Some(1), "{text}");
    resnapshot(&harness);
    other.streams().await;
    harness.row("a", 3, 1, "made").await;
    harness.confirmed().await;
    let mut emitted = ids(&harness);
    emitted.sort();
    emitted.dedup();
    assert_eq!(emitted, ["it/items/a/1/1", "it/items/a/2/1", "it/items/a/3/1", "it/items/lost/1/1"]);
    let (code, text) = answer(&harness, "verify", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("put in again"), "the stretch is named: {text}");
}

/// An operator vouches that nothing was written in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_break_that_is_known_to_be_empty_can_be_taken_back() {
    let mut harness = crate::refusals::used("empty").await;
    run(&harness, "alter publication events drop table items; alter publication events add table items")
        .await;
    let relay = harness.start();
    assert!(relay.state("refused").await.contains("/publication"));
    kafka::write(&format!("{}.state", harness.name), &format!("it/{}/publication", harness.name), None);
    relay.streams().await;
    harness.row("a", 2, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(ids(&harness), ["it/items/a/1/1", "it/items/a/2/1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_and_tables_that_are_published_under_load_cost_nothing() {
    let mut harness = Harness::new("wider").await;
    let lists = version(&harness).await >= 15;
    let mut columns = "owner, id, version, kind, note, amount, at".to_owned();
    if lists {
        run(&harness, &format!("alter publication events set table items ({columns})")).await;
    }
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for n in 0..4 {
        columns = format!("{columns}, extra_{n}");
        let publish = if lists {
            format!("alter publication events set table items ({columns});")
        } else {
            String::new()
        };
        let migration = format!(
            "begin; alter table items add column extra_{n} text default 'new'; {publish}
             create table other_{n} (id int primary key); commit; alter publication events add table other_{n}"
        );
        // The load may hold the lock.
        while harness.sql.batch_execute(&migration).await.is_err() {
            run(&harness, "rollback").await;
        }
        harness.publication_checked().await;
        load.more(50).await;
    }
    load.stop().await;
    let report = oracle.judge(&harness).await;
    assert_eq!(report.dead, 0);
    report.expect(250);
    assert!(kafka::read(&harness.topic()).last().expect("an event").value.contains("\"extra_3\":\"new\""));
    assert!(relay.metric("cdc_relay_sessions_total") < 2.0, "{}", relay.log());
    let (code, text) = answer(&harness, "verify", &[]);
    assert_eq!(code, Some(0), "{text}");
}

/// The state topic may be away at that moment, and the next check no longer sees the change.
#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_one_whether_or_not_it_can_be_written_down() {
    let mut harness = Harness::new("unwritten").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    kafka::delete(&harness.servers.kafka, &format!("{}.state", harness.name));
    run(&harness, "alter publication events drop table items; alter publication events add table items")
        .await;
    eventually("the missing checkpoint", || async {
        relay.get("/health").filter(|report| report.contains("knows nothing"))
    })
    .await;
    let report = relay.state("refused").await;
    assert!(report.contains("put in again") && report.contains("In addition: "), "{report}");
    resnapshot(&harness);
    relay.streams().await;
}

/// The state topic's record of the source's publication.
fn record(harness: &Harness) -> serde_json::Value {
    let (topic, key) = (format!("{}.state", harness.name), format!("it/{}/publication", harness.name));
    kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("a record").json()
}

fn tables(harness: &Harness) -> Vec<String> {
    let record = record(harness);
    let tables = record["coverage"]["tables"].as_array().expect("tables");
    tables.iter().map(|table| table["name"].as_str().expect("a name").to_owned()).collect()
}

/// The halt it prevents: a record of thousands of tables, which is too large for the state topic.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_routes_are_in_no_record_and_in_no_log() {
    let mut harness = Harness::new("unrelated").await;
    let all = "create publication events for all tables with (publish = 'insert, update')";
    run(&harness, &format!("drop publication events; {all}; create table spare (id int primary key)")).await;
    let ignore = "event_source = \"/it\"\nignore = [\"spare*\"]";
    harness.routes(&harness.default_routes().replace("event_source = \"/it\"", ignore));
    let relay = harness.streaming().await;
    assert_eq!(tables(&harness), ["items"]);
    let records = kafka::read(&format!("{}.state", harness.name)).len();
    run(
        &harness,
        "alter table spare add column a int; create table spare_2 (id int primary key); drop table spare;
         create table spare_parts (id int) partition by list (id);
         create table spare_part partition of spare_parts for values in (1)",
    )
    .await;
    run(&harness, "alter table spare_parts detach partition spare_part").await;
    // The watch notices this change after those, or together with them.
    run(&harness, "alter table items add column extra int").await;
    eventually("a record", || async {
        let events = kafka::read(&format!("{}.state", harness.name));
        events[records..].iter().any(|event| event.key.ends_with("/publication")).then_some(())
    })
    .await;
    assert_eq!(tables(&harness), ["items"]);
    relay.streams().await;
    assert!(!relay.log().contains("spare_part"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_may_come_and_go_but_not_come_back() {
    let mut harness = Harness::bare("partition").await;
    run(
        &harness,
        "create table items (owner text, id bigint, version int, kind text default 'made', note text, amount bigint,
            at timestamptz, primary key (owner, id)) partition by list (owner);
         create table items_a partition of items for values in ('a');
         create table items_b partition of items for values in ('b');
         create publication events for table items with (publish = 'insert, update', publish_via_partition_root)",
    )
    .await;
    harness.routes(&harness.default_routes());
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    run(&harness, "create table items_c partition of items for values in ('c')").await;
    harness.row("c", 1, 1, "made").await;
    run(&harness, "drop table items_a; alter table items detach partition items_b").await;
    eventually("a log line about items_b", || async { relay.log().contains("items_b").then_some(()) }).await;
    harness.row("c", 2, 1, "made").await;
    harness.confirmed().await;
    relay.streams().await;
    run(
        &harness,
        "insert into items_b (owner, id, version) values ('b', 1, 1);
         alter table items attach partition items_b for values in ('b')",
    )
    .await;
    let report = refused_in_time(&relay, "attached again").await;
    assert!(report.contains("items_b was detached from public.items"), "{report}");
    resnapshot(&harness);
    relay.streams().await;
    assert!(ids(&harness).contains(&"it/items/b/1/1".to_owned()));
}

/// The server may take long to judge the routes. Nothing else waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_takes_long_to_judge_is_judged_and_holds_up_no_look() {
    let mut harness = Harness::bare("slow").await;
    run(
        &harness,
        "create function slow(text) returns bool language plpgsql as
            'begin
                for n in 1..(select count(*) from pg_class where relname like ''slow_%'') loop
                    -- The warning is what keeps the session from being silent for too long.
                    perform pg_sleep(7);
                    raise warning ''still slow'';
                end loop;
                return true;
            end';
         create domain slowly as text check (slow(value));
         create table t (id int primary key, status slowly, note text); create table u (id int primary key);
         create publication p for table t, u with (publish = 'insert, update')",
    )
    .await;
    let tables =
        "{ name = \"t\", headers = { note = \"{note}\" }, when = { status = [\"paid\"] } }, { name = \"u\" }";
    let routes = crate::harm::five_lines(&harness, tables);
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.streaming().await;
    run(&harness, "create table slow_1 (); alter table t rename note to remark").await;
    // Longer than one check may take, and longer than its queries.
    let report = relay.state("refused").await;
    assert!(report.contains("note"), "{report}");
    run(&harness, "drop table slow_1; alter table t rename remark to note").await;
    relay.streams().await;
    // Longer than a refusal may take.
    let slower =
        "create table slow_1 (); create table slow_2 (); create table slow_3 (); create table slow_4 ()";
    run(&harness, &format!("{slower}; alter table t add column more int")).await;
    eventually("the routes to be judged", || async {
        let judged = "select 1 from pg_stat_activity
                      where datname = current_database() and wait_event = 'PgSleep'";
        (!harness.sql.query(judged, &[]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    run(&harness, "alter publication p drop table u").await;
    let report = refused_in_time(&relay, "while it is judged").await;
    assert!(report.contains("public.u is not published any more"), "{report}");
}
