//! The ledger on a real Postgres: once is once, money never leaks, missing is not a duplicate.
//!
//! Each test has a database of its own and acts with the service's own rights.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod facts;
mod identity;
mod limits;
mod movements;
mod operators;
mod order;
mod recovery;
mod service;
mod shards;

use balance_svc::command::Command;
use balance_svc::saga::{Event, ReleaseCause};
use balance_svc::store::{self, Balance, Deposit, Outcome};
use saga::consumer::ApplyError;
use saga::contract::Terms;
use saga::parked::Parked;
use saga::postgres::{self, Pool};
use saga::shards::{Ownership, Router};
use sql::Database;
use sql::harness::Harness;
use uuid::Uuid;

struct Ledger {
    harness: Harness,
    pool: Pool,
    router: Router,
}

impl Ledger {
    async fn new() -> Self {
        let harness = Harness::new(Database::Balance).await.unwrap();
        let pool = postgres::pool(&harness.service_url().unwrap(), 8, "test").unwrap();
        let router = Router::one(pool.clone());
        Self { harness, pool, router }
    }

    async fn finish(self) {
        self.pool.close();
        self.harness.finish().await.unwrap();
    }

    async fn owned(&self, user_id: Uuid) -> Ownership {
        self.router.ownership(&[user_id]).await.unwrap()
    }

    async fn deposit(&self, user_id: Uuid, deposit_id: Uuid, amount: i64) -> anyhow::Result<Deposit> {
        store::deposit(&self.owned(user_id).await, user_id, deposit_id, amount).await
    }

    async fn user_with(&self, amount: i64) -> Uuid {
        let user_id = Uuid::now_v7();
        let deposit = self.deposit(user_id, Uuid::new_v4(), amount).await.unwrap();
        assert_eq!(deposit, Deposit::Credited);
        user_id
    }

    async fn apply(&self, commands: &[Command]) -> Result<Outcome, ApplyError> {
        let commands: Vec<&Command> = commands.iter().collect();
        let users: Vec<Uuid> = commands.iter().map(|command| command.user_id).collect();
        let owned = self.router.ownership(&users).await.unwrap();
        store::apply(&owned, &commands, &[], |index, reason| parked(&format!("t/0/{index}"), reason)).await
    }

    async fn balance(&self, user_id: Uuid) -> (i64, i64) {
        let found = store::balance(&self.owned(user_id).await, user_id).await.unwrap();
        let Balance { available, held } = found.unwrap();
        (available, held)
    }

    async fn count(&self, sql: &str) -> i64 {
        self.pool.get().await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
    }
}

fn parked(id: &str, reason: &str) -> Parked {
    Parked {
        parked_id: id.into(),
        source: "t".into(),
        message_key: None,
        event_type: Some("some.type.v1".into()),
        headers: serde_json::json!({"ce_id": "x"}),
        body: b"{\"not\":\"\xff utf-8\"}".to_vec(),
        reason: reason.into(),
    }
}

fn command(user_id: Uuid, payment_id: Uuid, event: Event) -> Command {
    Command { user_id, payment_id, traceparent: None, detail: None, event }
}

fn terms(amount: i64) -> Terms {
    Terms { amount, service_id: "electricity".into(), client_number: None }
}

fn initiated(user_id: Uuid, payment_id: Uuid, amount: i64) -> Command {
    command(user_id, payment_id, Event::Initiated { terms: terms(amount) })
}

fn succeeded(user_id: Uuid, payment_id: Uuid, amount: i64) -> Command {
    command(user_id, payment_id, Event::Succeeded { terms: terms(amount) })
}

fn declined(user_id: Uuid, payment_id: Uuid, amount: i64) -> Command {
    let event = Event::NotCharged { terms: terms(amount), cause: ReleaseCause::Declined };
    Command { detail: Some("do_not_honor".into()), ..command(user_id, payment_id, event) }
}

#[tokio::test]
async fn a_hold_moves_money_once_however_often_it_is_published() {
    let ledger = Ledger::new().await;
    let (user, payment) = (ledger.user_with(100).await, Uuid::now_v7());
    let hold = initiated(user, payment, 30);
    let outcome = ledger.apply(&[hold.clone(), hold.clone()]).await.unwrap();
    assert_eq!((outcome.applied.applied, outcome.applied.already), (1, 1));
    let outcome = ledger.apply(&[hold]).await.unwrap();
    assert_eq!((outcome.applied.applied, outcome.applied.already), (0, 1));
    assert_eq!(ledger.balance(user).await, (70, 30));
    ledger.finish().await;
}

#[tokio::test]
async fn capture_takes_the_hold_and_release_gives_it_back() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    let (paid, refused) = (Uuid::now_v7(), Uuid::now_v7());
    ledger.apply(&[initiated(user, paid, 30), initiated(user, refused, 50)]).await.unwrap();
    assert_eq!(ledger.balance(user).await, (20, 80));
    let results = [succeeded(user, paid, 30), declined(user, refused, 50)];
    ledger.apply(&results).await.unwrap();
    assert_eq!(ledger.balance(user).await, (70, 0));
    // Published again, in another order: nothing moves.
    let outcome = ledger.apply(&[results[1].clone(), results[0].clone()]).await.unwrap();
    assert_eq!(outcome.applied.already, 2);
    assert_eq!(ledger.balance(user).await, (70, 0));
    let reason = "select count(*) from ledger where kind = 'release' and reason = 'declined:do_not_honor'";
    assert_eq!(ledger.count(reason).await, 1);
    ledger.finish().await;
}

#[tokio::test]
async fn hold_and_capture_in_one_batch_are_both_applied() {
    let ledger = Ledger::new().await;
    let (user, payment) = (ledger.user_with(100).await, Uuid::now_v7());
    let batch = [initiated(user, payment, 100), succeeded(user, payment, 100)];
    assert_eq!(ledger.apply(&batch).await.unwrap().applied.applied, 2);
    assert_eq!(ledger.balance(user).await, (0, 0));
    ledger.finish().await;
}

#[tokio::test]
async fn a_missing_hold_is_not_a_duplicate_and_the_whole_batch_waits() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    let batch = [initiated(user, Uuid::now_v7(), 10), succeeded(user, Uuid::now_v7(), 10)];
    let refused = ledger.apply(&batch).await;
    assert!(matches!(refused, Err(ApplyError::Missing(_))), "{refused:?}");
    assert_eq!(ledger.balance(user).await, (100, 0), "nothing of the batch was applied");
    ledger.finish().await;
}

#[tokio::test]
async fn money_that_is_not_there_is_refused_with_a_reason() {
    let ledger = Ledger::new().await;
    let (poor, stranger) = (ledger.user_with(99).await, Uuid::now_v7());
    let batch = [initiated(poor, Uuid::now_v7(), 100), initiated(stranger, Uuid::now_v7(), 1)];
    let outcome = ledger.apply(&batch).await.unwrap();
    assert_eq!(outcome.entries.get("rejection"), Some(&2));
    assert_eq!(ledger.balance(poor).await, (99, 0));
    assert_eq!(store::balance(&ledger.owned(stranger).await, stranger).await.unwrap(), None);
    for reason in ["insufficient_funds", "unknown_account"] {
        let query = format!("select count(*) from ledger where kind = 'rejection' and reason = '{reason}'");
        assert_eq!(ledger.count(&query).await, 1, "{reason}");
    }
    ledger.finish().await;
}

#[tokio::test]
async fn batches_fighting_for_one_account_never_overdraw_it() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(1_000).await;
    // 3 batches of 50 holds of 10: half as much again as there is. On a busy machine more of them would wait for longer than
    // `lock_timeout`.
    let batches = (0..3).map(|_| {
        let batch: Vec<Command> = (0..50).map(|_| initiated(user, Uuid::now_v7(), 10)).collect();
        let ledger = &ledger;
        async move { ledger.apply(&batch).await.unwrap() }
    });
    let outcomes = futures_util::future::join_all(batches).await;
    let total = |kind: &str| outcomes.iter().filter_map(|o| o.entries.get(kind)).sum::<u64>();
    assert_eq!((total("hold"), total("rejection")), (100, 50));
    assert_eq!(ledger.balance(user).await, (0, 1_000));
    ledger.finish().await;
}

#[tokio::test]
async fn batches_that_share_accounts_in_opposite_orders_do_not_deadlock() {
    let ledger = Ledger::new().await;
    let mut users = Vec::new();
    for _ in 0..20 {
        users.push(ledger.user_with(10_000).await);
    }
    let batches = (0..3).map(|round| {
        let mut order = users.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        let ledger = &ledger;
        async move {
            for _ in 0..10 {
                let batch: Vec<Command> =
                    order.iter().map(|user| initiated(*user, Uuid::now_v7(), 1)).collect();
                ledger.apply(&batch).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(batches).await;
    for user in users {
        assert_eq!(ledger.balance(user).await, (9_970, 30));
    }
    ledger.finish().await;
}

#[tokio::test]
async fn what_is_impossible_is_parked_with_its_batch_and_the_rest_goes_on() {
    let ledger = Ledger::new().await;
    let (user, paid, next) = (ledger.user_with(100).await, Uuid::now_v7(), Uuid::now_v7());
    ledger.apply(&[initiated(user, paid, 10), succeeded(user, paid, 10)]).await.unwrap();
    let batch = [declined(user, paid, 10), initiated(user, next, 20)];
    let outcome = ledger.apply(&batch).await.unwrap();
    assert_eq!((outcome.applied.applied, outcome.applied.parked), (1, 1));
    assert_eq!(ledger.balance(user).await, (70, 20));
    // The same message again: parked once.
    ledger.apply(&batch[..1]).await.unwrap();
    assert_eq!(ledger.count("select count(*) from parked where reason like 'impossible%'").await, 1);
    ledger.finish().await;
}

#[tokio::test]
async fn an_unreadable_message_is_parked_as_it_was() {
    let ledger = Ledger::new().await;
    let message = parked("PaymentTopic/0/7", "expected value");
    let park = |_: usize, _: &str| unreachable!("there are no commands");
    let owned = ledger.router.ownership(&[]).await.unwrap();
    store::apply(&owned, &[], std::slice::from_ref(&message), park).await.unwrap();
    let client = ledger.pool.get().await.unwrap();
    let row = client.query_one("select parked_id, body, headers from parked", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), message.parked_id);
    assert_eq!(row.get::<_, Vec<u8>>(1), message.body);
    assert_eq!(row.get::<_, serde_json::Value>(2), message.headers);
    drop(client);
    ledger.finish().await;
}

/// A position is used again when a topic is made anew; whoever forges a message chooses its id.
#[tokio::test]
async fn two_different_messages_under_one_id_are_both_parked_and_each_once() {
    let ledger = Ledger::new().await;
    let first = parked("PaymentTopic/0/7", "expected value");
    let others = [
        Parked { body: b"other".to_vec(), ..first.clone() },
        Parked { event_type: None, ..first.clone() },
        Parked { headers: serde_json::json!({"ce_id": "y"}), ..first.clone() },
        Parked { message_key: Some("k".into()), ..first.clone() },
    ];
    let park = async |messages: &[Parked]| {
        let park = |_: usize, _: &str| unreachable!("there are no commands");
        let owned = ledger.router.ownership(&[]).await.unwrap();
        store::apply(&owned, &[], messages, park).await.unwrap();
    };
    let rows = "select count(*) from parked where parked_id like 'PaymentTopic/0/7%'";
    park(std::slice::from_ref(&first)).await;
    for (other, count) in others.iter().zip(2..) {
        park(std::slice::from_ref(other)).await;
        assert_eq!(ledger.count(rows).await, count, "{other:?}");
    }
    // Delivered again, in another order, each twice in one batch, and with another reason: nothing new.
    let again = Parked { reason: "said otherwise".into(), ..others[0].clone() };
    park(&[again, others[3].clone(), first.clone(), others[1].clone(), first.clone()]).await;
    park(&others).await;
    assert_eq!(ledger.count(rows).await, 5);
    let named = "select count(*) from parked where parked_id = 'PaymentTopic/0/7' and body <> 'other'";
    assert_eq!(ledger.count(named).await, 1, "the first keeps its name");
    // Two that are new in one batch.
    let new = parked("PaymentTopic/0/8", "expected value");
    park(&[new.clone(), Parked { body: b"other".to_vec(), ..new }]).await;
    assert_eq!(ledger.count("select count(*) from parked where parked_id like 'PaymentTopic/0/8%'").await, 2);
    ledger.finish().await;
}

/// The commit that credited it may be on no standby yet, and is undone by a promotion then.
#[tokio::test]
async fn a_repeated_deposit_is_answered_once_the_standbys_have_it() {
    let ledger = Ledger::new().await;
    let (user, deposit) = (Uuid::now_v7(), Uuid::new_v4());
    for (expected, barriers) in [(Deposit::Credited, 0), (Deposit::Repeated, 1)] {
        let (done, waited) = ledger.harness.barriers(ledger.deposit(user, deposit, 500)).await.unwrap();
        assert_eq!((done.unwrap(), waited), (expected, barriers));
    }
    ledger.finish().await;
}

#[tokio::test]
async fn a_deposit_is_credited_once_per_key() {
    let ledger = Ledger::new().await;
    let (user, deposit) = (Uuid::now_v7(), Uuid::new_v4());
    let attempts = (0..6).map(|_| ledger.deposit(user, deposit, 500));
    let done = futures_util::future::join_all(attempts).await;
    let credited = done.iter().filter(|d| matches!(d, Ok(Deposit::Credited))).count();
    let repeated = done.iter().filter(|d| matches!(d, Ok(Deposit::Repeated))).count();
    assert_eq!((credited, repeated), (1, 5));
    assert_eq!(ledger.balance(user).await, (500, 0));
    assert_eq!(ledger.deposit(user, deposit, 501).await.unwrap(), Deposit::KeyReused);
    ledger.finish().await;
}

#[tokio::test]
async fn the_service_may_neither_delete_nor_change_ledger_entries() {
    let ledger = Ledger::new().await;
    ledger.user_with(1).await;
    let client = ledger.pool.get().await.unwrap();
    for forbidden in
        ["delete from ledger", "update ledger set amount = 2", "truncate ledger", "delete from accounts"]
    {
        let error = client.batch_execute(forbidden).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{forbidden}");
    }
    drop(client);
    ledger.finish().await;
}
