//! Tests two relays on one slot.

use std::time::{Duration, Instant};

use crate::harness::{Harness, eventually};
use crate::kafka::{chain, distinct};

#[tokio::test]
async fn a_second_relay_waits_and_takes_over_without_loss() {
    let mut harness = Harness::new("standby").await;
    let first = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    distinct(&harness.topic(), 1).await;
    let second = harness.start();
    second.state("standby").await;
    assert!(second.get("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    harness.row("a", 2, 1, "made").await;
    distinct(&harness.topic(), 2).await;
    first.kill();
    harness.row("a", 3, 1, "made").await;
    let killed = Instant::now();
    second.streams().await;
    let events = distinct(&harness.topic(), 3).await;
    assert!(killed.elapsed() < Duration::from_secs(20), "took {:?}", killed.elapsed());
    assert_eq!(chain(&events), 3);
}

/// Counts how often the server reads a literal: once for each check of the contract.
const COUNTED: &str = "create sequence asked;
    create function asked(text) returns bool language plpgsql as 'begin perform nextval(''public.asked''); return true; end';
    create domain counted as text check (asked(value));
    create table t (id int primary key, status counted);";

#[tokio::test]
async fn a_relay_that_waits_for_its_turn_asks_for_nothing_but_the_slot() {
    let mut harness = Harness::bare("standby_asks").await;
    harness.sql.batch_execute(COUNTED).await.expect("schema");
    harness.routes(&crate::harm::five_lines(&harness, "{ name = \"t\", when = { status = [\"paid\"] } }"));
    let first = harness.streaming().await;
    let second = harness.start();
    second.state("standby").await;
    let checks = || async {
        harness.sql.query_one("select last_value from asked", &[]).await.expect("asked").get::<_, i64>(0)
    };
    let before = checks().await;
    let mut since = String::from("-infinity");
    for _ in 0..16 {
        since = eventually("the next query for the slot", || async {
            let queries = "select query_start::text from pg_stat_activity
                           where datname = current_database() and application_name like 'cdc-relay standby %'
                             and query like '%pg_replication_slots%' and query_start > $1::text::timestamptz
                           order by query_start limit 1";
            let query = harness.sql.query_opt(queries, &[&since]).await.expect("activity");
            query.map(|query| query.get::<_, String>(0))
        })
        .await;
        assert!(second.get("/health").is_some_and(|report| report.contains("standby")));
    }
    let checks = checks().await - before;
    // The standby checks the contract once or twice, not each time it asks for the slot.
    assert!(checks <= 2, "{checks} times");
    assert_eq!(first.stop().await, Some(0));
    let free = Instant::now();
    second.streams().await;
    assert!(free.elapsed() < Duration::from_secs(15), "took {:?}", free.elapsed());
}
