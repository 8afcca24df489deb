//! The commands that change which shard owns a bucket, as an operator types them.

use saga::shards::bucket::Bucket;
use sql::Database;

use super::adopted::change;
use super::{Pair, SUBSCRIBES, deposit, json, users};
use crate::fixture::superuser;

/// As an operator does it: what is not known of the disks is a reason to refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_added_filled_and_drained_by_commands() {
    let _turn = SUBSCRIBES.lock().await;
    let Some(mut pair) = Pair::born(Database::Balance).await.with_row_filters().await else { return };
    let [user, _] = users();
    deposit(&superuser(&pair.one).await, user, 5).await;
    // One after the other, though the second one has no rows.
    let bucket = Bucket::of(user).number();
    let buckets = format!("{bucket}, {}", (bucket + 1) % 1024);
    let begin = ["move", "--from", "one", "--to", "two", "--buckets", &buckets, "--operator", "ada"];
    let refused = pair.admin(&begin);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let reasons = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(reasons.contains("nothing was changed"), "{reasons}");
    for shard in ["source", "target"] {
        assert!(reasons.contains(&format!("The {shard} has no logical slot")), "{reasons}");
    }
    pair.start_relays().await;

    let succeeds = |arguments: &[&str], says: &str| {
        let output = pair.admin(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(says), "{arguments:?}: {output:?}");
    };
    let full = pair.admin(&["add", "one"]);
    assert!(String::from_utf8_lossy(&full.stderr).contains("has rows"), "{full:?}");
    succeeds(&["add", "two"], "owns no bucket now");
    let disks = ["--source-bytes-free", "1000000000", "--target-bytes-free", "1000000000"];
    let found = async || pair.accounts(user).await;
    assert_eq!(found().await, [Some(5), None]);
    let slowly = ["--at-a-time", "1", "--busy", "50"];
    succeeds(
        &[&begin[..], &disks, &slowly].concat(),
        "1 of 2 buckets are still to move; the next move begins in",
    );
    let listed = json(&pair.shard(&["list", "--json"]));
    assert_eq!(listed["shards"][1]["owned"].as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(found().await, [None, Some(5)]);
    succeeds(&["moves"], "No move is open.");

    succeeds(&[&["drain", "two", "--operator", "ada"][..], &disks].concat(), "has given up");
    assert_eq!(found().await, [Some(5), None]);
    let verified = pair.shard(&["verify", "--json"]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    pair.finish().await;
}

/// With their versions, so that nobody takes them for news.
#[tokio::test]
async fn an_added_shard_can_be_paid_for_what_the_others_can() {
    let pair = Pair::born(Database::Payments).await;
    let (one, two) = (superuser(&pair.one).await, superuser(&pair.two).await);
    let services = async |client: &tokio_postgres::Client| -> Vec<(String, String, bool, i32)> {
        let select = "select service_id, name, enabled, version from services order by service_id";
        let rows = client.query(select, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
    };
    one.batch_execute(
        "insert into services (service_id, name) values ('gas', 'Gas'), ('new', 'New'), ('off', 'Off');
         update services set name = 'Natural gas' where service_id = 'gas';
         update services set enabled = false where service_id = 'off'",
    )
    .await
    .unwrap();
    two.batch_execute("insert into services (service_id, name) values ('gas', 'Gas'), ('off', 'Off')")
        .await
        .unwrap();
    let added = pair.admin(&["add", "two"]);
    assert!(added.status.success(), "{added:?}");
    let there = services(&two).await;
    assert_eq!(there, services(&one).await);
    assert!(there.contains(&("gas".to_owned(), "Natural gas".to_owned(), true, 2)), "{there:?}");
    // Again, as after an interruption.
    let copied_again = async |set: &str| {
        one.batch_execute(&format!("update services set {set} where service_id = 'new'")).await.unwrap();
        let again = pair.admin(&["add", "two"]);
        assert!(again.status.success(), "{again:?}");
        services(&two).await == services(&one).await
    };
    assert!(copied_again("name = 'Newer'").await);
    // Not once it has owned a bucket: operators change the services of each shard.
    change(&pair.two, 7, 3, true, "one").await;
    change(&pair.two, 7, 4, false, "one").await;
    assert!(!copied_again("name = 'Newest'").await);
    pair.finish().await;
}

/// Its buckets have rows, or had some: nobody would own them.
#[tokio::test]
async fn a_shard_that_owns_a_bucket_by_a_move_is_not_added() {
    let pair = Pair::new(Database::Balance).await;
    let again = pair.admin(&["add", "two"]);
    assert!(again.status.success(), "{again:?}");
    change(&pair.two, 7, 3, true, "one").await;
    let refused = pair.admin(&["add", "two"]);
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && reason.contains("was a shard before"), "{refused:?}");
    let listed = json(&pair.shard(&["list", "--json"]));
    assert_eq!(listed["shards"][1]["owned"], serde_json::json!([7]), "{listed}");
    pair.finish().await;
}
