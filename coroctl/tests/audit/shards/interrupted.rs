//! Moves that were interrupted, on real servers: by a restore, or by an operator who types the next command.

use coroctl::shard::mover::record;
use coroctl::shard::moves::Step;
use coroctl::shard::replication;
use saga::shards::bucket::Bucket;
use sql::Database;
use uuid::Uuid;

use super::moving::{advance_to, mover, owns};
use super::{Pair, SUBSCRIBES, account, deposit, until, users};
use crate::fixture::superuser;

/// The target is as it was before the grant, and the source may have removed rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_does_not_take_back_what_was_granted_and_lost() {
    let _turn = SUBSCRIBES.lock().await;
    let pair = Pair::emitting(Database::Balance).await;
    if !pair.has_row_filters().await {
        return pair.finish().await;
    }
    let [user, _] = users();
    let (bucket, move_id) = (Bucket::of(user), Uuid::from_u128(0x800));
    let (source, target) = (superuser(&pair.one).await, superuser(&pair.two).await);
    deposit(&source, user, 5).await;
    let mut first = mover(&pair.one, &pair.two, move_id, bucket).await;
    advance_to(&mut first, Step::RecordGrant).await;
    drop(first);
    let restore = format!(
        "alter table owned_buckets disable trigger user;
         update owned_buckets set epoch = 2, owned = false, peer = null where bucket = {};
         alter table owned_buckets enable trigger user",
        bucket.number()
    );
    target.batch_execute(&restore).await.unwrap();

    let mut second = mover(&pair.one, &pair.two, move_id, bucket).await;
    let error = format!("{:#}", second.run().await.unwrap_err());
    assert!(error.contains("lost its grant"), "{error}");
    drop(second);
    assert!(record::request_abort(&source, move_id).await.unwrap());
    let mut third = mover(&pair.one, &pair.two, move_id, bucket).await;
    third.run().await.unwrap_err();
    assert!(!owns(&pair.one, bucket).await && !owns(&pair.two, bucket).await);
    assert_eq!(account(&pair.one, user).await, Some(5));

    let unsubscribe = replication::drop_subscription(move_id).join("; ");
    target.batch_execute(&format!("begin; {unsubscribe}; commit")).await.unwrap();
    let active = format!(
        "select count(*)::text from pg_replication_slots where active and slot_name = '{}'",
        replication::name(move_id)
    );
    until(&source, &active, "0").await;
    drop((third, source, target));
    pair.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_move_goes_on_while_a_shard_is_closed() {
    let _turn = SUBSCRIBES.lock().await;
    let pair = Pair::emitting(Database::Balance).await;
    if !pair.has_row_filters().await {
        return pair.finish().await;
    }
    let [user, _] = users();
    let move_id = Uuid::from_u128(0x900);
    deposit(&superuser(&pair.one).await, user, 5).await;
    let mut first = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    advance_to(&mut first, Step::Subscribe).await;
    drop(first);
    let id = move_id.to_string();
    let names = ["from", "to"];
    for harness in [&pair.one, &pair.two] {
        let client = superuser(harness).await;
        client.batch_execute("update incarnations set incarnation = incarnation || ' closed'").await.unwrap();
        for command in ["resume", "abort"] {
            let refused = pair.admin_of(names, &[command, &id]);
            let reason = String::from_utf8_lossy(&refused.stderr);
            assert!(!refused.status.success() && reason.contains("is closed"), "{command}: {refused:?}");
        }
        let open = "update incarnations set incarnation = replace(incarnation, ' closed', '')";
        client.batch_execute(open).await.unwrap();
    }
    let asked = record::read(&superuser(&pair.one).await, move_id).await.unwrap().unwrap().abort_requested;
    assert!(!asked, "a refused abort was written down");

    let aborted = pair.admin_of(names, &["abort", &id]);
    let text = String::from_utf8_lossy(&aborted.stdout);
    assert!(text.contains("The source owns the buckets, as before."), "{aborted:?}");
    assert_eq!([account(&pair.one, user).await, account(&pair.two, user).await], [Some(5), None]);
    pair.finish().await;
}
