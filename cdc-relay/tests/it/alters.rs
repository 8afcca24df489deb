//! Tests that tables can be altered under load.

use std::time::Duration;

use crate::harness::Harness;
use crate::load::under_load;

/// None of these touches a column of the routes; every row is emitted with the columns it was written with.
const CHANGES: [&str; 9] = [
    "alter table items add column extra text default 'x'",
    "alter table items rename column extra to other",
    "alter table items alter column amount type numeric",
    "alter table items drop column other",
    "alter table items alter column note type varchar",
    "alter table items alter column amount type bigint",
    "alter table items replica identity full",
    "alter table items alter column version type bigint; alter table items alter column version type int",
    "alter table items replica identity default",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_altered_in_every_way_under_load_loses_and_reorders_nothing() {
    let mut harness = Harness::new("altered").await;
    let (relay, oracle, load) = under_load(&mut harness, true).await;
    for round in 0..3 {
        for change in CHANGES {
            // The change shares its transaction with a row, and comes in the middle of other transactions.
            let change = format!(
                "begin; insert into items (owner, id, version) values ('ddl', {round}, -1) on conflict do nothing;
                 {change}; commit"
            );
            for _ in 0..20 {
                if harness.sql.batch_execute(&change).await.is_ok() {
                    break;
                }
                // The load held a lock, and won.
                let _ = harness.sql.batch_execute("rollback").await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            load.more(20).await;
        }
        harness.kill_walsender().await;
    }
    load.stop().await;
    let report = oracle.judge(&harness).await;
    assert_eq!(report.dead, 0);
    report.expect(300);
    drop(relay);
}

/// The WAL lacks values stored out of line that an update leaves alone. With the whole old row the relay emits them all
/// the same; without it the row and the later rows of its key become dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn unchanged_large_values_under_load_are_emitted_or_become_dead_letters_but_are_never_dropped() {
    for identity in ["full", "default"] {
        let mut harness = Harness::new("unchanged").await;
        harness
            .sql
            .batch_execute(&format!("alter table items replica identity {identity}"))
            .await
            .expect("alter");
        let (relay, oracle, load) = under_load(&mut harness, false).await;
        let large = "insert into items (owner, id, version, note)
                     select 'large', 1, 1, string_agg(md5(n::text), '') from generate_series(1, 400) n";
        harness.sql.batch_execute(large).await.expect("a large row");
        for version in 2..40 {
            let update = format!("update items set version = {version} where owner = 'large'");
            harness.sql.batch_execute(&update).await.expect("update");
        }
        load.more(100).await;
        load.stop().await;
        let report = oracle.judge(&harness).await;
        assert_eq!(report.dead, if identity == "full" { 0 } else { 38 });
        report.expect(50);
        drop(relay);
    }
}
