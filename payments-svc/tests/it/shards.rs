//! A database that does not own a user: each statement about the user is refused, and what was asked for waits.

use std::io;
use std::time::{Duration, Instant};

use payments_svc::accept::Acceptor;
use payments_svc::events::Payments as Handler;
use payments_svc::metrics::Metrics;
use payments_svc::reader::Reader;
use payments_svc::saga::Event;
use payments_svc::shedding::Shedding;
use payments_svc::store::{self, Acceptance, Filter};
use saga::consumer::{ApplyError, BatchCounts, EventHandler};
use saga::contract::BALANCE_TOPIC;
use saga::parked::acts::{Act, ActAnswer, ActRecord, ActRequest, act_on};
use saga::parked::{self as parked_messages, Parked};
use saga::postgres;
use saga::shards::bucket::Bucket;
use saga::shards::{Databases, Ownership, Router, Unowned, is_refused};
use sql::Database;
use sql::harness::{Harness, change_ownership};
use uuid::Uuid;

use crate::facts::{about, golden};
use crate::recovery::WAIT_TIMEOUT;
use crate::{Payments, TTL, command, new_payment, parked};

/// Far longer than a request takes.
const WHILE_MOVED: Duration = Duration::from_millis(200);

impl Payments {
    /// Gives up the user's bucket, or takes it, as a move does.
    async fn change(&self, user_id: Uuid, known: i64, epoch: i64, owned: bool) {
        let owner = self.harness.owner().await.unwrap();
        change_ownership(&owner, Bucket::of(user_id).number(), known, epoch, owned).await.unwrap();
    }
}

/// A user in another bucket.
fn elsewhere(user_id: Uuid) -> Uuid {
    let mut users = std::iter::repeat_with(Uuid::now_v7);
    users.find(|other| Bucket::of(*other) != Bucket::of(user_id)).unwrap()
}

#[tokio::test]
async fn a_bucket_is_the_same_here_and_in_every_database() {
    let users: Vec<Uuid> =
        (0..2_000).map(|_| Uuid::new_v4()).chain((0..2_000).map(|_| Uuid::now_v7())).collect();
    let here: Vec<i16> = users.iter().map(|user_id| Bucket::of(*user_id).number()).collect();
    for kind in [Database::Payments, Database::Balance, Database::Processor] {
        let harness = Harness::new(kind).await.unwrap();
        let owner = harness.owner().await.unwrap();
        let query = "select bucket(u.user_id) from unnest($1::uuid[]) with ordinality as u (user_id, nth) order by nth";
        let rows = owner.query(query, &[&users]).await.unwrap();
        let there: Vec<i16> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(there, here, "{kind:?}");
        drop(owner);
        harness.finish().await.unwrap();
    }
}

/// What each statement about a user answers in the name of `owned`, whether it refused, by name.
async fn refusals(owned: &Ownership, user_id: Uuid, payment_id: Uuid) -> Vec<(&'static str, bool)> {
    let key = [(user_id, payment_id)];
    let new = [new_payment(user_id, &Uuid::now_v7().to_string())];
    let filter = Filter { status: None, service_id: None, from: Uuid::nil(), before: Uuid::max() };
    let held = command((user_id, payment_id), Event::Held);
    let applied = match store::apply(owned, &[&held], &[], parked).await {
        Err(ApplyError::Other(error)) => Err(error),
        Err(ApplyError::Missing(_) | ApplyError::Moving(_) | ApplyError::Absent(_) | ApplyError::Late(_))
        | Ok(_) => Ok(()),
    };
    let results = [
        ("insert_payments", store::insert_payments(owned, &new, TTL).await.map(drop)),
        ("earlier_payments", store::earlier_payments(owned, &new).await.map(drop)),
        ("holds", store::holds(owned, &key).await.map(drop)),
        ("payments", store::payments(owned, &key).await.map(drop)),
        ("page", store::page(owned, user_id, &filter, 5).await.map(drop)),
        ("payment_by_key", store::payment_by_key(owned, user_id, "key").await.map(drop)),
        ("request_cancel", store::request_cancel(owned, user_id, payment_id).await.map(drop)),
        ("apply", applied),
    ];
    results
        .into_iter()
        .map(|(name, result)| match result {
            Ok(()) => (name, false),
            Err(error) => (name, is_refused(&error) || panic!("{name}: {error:#}")),
        })
        .collect()
}

/// With rows and without: fewer rows would be read as "refused", "lost race" or "missing".
#[tokio::test]
async fn every_statement_about_a_user_is_refused_by_a_database_that_does_not_own_the_user() {
    let payments = Payments::new().await;
    let accepted = payments.accepted().await;
    for (user_id, payment_id) in [accepted, (elsewhere(accepted.0), Uuid::now_v7())] {
        let known = payments.owned(user_id).await;
        let rows = payments.count("select count(*) from payments").await;
        payments.change(user_id, 1, 2, false).await;
        let given_up = refusals(&known, user_id, payment_id).await;
        assert!(given_up.iter().all(|(_, refused)| *refused), "given up: {given_up:?}");
        payments.change(user_id, 2, 3, true).await;
        let stale = refusals(&known, user_id, payment_id).await;
        assert!(stale.iter().all(|(_, refused)| *refused), "at another epoch: {stale:?}");
        assert_eq!(payments.count("select count(*) from payments").await, rows, "nothing was written");
        assert!(payments.router.was_refused(&known, &refused_by(&known, user_id).await).await);
        let again = payments.owned(user_id).await;
        assert_eq!(again.epochs, [3]);
        let owned = refusals(&again, user_id, payment_id).await;
        assert!(owned.iter().all(|(_, refused)| !*refused), "owned: {owned:?}");
    }
    payments.finish().await;
}

async fn refused_by(known: &Ownership, user_id: Uuid) -> anyhow::Error {
    store::payments(known, &[(user_id, user_id)]).await.unwrap_err()
}

#[tokio::test]
async fn a_look_through_the_table_leaves_out_whoever_is_not_owned() {
    let payments = Payments::new().await;
    let (user_id, payment_id) = payments.accepted().await;
    let now = store::clock(&payments.pool).await.unwrap();
    let (from, until) = (now - jiff::SignedDuration::from_mins(5), now + jiff::SignedDuration::from_mins(5));
    let found = store::unsettled_by_age(&payments.pool, from, until, 9).await.unwrap();
    assert_eq!(found.iter().map(|found| found.payment_id).collect::<Vec<_>>(), [payment_id]);
    for (known, epoch, owned) in [(1, 2, false), (2, 3, true)] {
        payments.change(user_id, known, epoch, owned).await;
        let by_age = store::unsettled_by_age(&payments.pool, from, until, 9).await.unwrap();
        let by_block = store::unsettled_by_block(&payments.pool, 0, 512).await.unwrap().found;
        let by_key = store::still_unsettled(&payments.pool, &found).await.unwrap();
        for rows in [by_age, by_block, by_key] {
            assert_eq!(rows.len(), usize::from(owned));
        }
    }
    payments.finish().await;
}

/// Two shards, as a list names them.
struct Two {
    one: Harness,
    two: Harness,
    router: Router,
}

impl Two {
    async fn new() -> Self {
        let (one, two) = (
            Harness::new(Database::Payments).await.unwrap(),
            Harness::new(Database::Payments).await.unwrap(),
        );
        for harness in [&one, &two] {
            sql::seed(harness.admin_url(), harness.name()).await.unwrap();
        }
        // Whoever joins gives up what it was born with.
        let joins =
            "select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, null)
                       from owned_buckets";
        two.owner().await.unwrap().execute(joins, &[]).await.unwrap();
        let list = format!("one={} two={}", one.service_url().unwrap(), two.service_url().unwrap());
        let router = Router::listed(&list, |url| postgres::pool(url, 4, "test")).unwrap();
        Self { one, two, router }
    }

    async fn change(&self, harness: &Harness, user_id: Uuid, known: i64, epoch: i64, owned: bool) {
        change_ownership(&harness.owner().await.unwrap(), Bucket::of(user_id).number(), known, epoch, owned)
            .await
            .unwrap();
    }

    async fn finish(self) {
        for (_, pool) in self.router.shards() {
            pool.close();
        }
        self.one.finish().await.unwrap();
        self.two.finish().await.unwrap();
    }
}

/// How many payments of a user a database has.
async fn rows(harness: &Harness, user_id: Uuid) -> i64 {
    let count = "select count(*) from payments where user_id = $1";
    harness.owner().await.unwrap().query_one(count, &[&user_id]).await.unwrap().get(0)
}

/// A router that knows of no move follows it, once a database refuses.
#[tokio::test]
async fn a_user_who_was_moved_is_served_by_the_other_database() {
    let shards = Two::new().await;
    let moved = Uuid::now_v7();
    let other = elsewhere(moved);
    let metrics = Metrics::register().unwrap();
    let acceptor = Acceptor::start(shards.router.clone(), TTL, Shedding::none(), metrics);
    let accepts = async |user_id, key: &str| {
        let accepted = acceptor.accept(new_payment(user_id, key)).await;
        assert!(matches!(accepted, Some(Acceptance::Created(_))), "{accepted:?}");
    };
    accepts(moved, "before").await;
    accepts(other, "before").await;
    assert_eq!((rows(&shards.one, moved).await, rows(&shards.two, moved).await), (1, 0));

    shards.change(&shards.one, moved, 1, 3, false).await;
    shards.change(&shards.two, moved, 2, 4, true).await;
    accepts(moved, "after").await;
    accepts(other, "after").await;
    assert_eq!((rows(&shards.one, moved).await, rows(&shards.two, moved).await), (1, 1));
    assert_eq!((rows(&shards.one, other).await, rows(&shards.two, other).await), (2, 0));
    // Both at once, from one queue.
    tokio::join!(accepts(moved, "at once"), accepts(other, "at once"));
    assert_eq!((rows(&shards.one, other).await, rows(&shards.two, moved).await), (3, 2));
    shards.finish().await;
}

/// The list is a file, which names a server that is not there, and then the right one.
#[tokio::test]
async fn a_shard_that_is_away_hides_its_own_users_only_and_comes_back() {
    let shards = Two::new().await;
    let moved = Uuid::now_v7();
    let other = elsewhere(moved);
    shards.change(&shards.one, moved, 1, 3, false).await;
    shards.change(&shards.two, moved, 2, 4, true).await;
    let file = std::env::temp_dir().join(format!("{}.shards", shards.two.name()));
    let list = |two: &str| format!("one={} two={two}", shards.one.service_url().unwrap());
    std::fs::write(&file, list("postgres://nobody@127.0.0.1:9/none")).unwrap();
    let text = secret_files::take("SHARDS_FILE", &file).unwrap();
    let router = Router::listed(&text, |url| postgres::pool(url, 4, "test")).unwrap();

    let metrics = Metrics::register().unwrap();
    let acceptor = Acceptor::start(router.clone(), TTL, Shedding::none(), metrics.clone());
    let reader = Reader::start(router.clone());
    let accepted = acceptor.accept(new_payment(other, "key")).await;
    let Some(Acceptance::Created(accepted)) = accepted else { panic!("{accepted:?}") };
    assert_eq!(acceptor.accept(new_payment(moved, "key")).await, None, "503");
    assert!(reader.payment(moved, accepted.payment_id).await.is_err());
    assert!(reader.payment(other, accepted.payment_id).await.unwrap().is_some());
    let handler = Handler::new(router.clone(), &Metrics::register().unwrap());
    let held = [
        command((other, accepted.payment_id), Event::Held),
        command((moved, accepted.payment_id), Event::Held),
    ];
    let both: Vec<_> = held.iter().collect();
    let passed_over = handler.apply(&both, &[], parked).await;
    assert!(matches!(&passed_over, Err(ApplyError::Absent(items)) if items[..] == [1]), "{passed_over:?}");
    assert_eq!(handler.apply(&both[..1], &[], parked).await.unwrap().applied, 1);

    std::fs::write(&file, list(&shards.two.service_url().unwrap())).unwrap();
    let comes_back = async {
        while acceptor.accept(new_payment(moved, "key")).await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), comes_back).await.unwrap();
    assert_eq!((rows(&shards.one, moved).await, rows(&shards.two, moved).await), (0, 1));
    std::fs::remove_file(&file).unwrap();
    for (_, pool) in router.shards() {
        pool.close();
    }
    shards.finish().await;
}

/// Both databases believe that they own the user, as after a restore that nobody adopted.
#[tokio::test]
async fn of_two_owners_the_higher_epoch_is_asked_and_at_one_epoch_neither() {
    let shards = Two::new().await;
    let user_id = Uuid::now_v7();
    shards.change(&shards.two, user_id, 2, 3, true).await;
    let owned = shards.router.ownership(&[user_id]).await.unwrap();
    assert_eq!(owned.epochs, [3]);
    shards.finish().await;

    let shards = Two::new().await;
    shards.change(&shards.one, user_id, 1, 2, false).await;
    shards.change(&shards.one, user_id, 2, 3, true).await;
    shards.change(&shards.two, user_id, 2, 3, true).await;
    assert_eq!(shards.router.ownership(&[user_id]).await.unwrap_err(), Unowned::Contested);
    assert!(shards.router.ownership(&[elsewhere(user_id)]).await.is_ok(), "the others are served");
    shards.finish().await;
}

/// The requests of others are answered meanwhile, and none is answered 503.
#[tokio::test]
async fn the_requests_of_a_user_who_is_moved_wait_and_are_answered() {
    let payments = Payments::new().await;
    let metrics = Metrics::register().unwrap();
    let acceptor = Acceptor::start(payments.router.clone(), TTL, Shedding::none(), metrics);
    let reader = Reader::start(payments.router.clone());
    let (user_id, payment_id) = payments.accepted().await;
    let other = elsewhere(user_id);
    // Requests wait for seconds, in which a busy machine may not connect.
    let owner = payments.harness.owner().await.unwrap();
    change_ownership(&owner, Bucket::of(user_id).number(), 1, 2, false).await.unwrap();

    let new = new_payment(user_id, "while it is moved");
    let cancel = |owned| async move { store::request_cancel(&owned, user_id, payment_id).await };
    let mut moved = Box::pin(async {
        tokio::join!(
            acceptor.accept(new),
            reader.payment(user_id, payment_id),
            payments.router.repeat(user_id, cancel)
        )
    });
    assert!(tokio::time::timeout(WHILE_MOVED, &mut moved).await.is_err(), "nobody owns the user");
    // They go on waiting meanwhile: whoever reads the shards holds up the others who want to.
    let others = async {
        let accepted = acceptor.accept(new_payment(other, "key")).await;
        (accepted, reader.payment(other, payment_id).await)
    };
    let (accepted, read) = tokio::select! {
        _ = &mut moved => panic!("nobody owns the user"),
        answered = others => answered,
    };
    assert!(matches!(accepted, Some(Acceptance::Created(_))), "{accepted:?}");
    assert_eq!(read.unwrap(), None);

    change_ownership(&owner, Bucket::of(user_id).number(), 2, 3, true).await.unwrap();
    let (accepted, read, cancelled) = moved.await;
    assert!(matches!(accepted, Some(Acceptance::Created(_))), "{accepted:?}");
    assert!(read.unwrap().is_some() && cancelled.unwrap().is_some());
    drop(owner);
    payments.finish().await;
}

#[tokio::test]
async fn an_event_of_a_user_who_is_moved_waits_and_those_of_others_are_applied() {
    let payments = Payments::new().await;
    let handler = Handler::new(payments.router.clone(), &Metrics::register().unwrap());
    let moved = payments.accepted().await;
    let new = new_payment(elsewhere(moved.0), "key");
    payments.accept(std::slice::from_ref(&new)).await;
    let held = [command((new.user_id, new.payment_id), Event::Held), command(moved, Event::Held)];
    let both: Vec<_> = held.iter().collect();

    payments.change(moved.0, 1, 2, false).await;
    // The handler knows no better yet, and the whole batch is refused.
    let refused = handler.apply(&both, &[], parked).await;
    assert!(matches!(&refused, Err(ApplyError::Other(error)) if is_refused(error)), "{refused:?}");
    let waits = handler.apply(&both, &[], parked).await;
    assert!(matches!(&waits, Err(ApplyError::Moving(items)) if items[..] == [1]), "{waits:?}");
    assert_eq!(handler.apply(&both[..1], &[], parked).await.unwrap().applied, 1);

    payments.change(moved.0, 2, 3, true).await;
    // The shards are not read more often than every 20 milliseconds, and the handler applies what is known.
    payments.router.repeat(moved.0, |_| async { Ok(()) }).await.unwrap();
    let counts = handler.apply(&both, &[], parked).await.unwrap();
    assert_eq!((counts.applied, counts.already), (1, 1));
    payments.finish().await;
}

/// The hold of a payment, as if the payment had been missing.
fn parked_hold(parked_id: &str, user_id: Uuid, payment_id: Uuid) -> Parked {
    let kind = "balance.held.v1";
    Parked {
        parked_id: parked_id.to_owned(),
        source: BALANCE_TOPIC.to_owned(),
        message_key: Some(user_id.to_string()),
        event_type: Some(kind.to_owned()),
        headers: serde_json::json!({"ce_type": kind}),
        body: about(&golden(kind), user_id, payment_id).into_bytes(),
        reason: "missing: payment".to_owned(),
    }
}

impl Two {
    /// Parks a message on the first shard.
    async fn park(&self, message: Parked) {
        let mut client = self.router.shards()[0].1.get().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        parked_messages::insert(&transaction, &[message]).await.unwrap();
        transaction.commit().await.unwrap();
    }

    async fn act(&self, act: Act, parked_id: &str) -> anyhow::Result<ActAnswer> {
        let handler = Handler::new(self.router.clone(), &Metrics::register().unwrap());
        let (parked_id, operator, reason) = (parked_id.to_owned(), "alice".to_owned(), "a test".to_owned());
        let request = ActRequest { act, parked_id, operator, reason };
        act_on(&Databases::from(&self.router), &handler, &request).await
    }
}

/// The number of rows of a table.
async fn count(harness: &Harness, table: &str) -> i64 {
    let count = format!("select count(*) from {table}");
    harness.owner().await.unwrap().query_one(&count, &[]).await.unwrap().get(0)
}

/// The user was moved since the message was parked: it is applied where the user is, and the act is recorded where it is.
#[tokio::test]
async fn a_parked_message_whose_user_is_elsewhere_is_retried_and_put_away() {
    let shards = Two::new().await;
    let moved = Uuid::now_v7();
    shards.change(&shards.one, moved, 1, 3, false).await;
    shards.change(&shards.two, moved, 2, 4, true).await;
    let acceptor =
        Acceptor::start(shards.router.clone(), TTL, Shedding::none(), Metrics::register().unwrap());
    let accepted = acceptor.accept(new_payment(moved, "key")).await;
    let Some(Acceptance::Created(accepted)) = accepted else { panic!("{accepted:?}") };
    shards.park(parked_hold("BalanceTopic/0/1", moved, accepted.payment_id)).await;
    shards.park(parked_hold("BalanceTopic/0/2", moved, Uuid::now_v7())).await;

    let refused = shards.act(Act::Dismissed, "BalanceTopic/0/1").await.unwrap();
    assert!(matches!(&refused, ActAnswer::Refused(why) if why.contains("can be applied")), "{refused:?}");
    let retried = shards.act(Act::Retried, "BalanceTopic/0/1").await.unwrap();
    let ActAnswer::Done(ActRecord { outcome, .. }) = &retried else { panic!("{retried:?}") };
    assert_eq!(outcome, "applied");
    let again = shards.act(Act::Retried, "BalanceTopic/0/1").await.unwrap();
    assert!(matches!(again, ActAnswer::Repeated(_)), "{again:?}");
    let held = "payments where status = 'authorized'";
    assert_eq!((count(&shards.one, held).await, count(&shards.two, held).await), (0, 1));

    let dismissed = shards.act(Act::Dismissed, "BalanceTopic/0/2").await.unwrap();
    let ActAnswer::Done(ActRecord { outcome, .. }) = &dismissed else { panic!("{dismissed:?}") };
    assert!(outcome.starts_with("missing: "), "{outcome}");
    assert_eq!(
        (count(&shards.one, "parked_acts").await, count(&shards.two, "parked_acts").await),
        (2, 0),
        "beside the messages"
    );
    shards.finish().await;
}

/// So that a retry is one transaction.
#[tokio::test]
async fn a_message_is_parked_on_the_shard_of_its_user() {
    let shards = Two::new().await;
    let moved = Uuid::now_v7();
    shards.change(&shards.one, moved, 1, 3, false).await;
    shards.change(&shards.two, moved, 2, 4, true).await;
    let handler = Handler::new(shards.router.clone(), &Metrics::register().unwrap());
    for number in 0..8 {
        let message = parked_hold(&format!("BalanceTopic/0/{number}"), moved, Uuid::now_v7());
        handler.apply(&[], &[message], parked).await.unwrap();
    }
    assert_eq!((count(&shards.one, "parked").await, count(&shards.two, "parked").await), (0, 8));
    shards.finish().await;
}

/// Whether the services may commit the barrier in a database.
async fn may_confirm(harness: &Harness, may: bool) {
    let owner = harness.owner().await.unwrap();
    let change = if may {
        "grant execute on function %s to public"
    } else {
        "revoke execute on function %s from public"
    };
    let all = format!(
        "reset role;
         do $$ begin execute (select format('{change}', oid::regprocedure) from pg_proc
             where proname = 'pg_logical_emit_message' and provolatile = 'v' and proargtypes[2] = 'text'::regtype); end $$"
    );
    owner.batch_execute(&all).await.unwrap();
}

/// As one whose synchronous standbys are away: no work on it ends. Here its commit is refused instead.
#[tokio::test]
async fn a_shard_that_answers_and_does_not_commit_stays_away_until_it_does() {
    let shards = Two::new().await;
    let moved = Uuid::now_v7();
    shards.change(&shards.one, moved, 1, 3, false).await;
    shards.change(&shards.two, moved, 2, 4, true).await;
    let apply = async |is_lost: bool| {
        let work = |_: Ownership, _, _| async move {
            let lost = io::Error::from(io::ErrorKind::ConnectionReset);
            if is_lost { Err(ApplyError::from(lost)) } else { Ok(BatchCounts::default()) }
        };
        shards.router.apply(&[moved], &[], work).await
    };
    let serves = async || {
        let began = Instant::now();
        while apply(false).await.is_err() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it does not serve");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (mut failed, mut tries) = (apply(true).await, 1..10);
    // On a busy machine it may not say in time that it serves, and is away until it does.
    while matches!(failed, Err(ApplyError::Absent(_))) && tries.next().is_some() {
        serves().await;
        failed = apply(true).await;
    }
    assert!(matches!(failed, Err(ApplyError::Other(_))), "it serves: {failed:?}");
    serves().await;

    may_confirm(&shards.two, false).await;
    assert!(matches!(apply(true).await, Err(ApplyError::Absent(_))));
    // It is asked twice meanwhile, and answers.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        let passed_over = apply(false).await;
        assert!(matches!(passed_over, Err(ApplyError::Absent(_))), "{passed_over:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unknown = shards.act(Act::Retried, "BalanceTopic/0/1").await.unwrap_err();
    assert_eq!(unknown.downcast_ref(), Some(&Unowned::Away), "it may have the message, and is not asked");

    may_confirm(&shards.two, true).await;
    serves().await;
    assert_eq!(shards.act(Act::Retried, "BalanceTopic/0/1").await.unwrap(), ActAnswer::Unknown);
    shards.finish().await;
}
