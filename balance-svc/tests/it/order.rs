//! Events that are published twice and out of order across topics, to a whole balance-svc: every effect happens once, whatever
//! came first.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use saga::contract::{PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC};
use uuid::Uuid;

use crate::service::{AMOUNT, PublishedEvent, Service, event};

/// As when a database was restored to an earlier moment, and the relay emits its rows again. The hold is published once the
/// result is known to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_before_its_hold_waits_for_it() {
    let service = Service::new().await;
    let user = service.ledger.user_with(AMOUNT).await;
    let (payment, other) = (Uuid::now_v7(), Uuid::now_v7());
    service.produce(user, &event(PAYMENT_RESULT_TOPIC, "payment.result.succeeded.v1", user, payment));
    // Something of another user is applied meanwhile: the service is at work.
    let busy = service.ledger.user_with(AMOUNT).await;
    service.produce(busy, &event(PAYMENT_TOPIC, "payment.initiated.v1", busy, other));
    service.until("select count(*) from ledger where kind = 'hold'", 1).await;
    assert_eq!(service.ledger.balance(user).await, (AMOUNT, 0));
    service.produce(user, &event(PAYMENT_TOPIC, "payment.initiated.v1", user, payment));
    service.until("select count(*) from ledger where kind = 'capture'", 1).await;
    assert_eq!(service.ledger.balance(user).await, (0, 0));
    service.end().await;
}

/// Each event two or three times, in an order drawn by lot.
#[tokio::test(flavor = "multi_thread")]
async fn events_repeated_and_out_of_order_have_each_effect_once() {
    let seed = Uuid::new_v4().as_u128() as u64;
    eprintln!("seed {seed}");
    let mut lots = SmallRng::seed_from_u64(seed);
    let service = Service::new().await;
    let mut published: Vec<(Uuid, PublishedEvent)> = Vec::new();
    let mut users = Vec::new();
    for number in 0..20 {
        let user = service.ledger.user_with(4 * AMOUNT).await;
        for payment in 0..3 {
            let payment_id = Uuid::now_v7();
            let result = match (number + payment) % 3 {
                0 => "payment.result.declined.v1",
                1 => "payment.result.succeeded.v1",
                _ => "payment.result.expired.v1",
            };
            for _ in 0..lots.random_range(2..=3) {
                published.push((user, event(PAYMENT_TOPIC, "payment.initiated.v1", user, payment_id)));
                published.push((user, event(PAYMENT_RESULT_TOPIC, result, user, payment_id)));
            }
        }
        users.push(user);
    }
    published.shuffle(&mut lots);
    for (user, event) in &published {
        service.produce(*user, event);
    }
    service.until("select count(*) from ledger where phase = 2", 60).await;
    for user in users {
        // Of each one's three payments one succeeded.
        assert_eq!(service.ledger.balance(user).await, (3 * AMOUNT, 0));
    }
    service.end().await;
}
