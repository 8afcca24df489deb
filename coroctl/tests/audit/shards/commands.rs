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
    assert!(reasons.contains("nothing was changed") && reasons.contains("has no logical slot"), "{reasons}");
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
