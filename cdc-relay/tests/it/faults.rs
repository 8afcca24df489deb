//! Kills under load: nothing is lost, nothing overtakes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kafka::{Event, chain, distinct, first_tellings};
use crate::rig::{Rig, connect};

const OWNERS: i64 = 5;

/// Commits versions of a few rows, one transaction each, until told to stop. Answers the number of rows told.
async fn load(url: String, stop: Arc<AtomicBool>) -> i64 {
    let sql = connect(&url).await;
    let insert = sql
        .prepare(
            "insert into items (owner, id, version, note) select 'o' || n, 1, $1, repeat('x', 200)
             from generate_series(1, $2::int8) n
             on conflict (owner, id) do update set version = excluded.version",
        )
        .await
        .expect("statement");
    let mut version = 0;
    while !stop.load(Ordering::Relaxed) {
        version += 1;
        sql.execute(&insert, &[&version, &OWNERS]).await.expect("commit");
        // Slow enough that reading the topic again and again stays quick.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    i64::from(version) * OWNERS
}

/// Every version of every owner, first told in order, in one closed chain.
fn whole(events: &[Event], rows: i64) {
    let versions: BTreeMap<String, Vec<i64>> = first_tellings(events)
        .into_iter()
        .map(|(owner, events)| {
            (owner, events.iter().map(|event| event.json()["version"].as_i64().expect("version")).collect())
        })
        .collect();
    assert_eq!(versions.len() as i64, OWNERS);
    for (owner, versions) in versions {
        assert!(versions.iter().copied().eq(1..=rows / OWNERS), "{owner}: {versions:?}");
    }
    assert_eq!(chain(events) as i64, rows / OWNERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_walsender_under_load_loses_and_reorders_nothing() {
    let mut rig = Rig::new("walsender").await;
    let relay = rig.streaming().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(rig.url.clone(), Arc::clone(&stop)));
    let mut kills = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        kills += i32::from(rig.kill_walsender().await);
    }
    stop.store(true, Ordering::Relaxed);
    let rows = load.await.expect("load");
    let events = distinct(&rig.topic(), rows as usize).await;
    whole(&events, rows);
    assert!(kills >= 5, "only {kills} sessions were hit");
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_relay_under_load_loses_and_reorders_nothing() {
    let mut rig = Rig::new("kill9").await;
    let stop = Arc::new(AtomicBool::new(false));
    rig.streaming().await.kill();
    let load = tokio::spawn(load(rig.url.clone(), Arc::clone(&stop)));
    for round in 0..8u64 {
        let relay = rig.streaming().await;
        // At another moment every time: before, during and after writes of the memory and of the slot.
        tokio::time::sleep(Duration::from_millis(60 + 47 * round)).await;
        relay.kill();
    }
    stop.store(true, Ordering::Relaxed);
    let rows = load.await.expect("load");
    let relay = rig.streaming().await;
    let events = distinct(&rig.topic(), rows as usize).await;
    whole(&events, rows);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_the_first_start_neither_wedges_nor_loses() {
    let mut rig = Rig::new("first").await;
    // A transaction that stays open keeps the slot from being made: the crash is between memory and slot.
    let mut other = connect(&rig.url).await;
    let open = other.transaction().await.expect("begin");
    open.batch_execute("insert into items (owner, id, version) values ('x', 1, 1)").await.expect("insert");
    let relay = rig.start();
    let making =
        "select 1 from pg_stat_activity where query ilike 'create_replication_slot%' and datname = $1";
    crate::rig::eventually("the slot to be in the making", || async {
        (!rig.sql.query(making, &[&rig.name]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    relay.kill();
    open.commit().await.expect("commit");
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    distinct(&rig.topic(), 1).await;
    drop(relay);
}
