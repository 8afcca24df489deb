//! The statement: numbers without gaps, the balances after each movement, and pages that nothing moves.

use balance_svc::http;
use balance_svc::store::{self, Deposit, Movement};
use futures_util::future::join_all;
use prometheus::Registry;
use saga::consumer::ApplyError;
use saga::identity::{Identity, Settings};
use saga::postgres::{Failure, classify};
use saga::problem::recover;
use saga::rate_limit::RateLimit;
use saga::weight::Weight;
use serde_json::Value;
use uuid::Uuid;
use warp::Filter;

use crate::{Command, Ledger, declined, initiated, succeeded};

/// Number, kind, amount, available and held after it.
type Line = (i64, &'static str, i64, i64, i64);

fn line(movement: &Movement) -> (i64, &str, i64, i64, i64) {
    let Movement { entry_no, kind, amount, available_after, held_after, .. } = movement;
    (*entry_no, kind.as_str(), *amount, *available_after, *held_after)
}

impl Ledger {
    /// The whole statement, newest first, in pages of `limit`.
    async fn statement(&self, user: Uuid, limit: u64) -> Vec<Movement> {
        let (mut movements, mut before) = (Vec::new(), None);
        loop {
            let page = store::movements(&self.owned(user).await, user, before, limit).await.unwrap();
            movements.extend(page.movements);
            before = page.next;
            if before.is_none() {
                return movements;
            }
        }
    }

    async fn holds(&self, user: Uuid, count: usize) {
        let batch: Vec<Command> = (0..count).map(|_| initiated(user, Uuid::now_v7(), 1)).collect();
        self.apply(&batch).await.unwrap();
    }
}

/// Fails unless the movements, newest first, have every number once and are the fold of themselves. Returns the last.
fn expect_fold(movements: &[Movement]) -> (i64, i64, i64) {
    let (mut last, mut available, mut held) = (0, 0, 0);
    for movement in movements.iter().rev() {
        let amount = movement.amount;
        match movement.kind.as_str() {
            "deposit" => available += amount,
            "hold" => (available, held) = (available - amount, held + amount),
            "capture" => held -= amount,
            "release" => (available, held) = (available + amount, held - amount),
            other => panic!("{other} is no movement"),
        }
        last += 1;
        let found = (movement.entry_no, movement.available_after, movement.held_after);
        assert_eq!(found, (last, available, held), "{movement:?}");
    }
    (last, available, held)
}

#[tokio::test]
async fn a_statement_has_each_movement_with_the_balances_after_it() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    let (paid, refused, rejected) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    // Three movements and a rejection in one batch, one of them repeated.
    let batch = [
        initiated(user, paid, 30),
        initiated(user, rejected, 1_000),
        initiated(user, refused, 50),
        initiated(user, paid, 30),
        succeeded(user, paid, 30),
    ];
    ledger.apply(&batch).await.unwrap();
    ledger.apply(&[declined(user, refused, 50)]).await.unwrap();
    let movements = ledger.statement(user, 100).await;
    let lines: Vec<_> = movements.iter().map(line).collect();
    let expected: [Line; 5] = [
        (5, "release", 50, 70, 0),
        (4, "capture", 30, 20, 50),
        (3, "hold", 50, 20, 80),
        (2, "hold", 30, 70, 30),
        (1, "deposit", 100, 100, 0),
    ];
    assert_eq!(lines, expected);
    let release = &movements[0];
    assert_eq!((release.payment_id, release.service_id.as_deref()), (refused, Some("electricity")));
    assert_eq!(release.reason.as_deref(), Some("declined:do_not_honor"));
    let rejection = "select count(*) from ledger where kind = 'rejection' and entry_no is null";
    assert_eq!(ledger.count(rejection).await, 1);
    ledger.finish().await;
}

#[tokio::test]
async fn batches_and_deposits_at_the_same_time_number_an_account_without_gaps() {
    let ledger = Ledger::new().await;
    let (user, other) = (ledger.user_with(1_000).await, ledger.user_with(1_000).await);
    let work = (0..3).map(|_| {
        let ledger = &ledger;
        async move {
            for _ in 0..5 {
                let (paid, refused) = (Uuid::now_v7(), Uuid::now_v7());
                let holds = [initiated(user, paid, 10), initiated(other, Uuid::now_v7(), 1)];
                ledger.apply(&holds).await.unwrap();
                // Rejected: no movement, and no number is lost with it.
                ledger.apply(&[initiated(user, Uuid::now_v7(), 1_000_000)]).await.unwrap();
                ledger.apply(&[initiated(user, refused, 5), succeeded(user, paid, 10)]).await.unwrap();
                let deposit = ledger.deposit(user, Uuid::new_v4(), 7).await.unwrap();
                assert_eq!(deposit, Deposit::Credited);
                ledger.apply(&[declined(user, refused, 5)]).await.unwrap();
            }
        }
    });
    join_all(work).await;
    for (user, movements) in [(user, 1 + 3 * 5 * 5), (other, 1 + 3 * 5)] {
        let (last, available, held) = expect_fold(&ledger.statement(user, 7).await);
        assert_eq!((last, (available, held)), (movements, ledger.balance(user).await));
        let account = format!("select last_entry_no from accounts where user_id = '{user}'");
        assert_eq!(ledger.count(&account).await, movements);
    }
    ledger.finish().await;
}

#[tokio::test]
async fn a_repeated_or_refused_deposit_takes_no_number() {
    let ledger = Ledger::new().await;
    let (user, deposit) = (Uuid::now_v7(), Uuid::new_v4());
    let credit = async |id, amount| ledger.deposit(user, id, amount).await.unwrap();
    assert_eq!(credit(deposit, 5).await, Deposit::Credited);
    assert_eq!(credit(deposit, 5).await, Deposit::Repeated);
    assert_eq!(credit(deposit, 6).await, Deposit::KeyReused);
    assert_eq!(credit(Uuid::new_v4(), store::BALANCE_MAX).await, Deposit::TooMuch);
    assert_eq!(credit(Uuid::new_v4(), 7).await, Deposit::Credited);
    assert_eq!(expect_fold(&ledger.statement(user, 100).await), (2, 12, 0));
    ledger.finish().await;
}

#[tokio::test]
async fn pages_are_stable_under_inserts() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(1_000).await;
    ledger.holds(user, 24).await;
    let before = ledger.statement(user, 100).await;
    let (mut pages, mut cursor) = (Vec::new(), None);
    for length in [10, 10, 5] {
        let page = store::movements(&ledger.owned(user).await, user, cursor, 10).await.unwrap();
        assert_eq!(page.movements.len(), length);
        pages.extend(page.movements);
        cursor = page.next;
        ledger.holds(user, 3).await;
    }
    assert_eq!(cursor, None, "the oldest movement ends the statement");
    assert_eq!(pages, before);
    assert_eq!(ledger.statement(user, 1).await.len(), 34);
    ledger.finish().await;
}

/// As after a restore of `accounts` alone: no number is given twice.
#[tokio::test]
async fn an_account_that_is_behind_its_ledger_moves_nothing() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    ledger.holds(user, 3).await;
    let client = ledger.pool.get().await.unwrap();
    client.batch_execute("update accounts set last_entry_no = 2").await.unwrap();
    let refused = ledger.apply(&[initiated(user, Uuid::now_v7(), 1)]).await;
    let Err(ApplyError::Other(error)) = refused else { panic!("{refused:?}") };
    assert!(format!("{error:?}").contains("ledger_entry_no"), "{error:?}");
    assert!(ledger.deposit(user, Uuid::new_v4(), 1).await.is_err());
    assert_eq!(ledger.balance(user).await, (97, 3));
    drop(client);
    ledger.finish().await;
}

/// Such as an instance of an older release, beside this one.
#[tokio::test]
async fn a_writer_that_knows_no_numbers_tries_again_and_parks_nothing() {
    let ledger = Ledger::new().await;
    let client = ledger.pool.get().await.unwrap();
    let insert = "insert into ledger (user_id, payment_id, phase, kind, amount, reason)
                  values (gen_random_uuid(), gen_random_uuid(), 1, 'rejection', 1, 'unknown_account')";
    let error = client.batch_execute(insert).await.unwrap_err();
    assert_eq!(classify(&error.into()), Failure::Transient);
    drop(client);
    ledger.finish().await;
}

/// Status and body of the public listener's answer.
async fn get(ledger: &Ledger, user: Uuid, query: &str) -> (u16, Value) {
    let identity = Identity::start(Settings::Header, &Registry::new()).unwrap();
    let weight = Weight::register(&Registry::new()).unwrap();
    let routes = http::public(ledger.router.clone(), &identity, &RateLimit::none(), &weight).recover(recover);
    let request = warp::test::request().path(&format!("/balance/movements{query}"));
    let reply = request.header("x-user-id", user.to_string()).reply(&routes).await;
    (reply.status().as_u16(), serde_json::from_slice(reply.body()).unwrap())
}

#[tokio::test]
async fn a_client_follows_the_cursors_to_the_end() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(1_000).await;
    ledger.holds(user, 24).await;
    let (mut numbers, mut cursors) = (Vec::new(), 0);
    let mut query = String::new();
    loop {
        let (status, page) = get(&ledger, user, &query).await;
        assert_eq!(status, 200, "{page}");
        let movements = page["movements"].as_array().unwrap().clone();
        numbers.extend(movements.iter().map(|movement| movement["entry_no"].as_i64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else {
            let deposit = movements.last().unwrap();
            assert_eq!((&deposit["kind"], &deposit["payment_id"]), (&"deposit".into(), &Value::Null));
            assert!(deposit["deposit_id"].is_string(), "{deposit}");
            break;
        };
        query = format!("?cursor={cursor}");
        cursors += 1;
    }
    assert_eq!(cursors, 1, "20 movements are a page");
    assert_eq!(numbers, (1..=25).rev().collect::<Vec<i64>>());
    ledger.finish().await;
}

#[tokio::test]
async fn another_user_sees_nothing() {
    let ledger = Ledger::new().await;
    let (user, other) = (ledger.user_with(100).await, ledger.user_with(1).await);
    ledger.holds(user, 30).await;
    let (_, page) = get(&ledger, user, "?limit=1").await;
    let cursor = page["next_cursor"].as_str().unwrap();
    let (status, page) = get(&ledger, other, &format!("?cursor={cursor}")).await;
    assert_eq!((status, page["movements"].as_array().unwrap().len()), (200, 1), "its own deposit: {page}");
    assert_eq!(page["movements"][0]["amount"], 1);
    let nothing = serde_json::json!({"movements": [], "next_cursor": null});
    assert_eq!(get(&ledger, Uuid::now_v7(), "").await, (200, nothing));
    ledger.finish().await;
}

#[tokio::test]
async fn every_wrong_parameter_is_named() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    for (query, fields) in [
        ("?limit=0", vec!["limit"]),
        ("?limit=101", vec!["limit"]),
        ("?limit=ten&cursor=1&page=2", vec!["limit", "cursor", "page"]),
        ("?limit=1&limit=1", vec!["limit"]),
        ("?cursor=", vec!["cursor"]),
        ("?cursor=00000000000000000000000000000001", vec!["cursor"]),
    ] {
        let (status, problem) = get(&ledger, user, query).await;
        assert_eq!((status, &problem["type"]), (400, &"urn:coro:problem:validation".into()), "{query}");
        let named: Vec<&str> =
            problem["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
        assert_eq!(named, fields, "{query}");
    }
    assert_eq!(get(&ledger, user, "?limit=100").await.0, 200);
    ledger.finish().await;
}
