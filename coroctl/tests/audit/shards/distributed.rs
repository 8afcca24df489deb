//! `coroctl shard distribute`: the buckets of new databases.

use std::process::Output;

use coroctl::shard::mover::record::{self, Move};
use coroctl::shard::moves::{Outcome, Side};
use saga::shards::bucket::Bucket;
use saga::shards::placement::{self, Candidate};
use sql::Database;
use sql::harness::Harness;
use uuid::Uuid;

use super::moving::described;
use super::{Pair, deposit, json, users};
use crate::fixture::superuser;

/// Bucket, epoch, owned and peer.
type Row = (i16, i64, bool, Option<String>);

async fn rows(harness: &Harness) -> Vec<Row> {
    let select = "select bucket, epoch, owned, peer from owned_buckets order by bucket";
    let rows = superuser(harness).await.query(select, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

async fn both(pair: &Pair) -> [Vec<Row>; 2] {
    [rows(&pair.one).await, rows(&pair.two).await]
}

/// All buckets that it owns are given up, at the next epoch.
async fn give_up(harness: &Harness, peer: Option<&str>) {
    let give_up = "
        select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, $1) from owned_buckets where owned";
    superuser(harness).await.execute(give_up, &[&peer]).await.unwrap();
}

fn planned_for_two() -> Vec<i16> {
    let shards = ["one", "two"].map(|name| Candidate { name, is_drained: false });
    let is_for_two = |bucket: &Bucket| placement::proposed(*bucket, &shards) == Some(1);
    Bucket::all().filter(is_for_two).map(Bucket::number).collect()
}

async fn is_as_planned(pair: &Pair) {
    let listed = json(&pair.shard(&["list", "--json"]));
    for unserved in ["moving", "away", "contested"] {
        assert_eq!(listed[unserved], serde_json::json!([]), "{listed}");
    }
    let planned = pair.shard(&["plan"]);
    assert!(String::from_utf8_lossy(&planned.stdout).contains("where it should be"), "{planned:?}");
    // Nobody who knows an older owner can believe it.
    let [one, two] = both(pair).await;
    for (one, two) in one.iter().zip(&two) {
        assert_ne!(one.2, two.2, "{one:?}, {two:?}");
        assert_eq!(one.2, one.1 > two.1, "{one:?}, {two:?}");
    }
}

fn refused(output: &Output, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains(reason), "{output:?}");
}

#[tokio::test]
async fn new_databases_get_their_buckets_and_keep_them() {
    let pair = Pair::born(Database::Balance).await;
    let shared = pair.admin(&["distribute"]);
    assert!(shared.status.success(), "{shared:?}");
    is_as_planned(&pair).await;
    let before = both(&pair).await;
    // There are users by now, and nothing to do.
    deposit(&superuser(&pair.one).await, users()[0], 5).await;
    let again = pair.admin(&["distribute"]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(both(&pair).await, before);
    pair.finish().await;
}

/// After `add`, and after a run that was killed between its transactions.
#[tokio::test]
async fn it_goes_on_from_what_an_earlier_run_has_left() {
    for is_second_new in [true, false] {
        let pair = Pair::born(Database::Balance).await;
        if !is_second_new {
            give_up(&pair.two, None).await;
        }
        let planned =
            "select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, 'two')
                         from owned_buckets where bucket = any ($1::int2[])";
        superuser(&pair.one).await.execute(planned, &[&planned_for_two()]).await.unwrap();
        let shared = pair.admin(&["distribute"]);
        assert!(shared.status.success(), "{shared:?}");
        is_as_planned(&pair).await;
        pair.finish().await;
    }
}

#[tokio::test]
async fn a_database_in_use_is_refused_and_nothing_changes() {
    let pair = Pair::born(Database::Balance).await;
    let before = both(&pair).await;
    let row = superuser(&pair.two).await;
    deposit(&row, users()[0], 5).await;
    refused(&pair.admin(&["distribute"]), "accounts has rows");
    assert_eq!(both(&pair).await, before);
    row.batch_execute("delete from accounts").await.unwrap();

    let moved = described(&pair.one, &pair.two, Uuid::from_u128(0x900), Bucket::new(4).unwrap()).await;
    let moved = Move { relay_slots: vec!["relay".to_owned()], ..moved };
    let mut one = superuser(&pair.one).await;
    let transaction = one.transaction().await.unwrap();
    record::announce(&transaction, &moved, Side::Source, "two").await.unwrap();
    record::close(&transaction, moved.move_id, Outcome::RolledBack).await.unwrap();
    transaction.commit().await.unwrap();
    refused(&pair.admin(&["distribute"]), "were moved before");
    assert_eq!(both(&pair).await, before);
    drop((row, one));
    pair.finish().await;
}

#[tokio::test]
async fn a_list_without_the_owner_is_refused() {
    let pair = Pair::born(Database::Balance).await;
    for harness in [&pair.one, &pair.two] {
        give_up(harness, None).await;
    }
    let before = both(&pair).await;
    refused(&pair.admin(&["distribute"]), "every shard of the service");
    assert_eq!(both(&pair).await, before);
    let one = super::superuser_url(&pair.one);
    refused(&pair.admin_with(&format!("one={one}"), &["distribute"]), "nothing to share out");
    pair.finish().await;
}
