//! Payments on a real Postgres: one per key, transitions by compare-and-set, missing is not a duplicate.
//!
//! Each test has a database of its own and acts with the service's own rights.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod facts;
mod identity;
mod lists;
mod logs;
mod recovery;
mod restored;
mod shards;
mod shedding;
mod unsettled;

use std::time::Duration;

use payments_svc::command::Command;
use payments_svc::saga::{Cancel, Event, RowEvent, Status};
use payments_svc::store::{self, Acceptance, NewPayment, Outcome};
use saga::consumer::ApplyError;
use saga::contract::Terms;
use saga::parked::Parked;
use saga::postgres::{self, Pool};
use saga::shards::{Ownership, Router};
use sql::Database;
use sql::harness::Harness;
use uuid::Uuid;

const TTL: Duration = Duration::from_secs(900);

struct Payments {
    harness: Harness,
    pool: Pool,
    router: Router,
}

impl Payments {
    async fn new() -> Self {
        let harness = Harness::new(Database::Payments).await.unwrap();
        sql::seed(harness.admin_url(), harness.name()).await.unwrap();
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

    async fn accept(&self, payments: &[NewPayment]) -> Vec<Acceptance> {
        let users: Vec<Uuid> = payments.iter().map(|payment| payment.user_id).collect();
        let owned = self.router.ownership(&users).await.unwrap();
        store::insert_payments(&owned, payments, TTL).await.unwrap()
    }

    /// A payment that was accepted: user and id.
    async fn accepted(&self) -> (Uuid, Uuid) {
        let payment = new_payment(Uuid::now_v7(), "key");
        assert!(matches!(self.accept(std::slice::from_ref(&payment)).await[0], Acceptance::Created(_)));
        (payment.user_id, payment.payment_id)
    }

    async fn apply(&self, commands: &[Command]) -> Result<Outcome, ApplyError> {
        let commands: Vec<&Command> = commands.iter().collect();
        let users: Vec<Uuid> = commands.iter().map(|command| command.user_id).collect();
        let owned = self.router.ownership(&users).await.unwrap();
        store::apply(&owned, &commands, &[], parked).await
    }

    /// Status, event and version.
    async fn row(&self, (user_id, payment_id): (Uuid, Uuid)) -> (String, String, i32) {
        let client = self.pool.get().await.unwrap();
        let query = "select status, event, version from payments where user_id = $1 and payment_id = $2";
        let row = client.query_one(query, &[&user_id, &payment_id]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    async fn count(&self, sql: &str) -> i64 {
        self.pool.get().await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
    }
}

fn parked(index: usize, reason: &str) -> Parked {
    Parked {
        parked_id: format!("BalanceTopic/0/{index}"),
        source: "BalanceTopic".into(),
        message_key: None,
        event_type: None,
        headers: serde_json::json!({}),
        body: Vec::new(),
        reason: reason.to_owned(),
    }
}

fn new_payment(user_id: Uuid, key: &str) -> NewPayment {
    NewPayment {
        user_id,
        payment_id: Uuid::now_v7(),
        idempotency_key: key.into(),
        fingerprint: [7; 32],
        client_number: "0812".into(),
        service_id: "electricity".into(),
        amount: 15_000,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
    }
}

fn command((user_id, payment_id): (Uuid, Uuid), event: Event) -> Command {
    let reason = match event {
        Event::Held | Event::Captured => None,
        Event::HoldRejected => Some("insufficient_funds".into()),
        Event::ReleasedUncharged => Some("declined:do_not_honor".into()),
        Event::ReleasedCancelled => Some("cancelled".into()),
        Event::OutcomeUnknown => Some("timeout".into()),
    };
    let terms = Terms { amount: 15_000, service_id: "electricity".into(), client_number: None };
    Command { user_id, payment_id, event, terms, reason }
}

#[tokio::test]
async fn the_same_key_makes_one_payment_also_within_one_batch_and_at_the_same_time() {
    let payments = Payments::new().await;
    let user = Uuid::now_v7();
    let batch = [new_payment(user, "a"), new_payment(user, "a"), new_payment(user, "b")];
    let done = payments.accept(&batch).await;
    let Acceptance::Created(first) = &done[0] else { panic!("{done:?}") };
    assert_eq!(done[1], Acceptance::Replayed(first.clone()));
    assert!(matches!(done[2], Acceptance::Created(_)));

    let contenders = (0..6).map(|_| {
        let payment = new_payment(user, "c");
        let payments = &payments;
        async move { payments.accept(&[payment]).await.remove(0) }
    });
    let done = futures_util::future::join_all(contenders).await;
    assert_eq!(done.iter().filter(|d| matches!(d, Acceptance::Created(_))).count(), 1);
    assert_eq!(done.iter().filter(|d| matches!(d, Acceptance::Replayed(_))).count(), 5);
    assert_eq!(payments.count("select count(*) from payments").await, 3);
    payments.finish().await;
}

/// An id is derived from its request, so a request that comes twice in a millisecond has one id.
#[tokio::test]
async fn the_same_request_in_one_millisecond_makes_one_payment() {
    let payments = Payments::new().await;
    let first = new_payment(Uuid::now_v7(), "a");
    let other = NewPayment { fingerprint: [8; 32], ..first.clone() };
    let done = payments.accept(&[first.clone(), other.clone(), first.clone()]).await;
    let Acceptance::Created(accepted) = &done[0] else { panic!("{done:?}") };
    assert_eq!(done[1..], [reused(&first), Acceptance::Replayed(accepted.clone())]);

    let refused = NewPayment { service_id: "nobody".into(), ..new_payment(first.user_id, "b") };
    let right = NewPayment { service_id: "electricity".into(), fingerprint: [8; 32], ..refused.clone() };
    let done = payments.accept(&[refused.clone(), right]).await;
    assert_eq!(done[0], reused(&refused), "the other one made the payment");
    assert!(matches!(done[1], Acceptance::Created(_)), "{done:?}");

    let payment = new_payment(first.user_id, "c");
    let contenders = (0..4).map(|_| payments.accept(std::slice::from_ref(&payment)));
    let done = futures_util::future::join_all(contenders).await.concat();
    assert_eq!(done.iter().filter(|d| matches!(d, Acceptance::Created(_))).count(), 1);
    assert_eq!(done.iter().filter(|d| matches!(d, Acceptance::Replayed(_))).count(), 3);
    payments.finish().await;
}

fn reused(payment: &NewPayment) -> Acceptance {
    Acceptance::KeyReused { payment_id: payment.payment_id }
}

#[tokio::test]
async fn another_body_under_a_used_key_is_refused_and_writes_nothing() {
    let payments = Payments::new().await;
    let first = new_payment(Uuid::now_v7(), "key");
    payments.accept(std::slice::from_ref(&first)).await;
    let other = NewPayment { fingerprint: [8; 32], payment_id: Uuid::now_v7(), ..first };
    assert_eq!(payments.accept(&[other]).await, [Acceptance::KeyReused { payment_id: first.payment_id }]);
    assert_eq!(payments.count("select count(*) from payments").await, 1);
    payments.finish().await;
}

#[tokio::test]
async fn a_service_that_is_not_enabled_is_refused_but_a_payment_accepted_before_is_replayed() {
    let payments = Payments::new().await;
    let user = Uuid::now_v7();
    let accepted = new_payment(user, "key");
    payments.accept(std::slice::from_ref(&accepted)).await;
    let owner = payments.harness.owner().await.unwrap();
    owner
        .batch_execute("update services set enabled = false where service_id = 'electricity'")
        .await
        .unwrap();
    let unknown = NewPayment { service_id: "nobody".into(), ..new_payment(user, "other") };
    let done = payments.accept(&[accepted, new_payment(user, "new"), unknown]).await;
    assert!(matches!(done[0], Acceptance::Replayed(_)), "the key is looked up before the service");
    assert_eq!(done[1..], [Acceptance::ServiceRefused, Acceptance::ServiceRefused]);
    assert_eq!(payments.count("select count(*) from payments").await, 1);
    drop(owner);
    payments.finish().await;
}

#[tokio::test]
async fn a_payment_goes_its_way_without_gaps_in_its_versions() {
    let payments = Payments::new().await;
    let payment = payments.accepted().await;
    for (event, status, version) in [
        (Event::Held, "authorized", 2),
        (Event::OutcomeUnknown, "authorized", 3),
        (Event::Captured, "completed", 4),
    ] {
        let outcome = payments.apply(&[command(payment, event)]).await.unwrap();
        assert_eq!(outcome.applied.applied, 1, "{event:?}");
        let again = payments.apply(&[command(payment, event)]).await.unwrap();
        assert_eq!(again.applied.already, 1, "{event:?}");
        let row = payments.row(payment).await;
        assert_eq!((row.0.as_str(), row.2), (status, version));
    }
    payments.finish().await;
}

#[tokio::test]
async fn two_transitions_in_one_batch_are_two_versions() {
    let payments = Payments::new().await;
    let (one, two) = (payments.accepted().await, payments.accepted().await);
    let batch = [
        command(one, Event::Held),
        command(two, Event::Held),
        command(one, Event::Held),
        command(one, Event::ReleasedUncharged),
    ];
    let outcome = payments.apply(&batch).await.unwrap();
    assert_eq!((outcome.applied.applied, outcome.applied.already), (3, 1));
    assert_eq!(payments.row(one).await, ("failed".into(), "failed".into(), 3));
    assert_eq!(payments.row(two).await, ("authorized".into(), "authorized".into(), 2));
    payments.finish().await;
}

#[tokio::test]
async fn a_missing_payment_is_not_a_duplicate_and_the_whole_batch_waits() {
    let payments = Payments::new().await;
    let payment = payments.accepted().await;
    let nowhere = (payment.0, Uuid::now_v7());
    let refused = payments.apply(&[command(payment, Event::Held), command(nowhere, Event::Held)]).await;
    assert!(matches!(refused, Err(ApplyError::Missing(_))), "{refused:?}");
    assert_eq!(payments.row(payment).await.2, 1, "nothing of the batch was applied");
    payments.finish().await;
}

#[tokio::test]
async fn an_unknown_outcome_received_before_the_hold_waits_for_it() {
    let payments = Payments::new().await;
    let (early, open) = (payments.accepted().await, payments.accepted().await);
    let refused = payments.apply(&[command(open, Event::Held), command(early, Event::OutcomeUnknown)]).await;
    let Err(ApplyError::Missing(absent)) = refused else { panic!("{refused:?}") };
    assert_eq!(absent.iter().map(|absent| absent.index).collect::<Vec<_>>(), [1]);
    payments.apply(&[command(early, Event::Held), command(early, Event::OutcomeUnknown)]).await.unwrap();
    assert_eq!(payments.row(early).await, ("authorized".into(), "outcome_unknown".into(), 3));
    assert_eq!(payments.count("select count(*) from parked").await, 0);
    payments.finish().await;
}

#[tokio::test]
async fn what_is_impossible_is_parked_and_the_rest_goes_on() {
    let payments = Payments::new().await;
    let (done, open) = (payments.accepted().await, payments.accepted().await);
    payments.apply(&[command(done, Event::HoldRejected)]).await.unwrap();
    let outcome =
        payments.apply(&[command(done, Event::Captured), command(open, Event::Held)]).await.unwrap();
    assert_eq!((outcome.applied.applied, outcome.applied.parked), (1, 1));
    assert_eq!(payments.row(done).await.0, "rejected");
    assert_eq!(payments.count("select count(*) from parked").await, 1);
    payments.finish().await;
}

#[tokio::test]
async fn batches_racing_on_the_same_payments_apply_each_transition_once() {
    let payments = Payments::new().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(payments.accepted().await);
    }
    let batch: Vec<Command> = open.iter().map(|payment| command(*payment, Event::Held)).collect();
    let racers = (0..8).map(|_| payments.apply(&batch));
    // A racer that lost reports it as a failure worth another try, or finds everything done already.
    let outcomes = futures_util::future::join_all(racers).await;
    let applied: usize = outcomes.iter().filter_map(|o| o.as_ref().ok()).map(|o| o.applied.applied).sum();
    assert_eq!(applied, 20);
    for payment in open {
        assert_eq!(payments.row(payment).await, ("authorized".into(), "authorized".into(), 2));
    }
    payments.finish().await;
}

#[tokio::test]
async fn updates_stay_heap_only() {
    let payments = Payments::new().await;
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(payments.accepted().await);
    }
    for event in [Event::Held, Event::Captured] {
        let batch: Vec<Command> = open.iter().map(|payment| command(*payment, event)).collect();
        payments.apply(&batch).await.unwrap();
    }
    let owner = payments.harness.owner().await.unwrap();
    let indexed = "select count(*) from pg_index i, unnest(i.indkey::int[]) as k(attnum)
                   join pg_attribute a using (attnum)
                   where i.indrelid = 'payments'::regclass and a.attrelid = i.indrelid
                   and a.attname in ('status', 'event', 'reason', 'version', 'authorized_at', 'completed_at')";
    let row = owner.query_one(indexed, &[]).await.unwrap();
    assert_eq!(
        row.get::<_, i64>(0),
        0,
        "an index on a column that a step updates would end heap-only updates"
    );
    drop(owner);
    payments.finish().await;
}

#[tokio::test]
async fn a_cancel_before_the_hold_is_recorded_and_published_with_the_hold() {
    let payments = Payments::new().await;
    let (user, id) = payments.accepted().await;
    let owned = payments.owned(user).await;
    let cancel = || store::request_cancel(&owned, user, id);
    let recorded = Cancel::Record { row_event: RowEvent::CancelRecorded };
    assert_eq!(cancel().await.unwrap(), Some(recorded));
    assert_eq!(payments.row((user, id)).await, ("initiated".into(), "cancel_recorded".into(), 2));
    assert_eq!(cancel().await.unwrap(), Some(Cancel::Already));
    payments.apply(&[command((user, id), Event::Held)]).await.unwrap();
    assert_eq!(payments.row((user, id)).await, ("authorized".into(), "cancel_requested".into(), 3));
    assert_eq!(cancel().await.unwrap(), Some(Cancel::Already));
    payments.apply(&[command((user, id), Event::ReleasedCancelled)]).await.unwrap();
    assert_eq!(payments.row((user, id)).await, ("cancelled".into(), "cancelled".into(), 4));
    assert_eq!(cancel().await.unwrap(), Some(Cancel::Already));
    payments.finish().await;
}

#[tokio::test]
async fn a_cancel_after_the_hold_is_published_at_once_and_after_the_end_refused() {
    let payments = Payments::new().await;
    let (user, id) = payments.accepted().await;
    payments.apply(&[command((user, id), Event::Held)]).await.unwrap();
    let owned = payments.owned(user).await;
    let cancel = || store::request_cancel(&owned, user, id);
    assert_eq!(cancel().await.unwrap(), Some(Cancel::Record { row_event: RowEvent::CancelRequested }));
    assert_eq!(payments.row((user, id)).await, ("authorized".into(), "cancel_requested".into(), 3));
    // It came too late: the payment goes its way.
    payments.apply(&[command((user, id), Event::Captured)]).await.unwrap();
    assert_eq!(cancel().await.unwrap(), Some(Cancel::TooLate(Status::Completed)));
    assert_eq!(payments.row((user, id)).await, ("completed".into(), "completed".into(), 4));
    let other = Uuid::now_v7();
    let nobody = store::request_cancel(&payments.owned(other).await, other, id).await.unwrap();
    assert_eq!(nobody, None, "another user's payment");
    payments.finish().await;
}

/// The commit that recorded it may be on no standby yet, and is undone by a promotion then.
#[tokio::test]
async fn a_repeated_cancel_is_answered_once_the_standbys_have_it() {
    let payments = Payments::new().await;
    let (user, id) = payments.accepted().await;
    let owned = payments.owned(user).await;
    let mut waited = Vec::new();
    for _ in 0..2 {
        let cancel = store::request_cancel(&owned, user, id);
        let (done, barriers) = payments.harness.barriers(cancel).await.unwrap();
        waited.push((done.unwrap() == Some(Cancel::Already), barriers));
    }
    assert_eq!(waited, [(false, 0), (true, 1)]);
    payments.finish().await;
}

/// The same of a payment, also while new ones are refused.
#[tokio::test]
async fn a_payment_is_given_back_once_the_standbys_have_it() {
    let payments = Payments::new().await;
    let first = [new_payment(Uuid::now_v7(), "key")];
    let again = [NewPayment { payment_id: Uuid::now_v7(), ..first[0].clone() }];
    let owned = payments.owned(first[0].user_id).await;
    let accept = store::insert_payments(&owned, &first, TTL);
    let (done, waited) = payments.harness.barriers(accept).await.unwrap();
    assert!(matches!(done.unwrap()[..], [Acceptance::Created(_)]));
    assert_eq!(waited, 0, "its own commit has waited");
    let accept = store::insert_payments(&owned, &again, TTL);
    let (done, waited) = payments.harness.barriers(accept).await.unwrap();
    assert!(matches!(done.unwrap()[..], [Acceptance::Replayed(_)]));
    assert_eq!(waited, 1);
    let find = store::earlier_payments(&owned, &again);
    let (done, waited) = payments.harness.barriers(find).await.unwrap();
    assert!(matches!(done.unwrap()[..], [Acceptance::Replayed(_)]));
    assert_eq!(waited, 1, "while new payments are refused");
    payments.finish().await;
}

#[tokio::test]
async fn many_cancels_at_once_record_one() {
    let payments = Payments::new().await;
    let (user, id) = payments.accepted().await;
    let owned = payments.owned(user).await;
    let tries = (0..8).map(|_| store::request_cancel(&owned, user, id));
    let answers = futures_util::future::join_all(tries).await;
    let recorded = answers.into_iter().filter(|a| matches!(a, Ok(Some(Cancel::Record { .. })))).count();
    assert_eq!(recorded, 1);
    assert_eq!(payments.row((user, id)).await.2, 2);
    payments.finish().await;
}
