//! Shedding on a real Postgres: what counts as the delay of a hold, and what is given back while new payments are refused.

use std::time::{Duration, Instant};

use payments_svc::accept::Acceptor;
use payments_svc::metrics::Metrics;
use payments_svc::saga::Event;
use payments_svc::shedding::Shedding;
use payments_svc::store::{self, Acceptance, Hold, NewPayment};
use uuid::Uuid;

use crate::{Payments, TTL, command, new_payment};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const DELAY_MAX: Duration = Duration::from_millis(500);

impl Payments {
    async fn hold(&self, payment: (Uuid, Uuid)) -> Hold {
        let found = store::holds(&self.owned(payment.0).await, &[payment]).await.unwrap();
        let [hold] = found[..] else { panic!("{found:?}") };
        assert_eq!(hold.payment_id, payment.1);
        hold
    }

    /// Makes its acceptance so much earlier.
    pub(crate) async fn age(&self, payment_id: Uuid, seconds: f64) {
        let owner = self.harness.owner().await.unwrap();
        let sql = "update payments set initiated_at = initiated_at - make_interval(secs => $2) where payment_id = $1";
        owner.execute(sql, &[&payment_id, &seconds]).await.unwrap();
    }
}

#[tokio::test]
async fn the_delay_of_a_hold_ends_with_it_and_nothing_later_counts() {
    let payments = Payments::new().await;
    let waiting = payments.accepted().await;
    payments.age(waiting.1, 100.0).await;
    let hold = payments.hold(waiting).await;
    assert!(!hold.is_answered && hold.delay >= Duration::from_secs(100), "{hold:?}");

    for answer in [Event::Held, Event::HoldRejected] {
        let payment = payments.accepted().await;
        payments.apply(&[command(payment, answer)]).await.unwrap();
        let hold = payments.hold(payment).await;
        assert!(hold.is_answered && hold.delay < Duration::from_secs(60), "{answer:?}: {hold:?}");
    }
    // The gateway may take as long as it likes.
    for last in [Event::OutcomeUnknown, Event::Captured, Event::ReleasedUncharged, Event::ReleasedCancelled] {
        let payment = payments.accepted().await;
        payments.apply(&[command(payment, Event::Held)]).await.unwrap();
        let before = payments.hold(payment).await;
        payments.apply(&[command(payment, last)]).await.unwrap();
        assert_eq!(payments.hold(payment).await, before, "{last:?}");
    }
    let stranger = (Uuid::now_v7(), waiting.1);
    let found = store::holds(&payments.owned(stranger.0).await, &[stranger]).await.unwrap();
    assert!(found.is_empty(), "another user's payment");
    payments.finish().await;
}

#[tokio::test]
async fn only_what_was_accepted_before_is_given_back_while_payments_are_refused() {
    let payments = Payments::new().await;
    let first = new_payment(Uuid::now_v7(), "key");
    let accepted = payments.accept(std::slice::from_ref(&first)).await.remove(0);
    let Acceptance::Created(accepted) = accepted else { panic!("{accepted:?}") };
    let again = NewPayment { payment_id: Uuid::now_v7(), ..first.clone() };
    let other = NewPayment { fingerprint: [8; 32], payment_id: Uuid::now_v7(), ..first.clone() };
    let new = new_payment(first.user_id, "new");
    let stranger = new_payment(Uuid::now_v7(), "key");
    let owned = payments.router.ownership(&[first.user_id, stranger.user_id]).await.unwrap();
    let done = store::earlier_payments(&owned, &[again, other, new, stranger]).await.unwrap();
    let reused = Acceptance::KeyReused { payment_id: first.payment_id };
    assert_eq!(done, [Acceptance::Replayed(accepted), reused, Acceptance::Shed, Acceptance::Shed]);
    assert_eq!(payments.count("select count(*) from payments").await, 1);
    payments.finish().await;
}

/// Nobody holds anything here: the test is balance-svc, first at a standstill, then back.
#[tokio::test]
async fn payments_are_refused_while_no_hold_comes_and_accepted_again_once_holds_come() {
    let payments = Payments::new().await;
    let metrics = Metrics::register().unwrap();
    let shedding = Shedding::start(DELAY_MAX, payments.router.clone(), metrics.clone());
    let acceptor = Acceptor::start(payments.router.clone(), TTL, shedding, metrics.clone());
    let user = Uuid::now_v7();
    let (mut accepted, mut shed) = (Vec::new(), 0);
    let began = Instant::now();
    while shed == 0 {
        let payment = new_payment(user, &format!("key-{}", accepted.len()));
        match acceptor.accept(payment.clone()).await.unwrap() {
            Acceptance::Created(_) => accepted.push(payment),
            Acceptance::Shed => shed += 1,
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{} were accepted", accepted.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() > DELAY_MAX, "a hold is late only after the delay");
    assert_eq!(metrics.shedding.get(), 1);
    let again = NewPayment { payment_id: Uuid::now_v7(), ..accepted[0].clone() };
    assert!(matches!(acceptor.accept(again).await, Some(Acceptance::Replayed(_))), "the key counts first");

    let began = Instant::now();
    while metrics.shedding.get() == 1 {
        let batch: Vec<_> =
            accepted.drain(..).map(|p| command((p.user_id, p.payment_id), Event::Held)).collect();
        payments.apply(&batch).await.unwrap();
        let payment = new_payment(user, &Uuid::now_v7().to_string());
        if let Some(Acceptance::Created(_)) = acceptor.accept(payment.clone()).await {
            accepted.push(payment);
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "payments stay refused");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let payment = new_payment(user, "at last");
    assert!(matches!(acceptor.accept(payment).await, Some(Acceptance::Created(_))));
    payments.finish().await;
}
