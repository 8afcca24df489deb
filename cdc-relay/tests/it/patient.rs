//! Tests a transaction that is open when a slot is to be made.
//!
//! * The server makes no slot before that transaction ends.
//! * The relay says so, waits as long as it takes, and leaves nothing behind.

use std::time::Duration;

use tokio_postgres::Client;

use crate::harness::{Harness, connect, ended, eventually};

/// An open transaction that has written a row, and its server process.
pub async fn open(harness: &Harness) -> (Client, i32) {
    let other = connect(&harness.url).await;
    other
        .batch_execute("begin; insert into items (owner, id, version) values ('open', 1, 1)")
        .await
        .expect("a row");
    let pid = other.query_one("select pg_backend_pid()", &[]).await.expect("pid").get(0);
    (other, pid)
}

/// The walsenders of the harness's database.
async fn walsenders(harness: &Harness) -> usize {
    let ask =
        "select 1 from pg_stat_activity where backend_type = 'walsender' and datname = current_database()";
    harness.sql.query(ask, &[]).await.expect("activity").len()
}

/// Waits until the server waits for a transaction before it makes the slot.
pub async fn waits(harness: &Harness) {
    let ask =
        "select 1 from pg_stat_activity where backend_type = 'walsender' and datname = current_database()
               and query like 'CREATE_REPLICATION_SLOT%' and wait_event_type = 'Lock'";
    eventually("the server to wait", || async {
        (!harness.sql.query(ask, &[]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
}

async fn gone(harness: &Harness) {
    eventually("no walsender", || async { (walsenders(harness).await == 0).then_some(()) }).await;
    let slots = "select 1 from pg_replication_slots where database = current_database()";
    assert!(harness.sql.query(slots, &[]).await.expect("slots").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_says_which_transaction_it_waits_for_and_leaves_nothing_behind() {
    let mut harness = Harness::new("patient").await;
    let (other, pid) = open(&harness).await;
    for kill in [false, true] {
        let relay = harness.start();
        let wanted = format!("process {pid}");
        eventually("a log line about the transaction", || async {
            relay.get("/health").filter(|report| report.contains("connecting") && report.contains(&wanted))
        })
        .await;
        assert_eq!(walsenders(&harness).await, 1);
        if kill {
            relay.kill();
        } else {
            assert_eq!(relay.stop().await, Some(0));
        }
        gone(&harness).await;
    }
    let relay = harness.start();
    waits(&harness).await;
    other.batch_execute("commit").await.expect("commit");
    relay.streams().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn a_first_start_waits_as_long_as_it_takes() {
    let mut harness = Harness::new("patient_long").await;
    let (other, pid) = open(&harness).await;
    let relay = harness.start();
    let mut tail = harness.command("tail").arg(&harness.url).args(["--limit", "1"]).spawn().expect("tail");
    tokio::time::sleep(Duration::from_secs(135)).await;
    let report = relay.get("/health").expect("an answer");
    assert!(report.contains(&format!("process {pid}")), "{report}");
    assert!(tail.try_wait().expect("wait").is_none(), "it gave up");
    assert_eq!(walsenders(&harness).await, 2);
    other.batch_execute("commit").await.expect("commit");
    relay.streams().await;
    while tail.try_wait().expect("wait").is_none() {
        harness.row("a", 1, 1, "made").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_waits_for_its_slot_leaves_nothing_behind() {
    let harness = Harness::new("patient_tail").await;
    let (_other, _) = open(&harness).await;
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mut tail = harness.command("tail").arg(&harness.url).spawn().expect("tail");
        waits(&harness).await;
        rustix::process::kill_process(rustix::process::Pid::from_child(&tail), signal).expect("signal");
        ended(&mut tail).await;
        gone(&harness).await;
    }
}
