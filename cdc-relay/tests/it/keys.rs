//! Tests that a row has one key: in the stream, in queries, in tombstones and on the terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::commands::Tail;
use crate::harm::{five_lines, major, run};
use crate::harness::{Harness, connect, eventually};
use crate::kafka::distinct;

/// The columns that an index only includes are payload.
#[tokio::test]
async fn columns_that_a_primary_key_includes_are_no_part_of_the_key() {
    for identity in ["default", "full"] {
        let mut harness = Harness::bare("included").await;
        run(&harness, "create table t (id int, payload text, primary key (id) include (payload))").await;
        run(&harness, &format!("insert into t values (0, 'z'); alter table t replica identity {identity}"))
            .await;
        harness.routes(&five_lines(&harness, "{ name = \"t\", deletes = \"tombstone\", snapshot = true }"));
        let relay = harness.streaming().await;
        let tail = Tail::start(&harness, &["--json", "--limit", "3"]);
        run(&harness, "insert into t values (1, 'a')").await;
        run(&harness, "update t set payload = 'b' where id = 1").await;
        run(&harness, "delete from t where id = 1").await;
        let events = distinct(&format!("{}.t", harness.name), 4).await;
        let of = |key: &str| events.iter().filter(|event| event.key == key).count();
        assert_eq!((of("0"), of("1")), (1, 3), "{identity}: {events:#?}");
        for _ in 0..3 {
            let line: Value = serde_json::from_str(&tail.line()).expect("an object");
            assert_eq!(line["key"], json!({"id": 1}), "{identity}: {line}");
        }
        drop(relay);
    }
}

/// The WAL has the key of a deleted row, and an included column is no part of the key.
#[tokio::test]
async fn a_route_that_needs_an_included_column_of_a_deleted_row_is_refused() {
    let mut harness = Harness::bare("includedroute").await;
    run(&harness, "create table t (id int, payload text, primary key (id) include (payload))").await;
    harness.routes(&five_lines(&harness, "{ name = \"t\", key = \"{payload}\", deletes = \"tombstone\" }"));
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("column payload of a deleted row of public.t is not in the WAL"), "{report}");
    // Doctor says the same of a publication that is there.
    run(&harness, "create publication p for table t with (publish = 'insert, update, delete')").await;
    let routes = five_lines(&harness, "{ name = \"t\", key = \"{payload}\", deletes = \"tombstone\" }");
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let output = harness.command("doctor").output().expect("doctor");
    let out = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("column payload of a deleted row of public.t is not in the WAL"), "{out}");
}

/// The ids come from the rows, so that a replay can emit them again.
fn by_code(harness: &Harness) -> String {
    let table = "{ name = \"t\", deletes = \"tombstone\", snapshot = true, id = \"t/{code}/{v}\" }";
    five_lines(harness, table)
}

const BY_CODE: &str = "create table t (id int primary key, code text not null, v int not null);
     create unique index t_code on t (code); alter table t replica identity using index t_code";

/// The server writes the columns of the replica identity into an old row. Therefore they are the key: of the stream, of
/// queries, and of the tombstone that ends a row.
#[tokio::test]
async fn a_row_has_one_key_though_its_identity_is_not_its_primary_key() {
    let mut harness = Harness::bare("identity").await;
    run(&harness, BY_CODE).await;
    run(&harness, "insert into t values (1, 'a', 1)").await;
    harness.routes(&by_code(&harness));
    let relay = harness.streaming().await;
    let topic = format!("{}.t", harness.name);
    distinct(&topic, 1).await;
    let tail = Tail::start(&harness, &["--json", "--limit", "3"]);
    run(&harness, "insert into t values (2, 'b', 1)").await;
    run(&harness, "update t set v = 2 where id = 2").await;
    run(&harness, "delete from t where id = 2").await;
    distinct(&topic, 4).await;
    harness.confirmed().await;
    for _ in 0..3 {
        let line: Value = serde_json::from_str(&tail.line()).expect("an object");
        assert_eq!(line["key"], json!({"code": "b"}), "{line}");
    }
    let replay = ["--table", "t", "--where", "id = 1", "--yes"];
    let replay = harness.command("replay").args(replay).output().expect("replay");
    assert_eq!(replay.status.code(), Some(0), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!(relay.stop().await, Some(0));
    harness.slot_is_free().await;
    let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("resnapshot");
    assert_eq!(resnapshot.status.code(), Some(0), "{}", String::from_utf8_lossy(&resnapshot.stderr));
    let keys: Vec<String> = crate::kafka::read(&topic).into_iter().map(|event| event.key).collect();
    // One of the snapshot, three of the stream, one of the replay, one of the resnapshot.
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(sorted, ["a", "a", "a", "b", "b", "b"], "{keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_to_its_end_beside_deletes_that_name_another_index_than_the_primary_key() {
    let mut harness = Harness::bare("identitydeletes").await;
    run(&harness, BY_CODE).await;
    run(&harness, "insert into t select n, 'c' || n, 1 from generate_series(1, 40000) n").await;
    harness.routes(&by_code(&harness));
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> =
        (1..=6).map(|lane| tokio::spawn(deletes(harness.url.clone(), lane, Arc::clone(&stop)))).collect();
    let relay = harness.streaming().await;
    let state = format!("{}.state", harness.name);
    eventually("the snapshot to be done", || async {
        let records = crate::kafka::read(&state);
        let position = records.iter().rfind(|event| event.key.ends_with("/snapshot/public.t"))?;
        (position.json()["done"] == true).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.await.expect("load") > 0);
    }
    drop(relay);
}

/// Inserts rows and deletes them, one by one, until it is stopped.
async fn deletes(url: String, lane: i32, stop: Arc<AtomicBool>) -> i32 {
    let sql = connect(&url).await;
    let insert = sql.prepare("insert into t values ($1, 'd' || $1::int, 1)").await.expect("insert");
    let delete = sql.prepare("delete from t where id = $1").await.expect("delete");
    let mut deleted = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = -(deleted * 10 + lane);
        sql.execute(&insert, &[&id]).await.expect("insert");
        sql.execute(&delete, &[&id]).await.expect("delete");
        deleted += 1;
    }
    deleted
}

const GENERATED: &str =
    "create table t (id int primary key, v int not null, g int generated always as (v * 2) stored);
     insert into t (id, v) values (1, 1)";

/// A published generated column is in every event of its row, whichever way it is published.
#[tokio::test]
async fn a_published_generated_column_is_emitted_wherever_its_row_is() {
    let option = "create publication p for table t with (publish = 'insert, update', publish_generated_columns = stored)";
    let list = "create publication p for table t (id, v, g) with (publish = 'insert, update')";
    for publication in ["", option, list] {
        let mut harness = Harness::bare("generated").await;
        if major(&harness).await < 18 {
            return;
        }
        run(&harness, GENERATED).await;
        let routes = five_lines(&harness, "{ name = \"t\", snapshot = true, id = \"t/{id}/{v}/{g}\" }");
        if publication.is_empty() {
            harness.routes(&routes);
        } else {
            run(&harness, publication).await;
            harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
        }
        let relay = harness.streaming().await;
        let topic = format!("{}.t", harness.name);
        distinct(&topic, 1).await;
        run(&harness, "insert into t (id, v) values (2, 2)").await;
        distinct(&topic, 2).await;
        harness.confirmed().await;
        let replay = harness.command("replay").args(["--table", "t", "--where", "g = 4", "--yes"]).output();
        let replay = replay.expect("replay");
        assert_eq!(replay.status.code(), Some(0), "{}", String::from_utf8_lossy(&replay.stderr));
        assert_eq!(relay.stop().await, Some(0));
        harness.slot_is_free().await;
        let resnapshot = harness.command("resnapshot").arg("--yes").output().expect("resnapshot");
        assert_eq!(resnapshot.status.code(), Some(0), "{}", String::from_utf8_lossy(&resnapshot.stderr));
        let events = crate::kafka::read(&topic);
        assert_eq!(events.len(), 5, "{publication}: {events:#?}");
        for event in events {
            let row = event.json();
            let (v, g) = (row["v"].as_i64(), row["g"].as_i64());
            assert_eq!(v.map(|v| v * 2), g, "{publication}: {row}");
        }
    }
}

/// The relay refuses a template that can never be filled; otherwise every row would be a dead letter.
#[tokio::test]
async fn a_route_that_needs_a_generated_column_which_is_not_published_is_refused() {
    let mut harness = Harness::bare("generatednot").await;
    run(&harness, GENERATED).await;
    run(&harness, "create publication p for table t with (publish = 'insert, update')").await;
    let routes = five_lines(&harness, "{ name = \"t\", id = \"t/{id}/{g}\" }");
    harness.routes(&routes.replace("slot =", "publication = \"p\"\nslot ="));
    let relay = harness.start();
    let report = relay.state("refused").await;
    assert!(report.contains("column g of public.t is not published"), "{report}");
}
