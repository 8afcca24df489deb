//! Tests that the relay and doctor judge a published table as the server does.

use cdc_relay::postgres::facts::{Question, ask_client};
use cdc_relay::source::contract::withdrawals;

use super::{major, run};
use crate::harness::Harness;

#[tokio::test]
async fn doctor_judges_each_partition_as_the_server_does() {
    let harness = Harness::bare("harmdoctor").await;
    run(
        &harness,
        "create table t (n int, v text) partition by range (n); alter table t replica identity full;
         create table t_1 partition of t for values from (0) to (1000)",
    )
    .await;
    let doctor = |arguments: &[&str]| {
        let output = harness.command("doctor").arg(&harness.url).args(arguments).output().expect("doctor");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (_, out) = doctor(&[]);
    assert!(out.contains("public.t_1") && out.contains("no primary key"), "{out}");
    run(&harness, "create publication p for table t with (publish_via_partition_root = true)").await;
    let (code, out) = doctor(&["--publication", "p"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("alter table public.t_1 replica identity full"), "{out}");
    assert!(
        harness.sql.batch_execute("update t_1 set n = 1").await.is_err(),
        "the server accepts the update"
    );
}

/// Tables that a server may publish, and publications of them. For every pair the server plans an update and a delete,
/// and the relay judges it. Both answer alike.
const TABLES: &[(i32, &str)] = &[
    (14, "create table t (n int primary key, v text, w int)"),
    (14, "create table t (n int, v text, w int)"),
    (14, "create table t (n int primary key deferrable, v text, w int)"),
    (14, "create table t (n int, v text, w int, primary key (n) include (v))"),
    (14, "create table t (n int primary key, v text, w int); alter table t replica identity nothing"),
    (14, "create table t (n int primary key, v text, w int); alter table t replica identity full"),
    (14, "create table t (n int, v text, w int); alter table t replica identity full"),
    (14, "create table t (n int primary key, v text, w int not null); create unique index u on t (w);
          alter table t replica identity using index u"),
    (14, "create table t (n int primary key, v text, w int not null); create unique index u on t (w);
          alter table t replica identity using index u; drop index u"),
    (14, "create table t (n int primary key, v text, w int not null); create unique index u on t (w) where w > 0"),
    (14, "create unlogged table t (n int, v text, w int)"),
    (14, "create table t (n int primary key, v text, w int, g int generated always as (n * 2) stored)"),
    (14, "create table t (n int primary key, v text, w int, g int generated always as (n * 2) stored);
          alter table t replica identity full"),
    (14, "create table t (n int, v text, w int, g int generated always as (n * 2) stored primary key)"),
    (18, "create table t (n int primary key, v text, w int, g int generated always as (n * 2));
          alter table t replica identity full"),
    (14, "create table t (n int primary key, v text, w int) partition by range (n);
          create table t_1 partition of t for values from (0) to (9)"),
    (14, "create table t (n int primary key, v text, w int) partition by range (n);
          create table t_1 partition of t for values from (0) to (9); alter table t_1 replica identity nothing"),
    (14, "create table t (n int, v text, w int) partition by range (n); alter table t replica identity full;
          create table t_1 partition of t for values from (0) to (9)"),
    (14, "create table t (n int, v text, w int) partition by range (n);
          create table t_1 partition of t for values from (0) to (9) partition by range (n);
          create table t_2 partition of t_1 for values from (0) to (5); alter table t_2 replica identity full"),
];

const PUBLICATIONS: &[(i32, &str)] = &[
    (14, "create publication p for table t"),
    (14, "create publication p for table t with (publish = 'insert')"),
    (14, "create publication p for table t with (publish = 'delete', publish_via_partition_root = true)"),
    (14, "create publication p for table t with (publish_via_partition_root = true)"),
    (14, "create publication p for all tables"),
    (15, "create publication p for tables in schema public"),
    (15, "create publication p for table t (n)"),
    (15, "create publication p for table t (v, w)"),
    (15, "create publication p for table t (v, w) with (publish_via_partition_root = true)"),
    (15, "create publication p for table t where (n > 1)"),
    (15, "create publication p for table t where (w > 1) with (publish_via_partition_root = true)"),
    (15, "create publication p for table t where (w is null or n = 2)"),
    (18, "create publication p for table t with (publish_generated_columns = stored)"),
    (18, "create publication p for all tables with (publish_generated_columns = stored)"),
];

#[tokio::test]
async fn harm_is_judged_as_the_server_judges_it() {
    let harness = Harness::bare("harmjudged").await;
    let version = major(&harness).await;
    let (mut harmed, mut harmless) = (0, 0);
    for (_, tables) in TABLES.iter().filter(|(from, _)| version >= *from) {
        for (_, publication) in PUBLICATIONS.iter().filter(|(from, _)| version >= *from) {
            run(&harness, &format!("begin; {tables}")).await;
            // The server does not publish this table in this way at all.
            if harness.sql.batch_execute(publication).await.is_err() {
                run(&harness, "rollback").await;
                continue;
            }
            let question = Question::of_publication("p");
            let facts = ask_client(&harness.sql, &question).await.expect("facts");
            let judged = !withdrawals(&facts).is_empty();
            let mut refused = false;
            for statement in ["update t set v = 'x'", "delete from t"] {
                run(&harness, "savepoint s").await;
                refused |= harness.sql.batch_execute(&format!("explain {statement}")).await.is_err();
                run(&harness, "rollback to savepoint s").await;
            }
            run(&harness, "rollback").await;
            assert_eq!(judged, refused, "{tables}; {publication}: {facts:#?}");
            if refused { harmed += 1 } else { harmless += 1 }
        }
    }
    assert!(
        harmed > 20 && harmless > 20,
        "{harmed} harmed and {harmless} harmless pairs: too few of one kind"
    );
}
