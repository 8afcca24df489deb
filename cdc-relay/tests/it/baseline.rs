//! Tests a publication that changes while a slot is made, which may take hours.
//!
//! * The relay never goes on from less than the routes need.

use std::process::Stdio;

use crate::harness::{Harness, Relay, connect, ended, eventually};
use crate::kafka;
use crate::patient::{open, waits};
use crate::refusals::used;

async fn run(harness: &Harness, sql: &str) {
    harness.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The report of a relay that streams or refuses.
async fn decided(relay: &Relay) -> String {
    eventually("a decision", || async {
        relay.get("/health").filter(|report| {
            ["streaming", "refused"].iter().any(|s| report.contains(&format!("\"state\":\"{s}\"")))
        })
    })
    .await
}

fn resnapshot(harness: &Harness) {
    let output = harness.command("resnapshot").arg("--yes").output().expect("resnapshot");
    assert!(output.status.success(), "{output:?}");
}

fn emitted(harness: &Harness, id: &str) -> bool {
    kafka::read(&harness.topic()).iter().any(|event| event.header("ce_id") == id)
}

/// A change that makes the publication send less, part of the report, and the repair.
const LESS: [(&str, &str, &str); 3] = [
    (
        "alter publication events drop table items",
        "public.items is not published any more",
        "alter publication events add table items",
    ),
    (
        "alter publication events set (publish = 'insert')",
        "does not publish updates any more",
        "alter publication events set (publish = 'insert, update')",
    ),
    (
        "alter publication events drop table items; alter publication events add table items",
        "put in again",
        "select 1",
    ),
];

/// The loss it prevents: the relay takes the table for one that was never published, and everything is green.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_begins_with_the_publication_that_the_contract_was_checked_with() {
    for (change, says, back) in LESS {
        let mut harness = Harness::new("first").await;
        let (other, _) = open(&harness).await;
        let relay = harness.start();
        waits(&harness).await;
        run(&harness, change).await;
        other.batch_execute("commit").await.expect("commit");
        let report = decided(&relay).await;
        assert!(report.contains("\"state\":\"refused\"") && report.contains(says), "{change}: {report}");
        harness.row("lost", 1, 1, "made").await;
        run(&harness, back).await;
        resnapshot(&harness);
        relay.streams().await;
        assert!(emitted(&harness, "it/items/lost/1/1"), "{change}");
    }
}

/// A relay that ended after it made the slot goes on with that slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_while_a_slot_was_made_is_noticed_by_the_next_start_too() {
    let mut harness = used("adopted").await;
    let key = format!("it/{}", harness.name);
    let topic = format!("{}.state", harness.name);
    let last = kafka::read(&topic).into_iter().rfind(|event| event.key == key).expect("a checkpoint");
    let mut creating = last.json();
    creating["phase"] = "creating".into();
    kafka::write(&topic, &key, Some(&creating.to_string()));
    run(&harness, "alter publication events drop table items; alter publication events add table items")
        .await;
    let relay = harness.start();
    let report = decided(&relay).await;
    assert!(report.contains("put in again"), "{report}");
}

/// The loss it prevents: the topics count as complete, and the rows of a table were never read.
#[tokio::test(flavor = "multi_thread")]
async fn a_resnapshot_ends_with_all_that_the_routes_need_or_fails() {
    for (change, _, back) in &LESS[..2] {
        let mut harness = used("less_again").await;
        let (other, _) = open(&harness).await;
        let mut command = harness.command("resnapshot");
        command.arg("--yes").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("resnapshot");
        waits(&harness).await;
        run(&harness, change).await;
        other.batch_execute("commit").await.expect("commit");
        ended(&mut child).await;
        let output = child.wait_with_output().expect("resnapshot");
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{change}: {text}");
        assert!(text.contains("changed while the slot was made"), "{change}: {text}");
        let relay = harness.start();
        assert!(decided(&relay).await.contains("\"state\":\"refused\""));
        harness.row("lost", 1, 1, "made").await;
        run(&harness, back).await;
        resnapshot(&harness);
        relay.streams().await;
        assert!(emitted(&harness, "it/items/lost/1/1"), "{change}");
    }
}

/// Closes the harness's database for new connections, and ends the sessions that watch its publication.
async fn nobody_looks(harness: &Harness) {
    let admin = connect(&harness.servers.postgres).await;
    let close = format!("alter database {} with allow_connections false", harness.name);
    admin.batch_execute(&close).await.expect("closed");
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
    let others = "select 1 from pg_stat_activity
                  where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
    eventually("no session to watch the publication", || async {
        harness.sql.query(end, &[]).await.expect("terminate");
        harness.sql.query(others, &[]).await.expect("activity").is_empty().then_some(())
    })
    .await;
}

/// The loss it prevents: an operator looks for rows after a position that the lost ones are before, and takes the break
/// back.
#[tokio::test(flavor = "multi_thread")]
async fn a_break_that_a_start_notices_begins_where_the_publication_was_last_seen_whole() {
    let mut harness = Harness::new("since").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    nobody_looks(&harness).await;
    let (before, _) = harness.positions().await;
    run(
        &harness,
        "alter publication events drop table items; insert into items (owner, id, version) values ('lost', 1, 1);
         alter publication events add table items",
    )
    .await;
    // The checkpoint moves past the loss.
    harness.row("a", 2, 1, "made").await;
    harness.confirmed().await;
    relay.kill();
    harness.slot_is_free().await;
    let admin = connect(&harness.servers.postgres).await;
    let open = format!("alter database {} with allow_connections true", harness.name);
    admin.batch_execute(&open).await.expect("open");
    let relay = harness.start();
    let report = decided(&relay).await;
    let (_, rest) = report.split_once("committed after ").expect("where it begins");
    let since: cdc_relay::postgres::lsn::Lsn =
        rest.split_once(' ').expect("a position").0.parse().expect("a position");
    assert!(
        since.0 > 0 && since.0 <= before,
        "{since} is after {}: {report}",
        cdc_relay::postgres::lsn::Lsn(before)
    );
    resnapshot(&harness);
    relay.streams().await;
    assert!(emitted(&harness, "it/items/lost/1/1"));
}
