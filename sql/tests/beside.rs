//! Migrations beside a load, on a real server.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use sql::Database;
use sql::harness::Harness;
use tokio_postgres::Client;

/// Clients wait for no longer, whatever a migration waits for. That is much more than `LOCK_TIMEOUT`, for busy machines, and much
/// less than a migration would wait for the long transaction: for ever.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(3);
const HISTORY: &str = "test_history";
const MIGRATION: [(&str, &str); 1] = [("V1__note", "alter table busy add column note text")];
/// How often the migration has to be seen to come back for its lock.
const ATTEMPTS: usize = 3;

/// Whether somebody waits to have this table for himself.
async fn waits(client: &Client, table: u32) -> bool {
    let waiting = "select exists (select from pg_locks where relation = $1 and mode = 'AccessExclusiveLock' and not granted)";
    client.query_one(waiting, &[&table]).await.unwrap().get(0)
}

#[tokio::test]
async fn behind_a_migration_that_waits_for_a_long_transaction_nobody_waits_long() {
    let harness = Harness::new(Database::Payments).await.unwrap();
    let (client, long) = (harness.owner().await.unwrap(), harness.owner().await.unwrap());
    // The time of a statement is then what it waits for locks, and not for the disk.
    client.batch_execute("set synchronous_commit = off; create table busy (id bigint)").await.unwrap();
    let table: u32 = client.query_one("select 'busy'::regclass::oid", &[]).await.unwrap().get(0);
    long.batch_execute("begin; select from busy").await.unwrap();

    let migration = sql::apply(harness.admin_url(), harness.name(), HISTORY, &MIGRATION);
    let load = async {
        let (observer, mut attempts, mut was_waiting) = (harness.owner().await.unwrap(), 0, false);
        let mut slowest = Duration::ZERO;
        while attempts < ATTEMPTS {
            let began = Instant::now();
            let statement = client.batch_execute("insert into busy values (1)");
            let looking = async {
                let is_waiting = waits(&observer, table).await;
                attempts += usize::from(is_waiting && !was_waiting);
                was_waiting = is_waiting;
            };
            let both = async { tokio::join!(statement, looking) };
            let (inserted, ()) = tokio::time::timeout(10 * STATEMENT_TIME_MAX, both)
                .await
                .expect("a statement waits behind the migration for ever");
            inserted.unwrap();
            slowest = slowest.max(began.elapsed());
        }
        long.batch_execute("commit").await.unwrap();
        slowest
    };
    let (applied, slowest) = tokio::join!(migration, load);
    applied.unwrap();
    assert!(slowest < STATEMENT_TIME_MAX, "a statement took {slowest:?}");
    client.batch_execute("insert into busy values (1, 'a note')").await.unwrap();

    // Applied once, by its own table of what was applied.
    sql::apply(harness.admin_url(), harness.name(), HISTORY, &MIGRATION).await.unwrap();
    drop((client, long));
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn what_fails_for_another_reason_is_not_tried_again() {
    let harness = Harness::new(Database::Payments).await.unwrap();
    let wrong = [("V1__wrong", "create table half (id bigint); alter table nowhere add column note text")];
    let error = sql::apply(harness.admin_url(), harness.name(), HISTORY, &wrong).await.unwrap_err();
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
    let owner = harness.owner().await.unwrap();
    assert!(owner.batch_execute("select from half").await.is_err(), "half of it was applied");
    drop(owner);
    harness.finish().await.unwrap();
}

/// Rows are being copied into tables that have to stay as they are.
#[tokio::test]
async fn while_buckets_are_moved_nothing_is_applied() {
    let harness = Harness::new(Database::Balance).await.unwrap();
    let owner = harness.owner().await.unwrap();
    let one: [(&str, &str); 1] = [("V1__note", "create table notes (id bigint)")];
    let two = [one[0], ("V2__note", "alter table notes add column note text")];
    let apply = async |migrations: &[(&str, &str)]| {
        sql::apply(harness.admin_url(), harness.name(), HISTORY, migrations).await
    };
    apply(&one).await.unwrap();
    let begin =
        "insert into moves (move_id, side, peer, buckets, source_epochs, target_epochs, source_incarnation,
                                    target_incarnation, tables, schema_version, relay_slots, operator)
                 values (gen_random_uuid(), 'source', 'two', '{7}', '{1}', '{2}', 'a', 'b', '{accounts}', 11, '{relay}', 'ada')";
    owner.batch_execute(begin).await.unwrap();
    let refused = apply(&two).await.unwrap_err().to_string();
    assert!(refused.contains("buckets are being moved"), "{refused}");
    // Nothing is to be applied, so nothing is in the way.
    apply(&one).await.unwrap();
    owner.batch_execute("update moves set state = 'moved', ended_at = now()").await.unwrap();
    apply(&two).await.unwrap();
    owner.batch_execute("select note from notes").await.unwrap();
    drop(owner);
    harness.finish().await.unwrap();
}
