//! Tests partitions and row filters of a publication, and the checks of a publication before streaming.

use crate::harm::{five_lines, major, run};
use crate::harness::{Harness, eventually};
use crate::kafka::{self, distinct};

const PARTITIONED: &str =
    "create table ev (id int, day date, v text, primary key (id, day)) partition by range (day);
     create table ev_1 partition of ev for values from ('2026-01-01') to ('2026-02-01')";

/// The changes of every partition come under the table name that the routes have.
#[tokio::test]
async fn a_partitioned_table_is_emitted_under_its_own_name_with_the_five_lines() {
    let mut harness = Harness::bare("partitioned").await;
    run(&harness, PARTITIONED).await;
    harness.routes(&five_lines(&harness, "{ name = \"ev\", deletes = \"tombstone\", snapshot = true }"));
    run(&harness, "insert into ev values (0, '2026-01-01', 'before')").await;
    run(&harness, "create table late (like ev including all)").await;
    run(&harness, "insert into late values (3, '2026-03-01', 'unseen')").await;
    let relay = harness.streaming().await;
    let topic = format!("{}.ev", harness.name);
    distinct(&topic, 1).await;
    run(&harness, "insert into ev values (1, '2026-01-01', 'a'); update ev set v = 'b' where id = 1").await;
    run(&harness, "create table ev_2 partition of ev for values from ('2026-02-01') to ('2026-03-01')").await;
    run(
        &harness,
        "insert into ev values (2, '2026-02-01', 'a'); update ev set day = '2026-01-02' where id = 2",
    )
    .await;
    // Rows from before a table is attached are no changes of the partitioned table; later ones are. Postgres 14 goes on
    // without a table that the same session wrote to before; therefore another session writes here.
    if major(&harness).await > 14 {
        run(&harness, "insert into late values (3, '2026-03-02', 'unseen')").await;
    }
    run(
        &harness,
        "alter table ev attach partition late for values from ('2026-03-01') to ('2026-04-01');
         insert into ev values (4, '2026-03-01', 'seen')",
    )
    .await;
    run(&harness, "delete from ev where id = 1").await;
    harness.confirmed().await;
    let events = kafka::read(&topic);
    let keys: Vec<&str> = events.iter().map(|event| event.key.as_str()).collect();
    let of = |id: i32| keys.iter().filter(|key| key.starts_with(&format!("[\"{id}\""))).count();
    // A move to another partition is a delete of the one key and an insert of the other.
    assert_eq!([of(0), of(1), of(2), of(3), of(4)], [1, 3, 3, 0, 1], "{keys:?}");
    assert_eq!(kafka::read(&harness.dead_letter_topic()), []);
    drop(relay);
}

/// A publication as an earlier release made it.
#[tokio::test]
async fn a_publication_of_partitions_under_their_own_names_is_refused_with_the_statement_that_mends_it() {
    let mut harness = Harness::bare("partitionnames").await;
    run(&harness, PARTITIONED).await;
    run(&harness, "create publication p for table ev with (publish = 'insert, update')").await;
    let routes = five_lines(&harness, "{ name = \"ev\" }");
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.start();
    let report = relay.state("refused").await;
    let fix = "alter publication p set (publish_via_partition_root = true)";
    assert!(report.contains(fix), "{report}");
    assert!(!report.contains("add table") && !report.contains("ev_1"), "{report}");
    run(&harness, fix).await;
    relay.streams().await;
}

/// The stream has the rows of a partitioned table under the root's name, and the identity of their partition in old
/// rows: root and partition need the same identity.
#[tokio::test]
async fn a_partition_with_another_identity_than_its_root_is_refused() {
    let full = "alter table ev replica identity full";
    let index = "create unique index u on ev_1 (day); alter table ev_1 alter day set not null;
                 alter table ev_1 replica identity using index u";
    for (change, fix) in [
        (full, "alter table public.ev replica identity default"),
        (index, "alter table public.ev_1 replica identity full"),
    ] {
        let mut harness = Harness::bare("partitionidentity").await;
        run(&harness, PARTITIONED).await;
        run(&harness, change).await;
        harness.routes(&five_lines(&harness, "{ name = \"ev\", deletes = \"tombstone\" }"));
        let relay = harness.start();
        let report = relay.state("refused").await;
        assert!(report.contains("public.ev_1") && report.contains(fix), "{change}: {report}");
        run(&harness, fix).await;
        relay.streams().await;
    }
}

/// The server sends an update that takes a row out of the filter as a delete, whatever the publication publishes.
#[tokio::test]
async fn a_row_that_leaves_the_filter_of_its_publication_is_emitted_as_the_routes_say() {
    let mut harness = Harness::bare("filter").await;
    if major(&harness).await < 15 {
        return;
    }
    run(&harness, "create table t (id int primary key, v int); alter table t replica identity full").await;
    run(&harness, "create publication p for table t where (v > 0) with (publish = 'insert, update')").await;
    let routes = |table: &str| five_lines(&harness, table).replace("slot =", "publication = \"p\"\nslot =");
    let (plain, ignores) = (routes("{ name = \"t\" }"), routes("{ name = \"t\", deletes = \"ignore\" }"));
    let ends = routes("{ name = \"t\", deletes = \"tombstone\" }");
    harness.routes(&plain);
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("row filter") && report.contains("deletes = "), "{report}");
    let output = harness.command("doctor").output().expect("doctor");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && out.contains("deletes = "), "{out}");
    drop(relay);

    let topic = format!("{}.t", harness.name);
    harness.routes(&ignores);
    let relay = harness.streaming().await;
    run(&harness, "insert into t values (1, 1), (2, 1); update t set v = 0 where id = 1").await;
    harness.confirmed().await;
    assert_eq!(kafka::read(&topic).len(), 2);
    // Changed while the relay streams, so that it sees that no row was left out.
    run(&harness, "alter publication p set (publish = 'insert, update, delete')").await;
    eventually("the relay to have noted what is published", || async {
        let records = kafka::read(&format!("{}.state", harness.name));
        let noted = |event: &&kafka::Event| event.key.ends_with("/publication");
        records.iter().rfind(noted).filter(|event| event.value.contains("\"deletes\":true")).map(|_| ())
    })
    .await;
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;

    harness.routes(&ends);
    let relay = harness.streaming().await;
    run(&harness, "update t set v = 0 where id = 2").await;
    harness.confirmed().await;
    let last = kafka::read(&topic).pop().expect("a tombstone");
    assert_eq!((last.key.as_str(), last.value.as_str()), ("2", ""));
    assert_eq!(kafka::read(&harness.dead_letter_topic()), []);
    drop(relay);
}

/// A slow server must not make one change of the publication look like several: the proof is in the snapshot of the check before.
#[tokio::test]
async fn a_publication_that_is_altered_once_while_the_server_is_slow_is_taken_as_altered_once() {
    let mut harness = Harness::bare("slowcheck").await;
    run(&harness, "create table t (id int primary key, v int)").await;
    run(&harness, "create publication p for table t with (publish = 'insert, update')").await;
    let routes = five_lines(&harness, "{ name = \"t\", deletes = \"ignore\" }");
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.streaming().await;
    run(&harness, "begin; lock table pg_catalog.pg_publication in access exclusive mode").await;
    eventually("a check that takes longer than it should", || async {
        let query = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                     and application_name = 'cdc-relay' and clock_timestamp() - query_start > interval '6 seconds'";
        // A transaction sees the same activity all the time.
        run(&harness, "select pg_stat_clear_snapshot()").await;
        harness.sql.query_opt(query, &[]).await.expect("activity")
    })
    .await;
    run(&harness, "alter publication p set (publish = 'insert, update, delete'); commit").await;
    eventually("the relay to have noted what is published", || async {
        let records = kafka::read(&format!("{}.state", harness.name));
        let noted = |event: &&kafka::Event| event.key.ends_with("/publication");
        records.iter().rfind(noted).filter(|event| event.value.contains("\"deletes\":true")).map(|_| ())
    })
    .await;
    run(&harness, "insert into t values (1, 1)").await;
    distinct(&format!("{}.t", harness.name), 1).await;
    assert_eq!(relay.metric("cdc_relay_sessions_total"), 1.0, "one session all the time");
    drop(relay);
}

/// The routes take what the publication sends: a publication without updates would miss them in silence.
#[tokio::test]
async fn a_publication_that_leaves_out_changes_of_the_routes_is_refused() {
    let mut harness = Harness::bare("filteroperations").await;
    run(&harness, "create table t (id int primary key, v int)").await;
    run(&harness, "create publication p for table t with (publish = 'insert')").await;
    let routes = five_lines(&harness, "{ name = \"t\" }");
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.start();
    let report = relay.state("refused").await;
    let fix = "alter publication p set (publish = 'insert, update')";
    assert!(report.contains("does not publish updates") && report.contains(fix), "{report}");
    run(&harness, fix).await;
    relay.streams().await;
}
