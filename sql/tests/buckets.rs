//! Buckets on a real server: what they are, who may change them, and who is refused.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use sql::Database;
use sql::harness::Harness;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

const SHARDED: [Database; 3] = [Database::Payments, Database::Balance, Database::Processor];
const NOT_OWNED: &str = "SB001";
const CHANGED: &str = "SB002";

fn code(error: &Error) -> &str {
    error.code().map(SqlState::code).unwrap_or_default()
}

async fn require(client: &Client, buckets: &[i16], epochs: &[i64]) -> Result<bool, Error> {
    let row = client.query_one("select require_ownership($1, $2)", &[&buckets, &epochs]).await?;
    Ok(row.get(0))
}

async fn change(client: &Client, bucket: i16, known: i64, epoch: i64, owned: bool) -> Result<u64, Error> {
    let change = "select change_ownership(array[$1::int2], array[$2::int8], array[$3::int8], $4, 'other')";
    client.execute(change, &[&bucket, &known, &epoch, &owned]).await
}

#[tokio::test]
async fn a_new_database_owns_every_bucket_at_the_first_epoch() {
    for kind in SHARDED {
        let harness = Harness::new(kind).await.unwrap();
        let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
        let count = "select count(*), min(bucket), max(bucket) from owned_buckets
                      where epoch = 1 and owned and peer is null";
        let row = service.query_one(count, &[]).await.unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), (1024_i64, 0_i16, 1023_i16), "{kind:?}");
        drop(service);
        harness.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_bucket_is_what_the_golden_values_say_and_what_a_row_filter_may_compute() {
    let golden: Vec<(&str, i16)> = include_str!("../buckets.tsv")
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(user_id, bucket)| (user_id, bucket.parse().unwrap()))
        .collect();
    for kind in SHARDED {
        let harness = Harness::new(kind).await.unwrap();
        let owner = harness.owner().await.unwrap();
        for (user_id, bucket) in &golden {
            let found = owner.query_one("select bucket($1::text::uuid)", &[user_id]).await.unwrap();
            assert_eq!(found.get::<_, i16>(0), *bucket, "{kind:?}: {user_id}");
        }
        // The body of the function, as the filter of a publication.
        let body: String = owner
            .query_one("select trim(leading 'select ' from trim(prosrc, E' \n')) from pg_proc where proname = 'bucket'", &[])
            .await
            .unwrap()
            .get(0);
        let filtered = format!(
            "create table users (user_id uuid primary key);
             create publication some_users for table users where ({body} in (1, 2))"
        );
        // Row filters came with PostgreSQL 15.
        let version = "select current_setting('server_version_num')::int8";
        if owner.query_one(version, &[]).await.unwrap().get::<_, i64>(0) >= 150_000 {
            owner.batch_execute(&filtered).await.unwrap();
        }
        drop(owner);
        harness.finish().await.unwrap();
    }
}

/// Alone, and beside so many others that the function looks at them in another way.
#[tokio::test]
async fn who_names_a_bucket_that_is_not_owned_or_another_epoch_is_refused() {
    for kind in SHARDED {
        let harness = Harness::new(kind).await.unwrap();
        let owner = harness.owner().await.unwrap();
        let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
        change(&owner, 7, 1, 2, false).await.unwrap();
        change(&owner, 8, 1, 2, false).await.unwrap();
        change(&owner, 8, 2, 4, true).await.unwrap();
        for others in [0, 127, 128, 500] {
            let others: Vec<i16> = (100..100 + others).collect();
            expect_refusals(&service, &others).await;
        }
        let nothing = service.query("select require_ownership(null, null)", &[]).await.unwrap_err();
        assert_eq!(code(&nothing), NOT_OWNED);
        drop((owner, service));
        harness.finish().await.unwrap();
    }
}

/// The database gave bucket 7 up, and has bucket 8 again at epoch 4. `others` are owned at epoch 1, and named first.
async fn expect_refusals(service: &Client, others: &[i16]) {
    let beside = |buckets: &[i16], epochs: &[i64]| {
        ([others, buckets].concat(), [&vec![1; others.len()][..], epochs].concat())
    };
    for (buckets, epochs) in [
        (&[][..], &[][..]),
        (&[0], &[1]),
        (&[0, 1023, 8], &[1, 1, 4]),
        // A bucket that is named twice.
        (&[5, 5], &[1, 1]),
    ] {
        let (buckets, epochs) = beside(buckets, epochs);
        assert!(require(service, &buckets, &epochs).await.unwrap(), "{buckets:?}");
    }
    for (buckets, epochs) in [
        (&[7_i16][..], &[1_i64][..]),
        (&[7], &[2]),
        (&[0, 7], &[1, 2]),
        (&[8], &[1]),
        (&[8], &[3]),
        (&[0], &[0]),
        (&[1024], &[1]),
        (&[-1], &[1]),
        // Not as many epochs as buckets.
        (&[0, 1], &[1]),
        (&[0], &[1, 1]),
    ] {
        let (buckets, epochs) = beside(buckets, epochs);
        let error = require(service, &buckets, &epochs).await.expect_err(&format!("{buckets:?} {epochs:?}"));
        assert_eq!(code(&error), NOT_OWNED, "{buckets:?} {epochs:?}: {error}");
    }
}

/// A transaction that began before the fence goes on in the snapshot of each statement: the one that began before it is let
/// through, the next one is not.
#[tokio::test]
async fn a_statement_is_judged_in_its_own_snapshot() {
    let harness = Harness::new(Database::Payments).await.unwrap();
    let owner = harness.owner().await.unwrap();
    let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
    service.batch_execute("begin isolation level repeatable read").await.unwrap();
    assert!(require(&service, &[7], &[1]).await.unwrap());
    change(&owner, 7, 1, 2, false).await.unwrap();
    assert!(require(&service, &[7], &[1]).await.unwrap(), "the snapshot is older than the fence");
    service.batch_execute("commit; begin").await.unwrap();
    let error = require(&service, &[7], &[1]).await.unwrap_err();
    assert_eq!(code(&error), NOT_OWNED);
    drop((owner, service));
    harness.finish().await.unwrap();
}

/// In a statement that finds no row, the check is made all the same: fewer rows would be read as "missing".
#[tokio::test]
async fn a_statement_without_rows_is_refused_too() {
    let harness = Harness::new(Database::Payments).await.unwrap();
    let owner = harness.owner().await.unwrap();
    let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
    change(&owner, 7, 1, 2, false).await.unwrap();
    // As in the sessions of a service (saga::postgres).
    service
        .batch_execute("set plan_cache_mode = force_generic_plan; set enable_seqscan = off")
        .await
        .unwrap();
    for statement in [
        "select from payments where user_id = gen_random_uuid() and require_ownership($1, $2)",
        "select from payments p join unnest('{}'::uuid[]) as n (user_id) using (user_id) where require_ownership($1, $2)",
        "select from unnest('{}'::uuid[]) as n (user_id) join payments p using (user_id) where require_ownership($1, $2)",
        "update payments p set version = p.version + 1 from unnest('{}'::uuid[]) as n (user_id)
          where p.user_id = n.user_id and require_ownership($1, $2)",
        "with moved as (update payments set version = version + 1
                         where user_id = gen_random_uuid() and require_ownership($1, $2) returning 1)
         select 1",
        "select from (select from payments where user_id = gen_random_uuid()
                      union all select from payments where user_id = gen_random_uuid()) found
          where require_ownership($1, $2) limit 1",
        "select from payments where user_id = gen_random_uuid() and require_ownership($1, $2) for no key update",
    ] {
        let prepared = service.prepare(statement).await.unwrap();
        let none = service.query(&prepared, &[&[0_i16].as_slice(), &[1_i64].as_slice()]).await.unwrap();
        assert!(none.len() <= 1, "{statement}");
        let refused = service.query(&prepared, &[&[0_i16, 7].as_slice(), &[1_i64, 1].as_slice()]).await;
        assert_eq!(code(&refused.unwrap_err()), NOT_OWNED, "{statement}");
    }
    drop((owner, service));
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn an_epoch_only_rises_and_a_late_change_changes_nothing() {
    let harness = Harness::new(Database::Payments).await.unwrap();
    let owner = harness.owner().await.unwrap();
    change(&owner, 7, 1, 2, false).await.unwrap();
    // The epoch that was known is another one, or another bucket of the same change has another one.
    for late in [
        "select change_ownership('{7}', '{1}', '{3}', true, null)",
        "select change_ownership('{6,7}', '{1,1}', '{3,3}', false, null)",
        "select change_ownership('{6,6}', '{1,1}', '{3,3}', false, null)",
        "select change_ownership('{1024}', '{1}', '{3}', false, null)",
        "select change_ownership(null, '{1}', '{3}', false, null)",
    ] {
        let error = owner.batch_execute(late).await.expect_err(late);
        assert_eq!(code(&error), CHANGED, "{late}: {error}");
    }
    for wrong in [
        "select change_ownership('{7}', '{2}', '{2}', true, null)",
        "select change_ownership('{7}', '{2}', '{1}', true, null)",
        "select change_ownership('{6}', '{1}', '{2}', true, null)",
        "update owned_buckets set epoch = 1 where bucket = 7",
        "update owned_buckets set owned = true where bucket = 7",
        "update owned_buckets set bucket = 1023, epoch = 9 where bucket = 7",
        "delete from owned_buckets where bucket = 7",
        "truncate owned_buckets",
    ] {
        let error = owner.batch_execute(wrong).await.expect_err(wrong);
        assert_eq!(error.code(), Some(&SqlState::INTEGRITY_CONSTRAINT_VIOLATION), "{wrong}: {error}");
    }
    let left = "select count(*) from owned_buckets where (epoch, owned) = (1, true)";
    assert_eq!(owner.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 1023);
    // A rollback: the epoch of the target rises, and a late grant fails.
    change(&owner, 7, 2, 5, false).await.unwrap();
    assert_eq!(code(&change(&owner, 7, 2, 6, true).await.unwrap_err()), CHANGED);
    change(&owner, 7, 5, 6, true).await.unwrap();
    drop(owner);
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn a_service_cannot_give_itself_a_bucket() {
    for kind in SHARDED {
        let harness = Harness::new(kind).await.unwrap();
        let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
        for change in [
            "select change_ownership('{7}', '{1}', '{2}', false, null)",
            "update owned_buckets set epoch = epoch + 1, owned = false",
            "insert into owned_buckets (bucket) values (3)",
            "delete from owned_buckets",
        ] {
            let error = service.batch_execute(change).await.expect_err(change);
            assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{kind:?}: {change}: {error}");
        }
        drop(service);
        harness.finish().await.unwrap();
    }
}
