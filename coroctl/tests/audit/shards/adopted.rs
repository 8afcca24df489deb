//! `adopt` on real servers: a shard that was restored, next to one that went on.

use coroctl::shard::mover::record;
use coroctl::shard::moves::{Outcome, Side};
use saga::shards::bucket::Bucket;
use sql::Database;
use sql::harness::Harness;
use uuid::Uuid;

use super::Pair;
use super::moving::described;
use crate::fixture::superuser;

/// As a move leaves the bucket.
pub async fn change(harness: &Harness, bucket: i16, epoch: i64, owned: bool, peer: &str) {
    let change = "
        select change_ownership(array[bucket], array[epoch], array[$2::int8], $3, $4) from owned_buckets where bucket = $1";
    superuser(harness).await.execute(change, &[&bucket, &epoch, &owned, &peer]).await.unwrap();
}

/// The buckets from the first on: epoch, and whether it is owned.
async fn rows(harness: &Harness, count: usize) -> Vec<(i64, bool)> {
    let select = "select epoch, owned from owned_buckets order by bucket";
    let rows = superuser(harness).await.query(select, &[]).await.unwrap();
    rows.iter().take(count).map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_restored_shard_gives_up_what_has_left_it_and_keeps_the_rest() {
    // The first is as its backup was; the second was added after it.
    let pair = Pair::emitting(Database::Balance).await;
    change(&pair.two, 1, 3, true, "one").await;
    change(&pair.two, 2, 5, false, "one").await;
    change(&pair.two, 3, 6, false, "three").await;
    let moved = described(&pair.one, &pair.two, Uuid::new_v4(), Bucket::new(4).unwrap()).await;
    let mut two = superuser(&pair.two).await;
    let transaction = two.transaction().await.unwrap();
    record::announce(&transaction, &moved, Side::Target, "one").await.unwrap();
    transaction.commit().await.unwrap();

    let tried = pair.admin(&["adopt", "one", "--dry-run"]);
    assert!(String::from_utf8_lossy(&tried.stdout).contains("would give up 2 buckets"), "{tried:?}");
    assert_eq!(rows(&pair.one, 1024).await, [(1, true); 1024]);

    let adopted = pair.admin(&["adopt", "one"]);
    assert_eq!(adopted.status.code(), Some(1), "{adopted:?}");
    let reasons = String::from_utf8_lossy(&adopted.stderr);
    assert!(reasons.contains("have not ended") && reasons.contains(&moved.move_id.to_string()), "{reasons}");
    // Kept beside an added shard; moved away; its fence was lifted; passed on; of a move that has not ended.
    let expected = [(4, true), (4, false), (7, true), (7, false), (1, true), (4, true)];
    assert_eq!(rows(&pair.one, 6).await, expected);

    let transaction = two.transaction().await.unwrap();
    record::close(&transaction, moved.move_id, Outcome::RolledBack).await.unwrap();
    transaction.commit().await.unwrap();
    let adopted = pair.admin(&["adopt", "one"]);
    assert!(adopted.status.success(), "{adopted:?}");
    let expected = [(4, true), (4, false), (7, true), (7, false), (4, true), (4, true)];
    assert_eq!(rows(&pair.one, 6).await, expected);
    drop(two);
    pair.finish().await;
}

/// Its backup is from before the move, and its target serves the bucket.
#[tokio::test]
async fn a_move_that_was_granted_after_the_backup_ends_at_its_target() {
    let pair = Pair::emitting(Database::Balance).await;
    let moved = described(&pair.one, &pair.two, Uuid::new_v4(), Bucket::new(4).unwrap()).await;
    let mut two = superuser(&pair.two).await;
    let transaction = two.transaction().await.unwrap();
    record::announce(&transaction, &moved, Side::Target, "one").await.unwrap();
    transaction.commit().await.unwrap();
    change(&pair.two, 4, moved.attempts[0].granted(), true, "one").await;

    let adopted = pair.admin(&["adopt", "one"]);
    assert!(adopted.status.success(), "{adopted:?}");
    let id = moved.move_id.to_string();
    assert!(String::from_utf8_lossy(&adopted.stdout).contains(&format!("resume {id}")), "{adopted:?}");
    assert_eq!(rows(&pair.one, 5).await[4], (moved.attempts[0].granted() + 1, false));
    assert!(record::open(&superuser(&pair.one).await).await.unwrap().is_empty());

    let resumed = pair.admin(&["resume", &id]);
    assert!(resumed.status.success(), "{resumed:?}");
    assert!(record::open(&two).await.unwrap().is_empty());
    assert_eq!(rows(&pair.two, 5).await[4], (moved.attempts[0].granted(), true));
    drop(two);
    pair.finish().await;
}

/// Its backup has the record of a move that has ended since.
#[tokio::test]
async fn a_move_that_has_ended_elsewhere_is_in_nobodys_way() {
    let pair = Pair::emitting(Database::Balance).await;
    let moved = described(&pair.one, &pair.two, Uuid::new_v4(), Bucket::new(4).unwrap()).await;
    for (harness, side, peer) in [(&pair.one, Side::Source, "two"), (&pair.two, Side::Target, "one")] {
        let mut client = superuser(harness).await;
        let transaction = client.transaction().await.unwrap();
        record::announce(&transaction, &moved, side, peer).await.unwrap();
        if side == Side::Target {
            record::close(&transaction, moved.move_id, Outcome::Moved).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }
    change(&pair.two, 4, 4, true, "one").await;
    let adopted = pair.admin(&["adopt", "one"]);
    assert!(adopted.status.success(), "{adopted:?}");
    assert_eq!(rows(&pair.one, 5).await[4], (5, false));
    assert!(record::open(&superuser(&pair.one).await).await.unwrap().is_empty());
    pair.finish().await;
}
