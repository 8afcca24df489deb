//! Tests a resnapshot that is killed, and one beside changes of its rows.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{DROP, sql, succeeds, versions, whole};
use crate::harness::{Harness, connect, eventually};
use crate::kafka;
use crate::refusals::used;

const ROWS: i64 = 40_000;

async fn filled(test: &str) -> Harness {
    let harness = used(test).await;
    let insert = "insert into items (owner, id, version, note) select 'o' || n % 5, n, 1, repeat('x', 300)
                  from generate_series(1, $1::int8) n";
    harness.sql.execute(insert, &[&ROWS]).await.expect("rows");
    sql(&harness, DROP).await;
    harness
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resnapshot_that_is_killed_leaves_the_relay_refused_and_starts_over() {
    let mut harness = filled("re_killed").await;
    let mut caught = 0;
    for moment in 0..6 {
        // The server may take a while to notice that the killed session is gone.
        let ended = "select 1 from pg_stat_activity where application_name = 'cdc-relay' and datname = $1";
        eventually("the killed session to be over", || async {
            harness.sql.query(ended, &[&harness.name]).await.expect("activity").is_empty().then_some(())
        })
        .await;
        let before = kafka::written(&harness.topic()).await;
        let mut child = harness
            .command("resnapshot")
            .arg("--yes")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("resnapshot");
        let exists = "select 1 from pg_replication_slots where slot_name = $1";
        match moment {
            0 => {}
            1 => {
                eventually("the slot to be made", || async {
                    (!harness.sql.query(exists, &[&harness.name]).await.expect("slot").is_empty())
                        .then_some(())
                })
                .await;
            }
            _ => {
                // Early, so that many rows are left whenever the kill comes.
                let enough = before + (moment - 2) * ROWS / 10 + 1;
                eventually("rows to be emitted", || async {
                    (kafka::written(&harness.topic()).await >= enough).then_some(())
                })
                .await;
            }
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        let emitted = kafka::written(&harness.topic()).await - before;
        let records = kafka::read(&format!("{}.state", harness.name));
        let phase = records.last().expect("a checkpoint").json()["phase"].clone();
        caught += usize::from(phase == "reconciling" && (1..ROWS).contains(&emitted));
        if phase == "reconciling" {
            let relay = harness.start();
            assert!(relay.state("refused").await.contains("is unfinished"));
            drop(relay);
        }
    }
    assert!(caught > 0, "it was never killed among the rows");
    harness.slot_is_free().await;
    succeeds(&harness, &["--yes", "--json"]);
    let relay = harness.streaming().await;
    harness.row("after", 1, 1, "made").await;
    harness.confirmed().await;
    assert_eq!(versions(&whole(&harness).await).len() as i64, ROWS + 2);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_meanwhile_are_emitted_in_their_last_state_at_the_end() {
    let mut harness = filled("re_changes").await;
    let (url, stop) = (harness.url.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let load = tokio::spawn(async move {
        let sql = connect(&url).await;
        let update = "update items set version = version + 1 where id in
                      (select (random() * 40000)::int8 from generate_series(1, 20))";
        while !stopped.load(Ordering::Relaxed) {
            sql.batch_execute(update).await.expect("update");
        }
    });
    succeeds(&harness, &[]);
    let relay = harness.streaming().await;
    stop.store(true, Ordering::Relaxed);
    load.await.expect("load");
    harness.confirmed().await;
    let events = whole(&harness).await;
    // The stream repeats no row, and no row goes back.
    let mut last = BTreeMap::new();
    for event in events {
        let (row, version) =
            ((event.key.clone(), event.json()["id"].as_i64()), event.json()["version"].as_i64());
        let before = last.insert(row.clone(), version);
        assert!(before < Some(version) || row.0 == "a", "{row:?}: {before:?} and then {version:?}");
    }
    drop(relay);
}
