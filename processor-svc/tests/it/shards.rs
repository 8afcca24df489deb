//! A database that does not own a user: each statement about the user is refused, and the sweeper leaves the user's charges
//! alone.

use std::time::Duration;

use processor_svc::cause::Cause;
use processor_svc::charge::ChargeKey;
use processor_svc::saga::{State, To};
use processor_svc::store::resolutions::NewProposal;
use processor_svc::store::sweep::InquiryResult;
use processor_svc::store::{Store, Transition};
use processor_svc::work::Job;
use saga::shards::bucket::Bucket;
use saga::shards::{Unowned, is_refused};
use sql::harness::change_ownership;
use uuid::Uuid;

use crate::harness::{Database, job};

const LEASE: Duration = Duration::from_secs(60);
const CALLING: State = State::Calling { attempt: 1, exposed: false };
/// Far longer than a request takes.
const WHILE_MOVED: Duration = Duration::from_millis(200);

impl Database {
    /// Gives up the user's bucket, or takes it, as a move does.
    async fn change(&self, user_id: Uuid, known: i64, epoch: i64, owned: bool) {
        change_ownership(&self.owner().await, Bucket::of(user_id).number(), known, epoch, owned)
            .await
            .unwrap();
    }
}

fn unknown(job: &Job) -> Transition {
    let ChargeKey { payment_id, user_id } = job.charge.key();
    let to = To::Unknown { attempt: 1, why: Cause::TimedOut };
    Transition { payment_id, user_id, from: CALLING, to, pause: Duration::ZERO }
}

fn proposal(job: &Job) -> NewProposal {
    NewProposal {
        resolution_id: Uuid::new_v4(),
        terms: job.charge.clone(),
        evidence: processor_svc::saga::resolution::Evidence::NeverMade,
        operator: "alice".into(),
        reason: "seen at the gateway".into(),
    }
}

const STATEMENTS: usize = 6;

/// What a statement about a user answers, by its number, with its name.
async fn answer(store: &Store, job: &Job, nth: usize) -> (&'static str, anyhow::Result<()>) {
    let ChargeKey { payment_id, user_id } = job.charge.key();
    let (attempt, seq, outcome, next) = (1, 2, "not_found", Some(LEASE));
    let inquiry = InquiryResult { payment_id, user_id, attempt, seq, outcome, detail: None, next };
    let park = |_: usize, _: &str| unreachable!("it is the same charge");
    match nth {
        0 => ("states", store.states(&[job.charge.key()]).await.map(drop)),
        1 => ("ended", store.ended(&[&job.charge]).await.map(drop)),
        2 => ("admit", store.admit(&[job], &[]).await.map(drop)),
        3 => ("apply", store.apply(&[unknown(job)]).await.map(drop)),
        4 => ("cancel", store.cancel(&[job], &[], park).await.map(drop)),
        5 => ("record_inquiries", store.record_inquiries(&[inquiry]).await),
        STATEMENTS.. => unreachable!("there are no more"),
    }
}

/// With rows and without. A store that is refused reads again who owns the user, so each statement has a store of its own that
/// knows no better.
#[tokio::test]
async fn every_statement_about_a_user_is_refused_by_a_database_that_does_not_own_the_user() {
    let database = Database::new().await;
    let (taken_up, new) = (job("1"), job("2"));
    database.store(LEASE).admit(&[&taken_up], &[]).await.unwrap();
    for job in [&taken_up, &new] {
        let user_id = job.charge.user_id;
        for nth in 0..STATEMENTS {
            let store = database.store(LEASE);
            store.states(&[job.charge.key()]).await.unwrap();
            let known = epoch(&database, user_id).await;
            database.change(user_id, known, known + 1, false).await;
            let (name, refused) = answer(&store, job, nth).await;
            let error = refused.expect_err(name);
            assert!(is_refused(&error), "{name}: {error:#}");
            let again = answer(&store, job, nth).await.1.expect_err(name);
            assert_eq!(again.downcast_ref(), Some(&Unowned::Moving), "{name}: {again:#}");
            database.change(user_id, known + 1, known + 2, true).await;
        }
    }
    let rows = "select count(*) from charges where status = 'calling'";
    assert_eq!(database.number(rows).await, 1, "nothing was written");
    let store = database.store(LEASE);
    for nth in 0..STATEMENTS {
        let (name, answer) = answer(&store, &taken_up, nth).await;
        answer.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    database.end().await;
}

async fn epoch(database: &Database, user_id: Uuid) -> i64 {
    let bucket = Bucket::of(user_id).number();
    database.number(&format!("select epoch from owned_buckets where bucket = {bucket}")).await
}

#[tokio::test]
async fn the_sweeper_leaves_the_charges_of_others_alone() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    let (payment_id, user_id) = (job.charge.payment_id, job.charge.user_id);
    store.admit(&[&job], &[]).await.unwrap();
    store.apply(&[unknown(&job)]).await.unwrap();
    let changes = store.ownership_changes().await.unwrap();
    for (known, epoch, owned) in [(1, 2, false), (2, 3, true)] {
        database.change(user_id, known, epoch, owned).await;
        let (scanned, _) = store.scan(jiff::Timestamp::UNIX_EPOCH, 9).await.unwrap();
        let found = [
            scanned.len(),
            store.walk(0, 512).await.unwrap().live.len(),
            store.live(&[payment_id]).await.unwrap().len(),
            store.views(&[payment_id]).await.unwrap().len(),
            store.claim(&[payment_id], LEASE, LEASE).await.unwrap().len(),
        ];
        assert_eq!(found, [usize::from(owned); 5]);
    }
    assert_eq!(store.ownership_changes().await.unwrap(), changes + 2, "the next scan reads everything");
    database.end().await;
}

#[tokio::test]
async fn what_operators_say_of_a_user_who_is_moved_waits_and_is_recorded() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    let user_id = job.charge.user_id;
    store.states(&[job.charge.key()]).await.unwrap();
    // Requests wait for seconds, in which a busy machine may not connect.
    let owner = database.owner().await;
    change_ownership(&owner, Bucket::of(user_id).number(), 1, 2, false).await.unwrap();
    let proposal = proposal(&job);
    let mut proposed = Box::pin(store.propose(&proposal));
    assert!(tokio::time::timeout(WHILE_MOVED, &mut proposed).await.is_err(), "nobody owns the user");
    change_ownership(&owner, Bucket::of(user_id).number(), 2, 3, true).await.unwrap();
    proposed.await.unwrap();

    change_ownership(&owner, Bucket::of(user_id).number(), 3, 4, false).await.unwrap();
    let mut confirmed = Box::pin(store.confirm(proposal.resolution_id, "bob", "seen too"));
    assert!(tokio::time::timeout(WHILE_MOVED, &mut confirmed).await.is_err(), "nobody owns the user");
    change_ownership(&owner, Bucket::of(user_id).number(), 4, 5, true).await.unwrap();
    confirmed.await.unwrap();
    drop(owner);
    let outcome = "select count(*) from charges where status = 'expired'";
    assert_eq!(database.number(outcome).await, 1);
    database.end().await;
}
