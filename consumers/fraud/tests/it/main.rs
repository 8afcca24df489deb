//! The fraud detector on real servers: the same payments raise the same alerts, in whatever order and however often
//! they are read, and whoever is killed.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod instances;

use std::collections::BTreeSet;

use fraud::saga::Rules;
use fraud::store;
use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use saga::contract::Payment;
use saga::postgres::{self, Pool};
use sql::Database;
use sql::harness::Harness;
use uuid::Uuid;

pub const RULES: Rules =
    Rules { window_s: 60, payment_count_max: 3, payment_sum_max: 100, payment_amount_max: 70 };

/// Rule and payment.
type Alerts = BTreeSet<(String, Uuid)>;

/// The golden payment with these columns.
pub fn payment(user_id: Uuid, amount: i64, second: i64) -> Payment {
    let path = format!("{}/../../saga/golden/payment.initiated.v1.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Payment = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let initiated_at = golden.initiated_at + SignedDuration::from_secs(second);
    Payment { user_id, payment_id: Uuid::now_v7(), amount, initiated_at, ..golden }
}

/// What the rules say of all payments together, without any database.
pub fn expected(payments: &[Payment]) -> Alerts {
    let in_window = |end: &Payment, other: &Payment| {
        let start: Timestamp = end.initiated_at - SignedDuration::from_secs(RULES.window_s.into());
        other.user_id == end.user_id && other.initiated_at >= start && other.initiated_at <= end.initiated_at
    };
    let mut alerts = Alerts::new();
    for end in payments {
        let window: Vec<&Payment> = payments.iter().filter(|other| in_window(end, other)).collect();
        let sum: i64 = window.iter().map(|payment| payment.amount).sum();
        let count = i64::try_from(window.len()).unwrap();
        for (rule, broken) in [
            ("payment_amount", end.amount > RULES.payment_amount_max),
            ("payment_count", count > RULES.payment_count_max),
            ("payment_sum", sum > RULES.payment_sum_max),
        ] {
            if broken {
                alerts.insert((rule.to_owned(), end.payment_id));
            }
        }
    }
    alerts
}

pub async fn alerts(pool: &Pool, users: &[Uuid]) -> Alerts {
    let query = "select rule, payment_id from alerts where user_id = any($1)";
    let rows = pool.get().await.unwrap().query(query, &[&users]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn apply(pool: &Pool, payments: &[Payment]) -> store::Outcome {
    let payments: Vec<&Payment> = payments.iter().collect();
    store::apply(pool, &RULES, &payments, &[]).await.unwrap()
}

#[tokio::test]
async fn windows_have_both_ends_and_one_user() {
    let harness = Harness::new(Database::Fraud).await.unwrap();
    let pool = postgres::pool(&harness.service_url().unwrap(), 2, "test").unwrap();
    let (user, other) = (Uuid::now_v7(), Uuid::now_v7());
    let payments = [(user, 0), (user, 60), (other, 60), (user, 60), (user, 120), (user, 121)]
        .map(|(user, second)| payment(user, 1, second));
    apply(&pool, &payments).await;
    // Of the fifth: 60, 60, 120 are three.
    assert_eq!(alerts(&pool, &[user, other]).await, Alerts::new());
    // The last one of four within a minute, both ends included.
    let fourth = payment(user, 1, 60);
    let outcome = apply(&pool, std::slice::from_ref(&fourth)).await;
    assert_eq!(outcome.new, 1);
    let found = alerts(&pool, &[user]).await;
    let all: Vec<Payment> = payments.into_iter().chain([fourth]).collect();
    assert_eq!(found, expected(&all));
    assert!(!found.is_empty(), "a payment that is read late raises the alerts of later ones");
    pool.close();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn any_order_any_batches_and_any_duplicates_raise_the_same_alerts() {
    let harness = Harness::new(Database::Fraud).await.unwrap();
    let pool = postgres::pool(&harness.service_url().unwrap(), 2, "test").unwrap();
    let mut raised = 0;
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let users: Vec<Uuid> = (0..random.random_range(1..4)).map(|_| Uuid::now_v7()).collect();
        let payments: Vec<Payment> = (0..random.random_range(1..40))
            .map(|_| {
                let user = users[random.random_range(0..users.len())];
                payment(user, random.random_range(1..80), random.random_range(0..600))
            })
            .collect();
        let mut order: Vec<Payment> = payments.iter().chain(&payments).cloned().collect();
        order.shuffle(&mut random);
        let mut new = 0;
        while !order.is_empty() {
            let size = random.random_range(1..=order.len());
            let batch: Vec<Payment> = order.drain(..size).collect();
            new += apply(&pool, &batch).await.new;
        }
        assert_eq!(new, payments.len(), "seed {seed}");
        let found = alerts(&pool, &users).await;
        assert_eq!(found, expected(&payments), "seed {seed}");
        let outcome = apply(&pool, &payments).await;
        assert_eq!(outcome, store::Outcome::default(), "seed {seed}: a replay raises nothing");
        raised += found.len();
    }
    assert!(raised > 100, "{raised} alerts are too few to say anything");
    pool.close();
    harness.finish().await.unwrap();
}

#[tokio::test]
async fn an_alert_stays_as_it_was_raised() {
    let harness = Harness::new(Database::Fraud).await.unwrap();
    let service = sql::connect(&harness.service_url().unwrap()).await.unwrap();
    for statement in ["update alerts set amount = 1", "delete from alerts", "truncate payments"] {
        let error = service.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{statement}");
    }
    drop(service);
    harness.finish().await.unwrap();
}
