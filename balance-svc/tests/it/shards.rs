//! A database that does not own a user: each statement about the user is refused, and what was asked for waits.

use std::time::Duration;

use balance_svc::events::Ledger as Handler;
use balance_svc::metrics::Metrics;
use balance_svc::store;
use saga::consumer::{ApplyError, EventHandler};
use saga::shards::bucket::Bucket;
use saga::shards::{Ownership, is_refused};
use sql::harness::change_ownership;
use uuid::Uuid;

use crate::{Ledger, initiated, parked};

/// Far longer than a request takes.
const WHILE_MOVED: Duration = Duration::from_millis(200);

impl Ledger {
    /// Gives up the user's bucket, or takes it, as a move does.
    async fn change(&self, user_id: Uuid, known: i64, epoch: i64, owned: bool) {
        let owner = self.harness.owner().await.unwrap();
        change_ownership(&owner, Bucket::of(user_id).number(), known, epoch, owned).await.unwrap();
    }
}

/// Whether each statement about a user is refused in the name of `owned`, by name.
async fn refusals(owned: &Ownership, user_id: Uuid) -> Vec<(&'static str, bool)> {
    let hold = initiated(user_id, Uuid::now_v7(), 1);
    let applied = match store::apply(owned, &[&hold], &[], |_, reason| parked("t/0/0", reason)).await {
        Err(ApplyError::Other(error)) => Err(error),
        Err(ApplyError::Missing(_) | ApplyError::Moving(_) | ApplyError::Absent(_) | ApplyError::Late(_))
        | Ok(_) => Ok(()),
    };
    let results = [
        ("apply", applied),
        ("balance", store::balance(owned, user_id).await.map(drop)),
        ("movements", store::movements(owned, user_id, None, 5).await.map(drop)),
        ("deposit", store::deposit(owned, user_id, Uuid::new_v4(), 7).await.map(drop)),
    ];
    let is_refusal = |error: anyhow::Error| is_refused(&error) || panic!("{error:#}");
    results.map(|(name, result)| (name, result.is_err_and(is_refusal))).into()
}

/// With rows and without: fewer rows would be read as "no account", "no movements" or "missing".
#[tokio::test]
async fn every_statement_about_a_user_is_refused_by_a_database_that_does_not_own_the_user() {
    let ledger = Ledger::new().await;
    let user = ledger.user_with(100).await;
    let mut strangers = std::iter::repeat_with(Uuid::now_v7);
    let stranger = strangers.find(|other| Bucket::of(*other) != Bucket::of(user)).unwrap();
    for user_id in [user, stranger] {
        let known = ledger.owned(user_id).await;
        let rows = ledger.count("select count(*) from ledger").await;
        ledger.change(user_id, 1, 2, false).await;
        let given_up = refusals(&known, user_id).await;
        assert!(given_up.iter().all(|(_, refused)| *refused), "given up: {given_up:?}");
        ledger.change(user_id, 2, 3, true).await;
        let stale = refusals(&known, user_id).await;
        assert!(stale.iter().all(|(_, refused)| *refused), "at another epoch: {stale:?}");
        assert_eq!(ledger.count("select count(*) from ledger").await, rows, "nothing was written");
        let error = store::balance(&known, user_id).await.unwrap_err();
        assert!(ledger.router.was_refused(&known, &error).await);
        let owned = refusals(&ledger.owned(user_id).await, user_id).await;
        assert!(owned.iter().all(|(_, refused)| !*refused), "owned: {owned:?}");
    }
    ledger.finish().await;
}

#[tokio::test]
async fn the_requests_of_a_user_who_is_moved_wait_and_are_answered() {
    let ledger = Ledger::new().await;
    let user_id = ledger.user_with(100).await;
    // Requests wait for seconds, in which a busy machine may not connect.
    let owner = ledger.harness.owner().await.unwrap();
    change_ownership(&owner, Bucket::of(user_id).number(), 1, 2, false).await.unwrap();
    let (read, credit) = (
        |owned| async move { store::balance(&owned, user_id).await },
        |owned| async move { store::deposit(&owned, user_id, user_id, 7).await },
    );
    let both =
        async { tokio::join!(ledger.router.repeat(user_id, read), ledger.router.repeat(user_id, credit)) };
    let mut moved = Box::pin(both);
    assert!(tokio::time::timeout(WHILE_MOVED, &mut moved).await.is_err(), "nobody owns the user");
    change_ownership(&owner, Bucket::of(user_id).number(), 2, 3, true).await.unwrap();
    let (read, credited) = moved.await;
    drop(owner);
    assert!(read.unwrap().is_some());
    assert_eq!(credited.unwrap(), store::Deposit::Credited);
    assert_eq!(ledger.balance(user_id).await, (107, 0));
    ledger.finish().await;
}

/// As after the death of a mover that had given the bucket up.
#[tokio::test]
async fn a_request_that_waits_in_vain_for_an_owner_fails_and_is_counted() {
    let ledger = Ledger::new().await;
    let registry = prometheus::Registry::new();
    ledger.router.register(&registry).unwrap();
    let timeouts = || {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "saga_unowned_timeouts_total").unwrap();
        family.get_metric()[0].get_counter().get_value()
    };
    let user_id = ledger.user_with(100).await;
    ledger.change(user_id, 1, 2, false).await;
    assert_eq!(timeouts(), 0.0);
    let read = |owned| async move { store::balance(&owned, user_id).await };
    let error = ledger.router.repeat(user_id, read).await.unwrap_err();
    assert!(format!("{error:#}").contains("not moved in time"), "{error:#}");
    assert_eq!(timeouts(), 1.0);
    ledger.change(user_id, 2, 3, true).await;
    assert!(ledger.router.repeat(user_id, read).await.unwrap().is_some());
    assert_eq!(timeouts(), 1.0);
    ledger.finish().await;
}

#[tokio::test]
async fn an_event_of_a_user_who_is_moved_waits_and_those_of_others_are_applied() {
    let ledger = Ledger::new().await;
    let handler = Handler::new(ledger.router.clone(), &Metrics::register().unwrap());
    let moved = ledger.user_with(100).await;
    let other = loop {
        let other = ledger.user_with(100).await;
        if Bucket::of(other) != Bucket::of(moved) {
            break other;
        }
    };
    let holds = [initiated(other, Uuid::now_v7(), 10), initiated(moved, Uuid::now_v7(), 10)];
    let both: Vec<_> = holds.iter().collect();
    let park = |_: usize, reason: &str| parked("t/0/0", reason);

    ledger.change(moved, 1, 2, false).await;
    // The handler knows no better yet, and the whole batch is refused.
    let refused = handler.apply(&both, &[], park).await;
    assert!(matches!(&refused, Err(ApplyError::Other(error)) if is_refused(error)), "{refused:?}");
    let waits = handler.apply(&both, &[], park).await;
    assert!(matches!(&waits, Err(ApplyError::Moving(items)) if items[..] == [1]), "{waits:?}");
    assert_eq!(handler.apply(&both[..1], &[], park).await.unwrap().applied, 1);

    ledger.change(moved, 2, 3, true).await;
    // The shards are not read more often than every 20 milliseconds, and the handler applies what is known.
    ledger.router.repeat(moved, |_| async { Ok(()) }).await.unwrap();
    let counts = handler.apply(&both, &[], park).await.unwrap();
    assert_eq!((counts.applied, counts.already), (1, 1));
    assert_eq!((ledger.balance(moved).await, ledger.balance(other).await), ((90, 10), (90, 10)));
    ledger.finish().await;
}
