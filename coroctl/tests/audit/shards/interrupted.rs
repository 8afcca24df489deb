//! Moves that were interrupted, on real servers: by a restore, or by an operator who types the next command.

use coroctl::shard::mover::record;
use coroctl::shard::moves::Step;
use coroctl::shard::replication;
use saga::shards::bucket::Bucket;
use sql::Database;
use uuid::Uuid;

use super::moving::{advance_to, mover, owns};
use super::{Pair, account, deposit, json, superuser_url, until, users};
use crate::fixture::superuser;

/// The target is as it was before the grant, and the source may have removed rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_does_not_take_back_what_was_granted_and_lost() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let (bucket, move_id) = (Bucket::of(user), Uuid::new_v4());
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
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let move_id = Uuid::new_v4();
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

    // A shard that has no part in it does not answer.
    let urls = [superuser_url(&pair.one), superuser_url(&pair.two)];
    let shards = format!("away=postgres://nobody@127.0.0.1:1/none from={} to={}", urls[0], urls[1]);
    let listed = pair.admin_of(names, &["moves"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&id), "{listed:?}");
    let aborted = pair.admin_with(&shards, &["abort", &id]);
    let text = String::from_utf8_lossy(&aborted.stdout);
    assert!(text.contains("The source owns the buckets, as before."), "{aborted:?}");
    assert_eq!(pair.accounts(user).await, [Some(5), None]);
    pair.finish().await;
}

/// A table that came after the publication has rows that nobody copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_move_is_about_the_tables_that_it_began_with() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let move_id = Uuid::new_v4();
    let source = superuser(&pair.one).await;
    deposit(&source, user, 5).await;
    let mut first = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    advance_to(&mut first, Step::Subscribe).await;
    drop(first);
    source.batch_execute("create table notes (user_id uuid primary key)").await.unwrap();
    source.execute("insert into notes values ($1)", &[&user]).await.unwrap();
    let resumed = pair.admin_of(["from", "to"], &["resume", &move_id.to_string()]);
    let text = String::from_utf8_lossy(&resumed.stdout);
    assert!(text.contains("The target owns the buckets."), "{resumed:?}");
    assert_eq!(pair.accounts(user).await, [None, Some(5)]);
    let notes: i64 = source.query_one("select count(*) from notes", &[]).await.unwrap().get(0);
    assert_eq!(notes, 1, "removed, and never copied");
    drop(source);
    pair.finish().await;
}

/// Whichever of the two comes first: the tables of a move stay as they are.
#[tokio::test]
async fn a_move_does_not_begin_beside_a_migration_nor_after_one() {
    let pair = Pair::emitting(Database::Balance).await;
    let [user, _] = users();
    let mut mover = mover(&pair.one, &pair.two, Uuid::new_v4(), Bucket::of(user)).await;
    let migration = "select from pg_advisory_lock(hashtext('coro migrations'))";
    let unlock = "select pg_advisory_unlock_all()";
    for (at, harness) in [&pair.one, &pair.two].into_iter().enumerate() {
        let client = superuser(harness).await;
        client.execute(migration, &[]).await.unwrap();
        let beside = format!("{:#}", mover.advance().await.unwrap_err());
        assert!(beside.contains("a migration is being applied"), "{beside}");
        client.execute(unlock, &[]).await.unwrap();
        let apply = "insert into refinery_schema_history (version, name, applied_on, checksum) values (99, 'test', '', '')";
        client.batch_execute(apply).await.unwrap();
        let after = format!("{:#}", mover.advance().await.unwrap_err());
        assert!(after.contains("migration 99 was applied"), "{after}");
        assert_eq!(record::open(&client).await.unwrap().len(), 0);
        client.batch_execute("delete from refinery_schema_history where version = 99").await.unwrap();
        mover.advance().await.unwrap();
        assert_eq!(record::open(&client).await.unwrap().len(), 1, "shard {at}");
        drop(client);
    }
    drop(mover);
    pair.finish().await;
}

/// The publication goes with the record, so that no kill leaves it behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mover_that_is_killed_after_its_slot_was_dropped_leaves_no_publication() {
    let Some((_turn, pair)) = Pair::moving().await else { return };
    let [user, _] = users();
    let move_id = Uuid::new_v4();
    deposit(&superuser(&pair.one).await, user, 5).await;
    let mut first = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    advance_to(&mut first, Step::DropSlot).await;
    drop(first);
    let mut second = mover(&pair.one, &pair.two, move_id, Bucket::of(user)).await;
    second.run().await.unwrap();
    drop(second);
    let verified = pair.shard(&["verify", "--json"]);
    assert_eq!(json(&verified)["replication"], serde_json::json!([]), "{verified:?}");
    pair.finish().await;
}
