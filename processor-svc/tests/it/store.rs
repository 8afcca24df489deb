//! The statements: what they write, and what they refuse to.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use processor_svc::cause::Cause;
use processor_svc::charge::ChargeKey;
use processor_svc::saga::{Event, Finding, Outcome, State, Step, To, decide};
use processor_svc::store::sweep::{Due, InquiryResult};
use processor_svc::store::{Admission, Store, Transition};
use processor_svc::work::{Job, Message, park};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::harness::{Database, job, jobs};

/// Longer than a test takes on a busy machine, by far.
const LEASE: Duration = Duration::from_secs(300);
const NOW: Duration = Duration::ZERO;

async fn admit(store: &Store, jobs: &[Job]) -> Vec<Admission> {
    store.admit(&jobs.iter().collect::<Vec<_>>(), &[]).await.unwrap()
}

fn transition(job: &Job, from: State, to: To) -> Transition {
    let ChargeKey { payment_id, user_id } = job.charge.key();
    Transition { payment_id, user_id, from, to, pause: NOW }
}

const CALLING: State = State::Calling { attempt: 1, exposed: false };

fn unknown(attempt: i32) -> To {
    To::Unknown { attempt, why: Cause::TimedOut }
}

fn succeeded() -> To {
    To::Succeeded { provider_reference: "ch_1".to_owned() }
}

async fn state(store: &Store, job: &Job) -> State {
    let states = store.states(&[job.charge.key()]).await.unwrap();
    states.get(&job.charge.payment_id).copied().unwrap_or(State::Absent)
}

#[tokio::test]
async fn intents_are_committed_once_and_duplicates_are_recognised() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let two = jobs(2, "5551234");
    assert_eq!(admit(&store, &two).await, [Admission::Calling; 2]);
    let mut again = two.clone();
    again[0].charge.traceparent = Some("another emission".to_owned());
    again[1].charge.amount += 1;
    again.push(job("5551234"));
    assert_eq!(admit(&store, &again).await, [Admission::Already, Admission::Conflict, Admission::Calling]);
    let rows = "select count(*) from charges where version = 1 and attempt = 1 and status = 'calling'
                and not exposed and amount = 15000 and lease_until - created_at = interval '300 seconds'";
    assert_eq!(database.number(rows).await, 3);
    database.end().await;
}

#[tokio::test]
async fn past_its_deadline_a_charge_ends_without_a_call_and_keeps_it_otherwise() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let (mut late, mut early) = (job("1"), job("1"));
    late.expires_at = Some(Timestamp::now() - Duration::from_secs(60));
    early.expires_at = Some(Timestamp::now() + Duration::from_secs(60));
    assert_eq!(admit(&store, &[late.clone(), early.clone()]).await, [Admission::Expired, Admission::Calling]);
    assert_eq!(admit(&store, &[late]).await, [Admission::Already]);
    let expired = "select count(*) from charges
                   where status = 'expired' and reason = 'deadline_passed' and decided_at = created_at";
    assert_eq!(database.number(expired).await, 1);
    assert_eq!(decide(&State::Absent, &Event::Work { past_deadline: true }), Step::Insert(To::Expired));
    database.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_parked_with_the_intents_or_not_at_all() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let bad = park("queue", &Message { body: b"\0".to_vec(), ..Message::default() }, "no");
    let mut poison = job("1");
    poison.charge.amount = 0;
    assert!(store.admit(&[&poison], std::slice::from_ref(&bad)).await.is_err());
    assert_eq!(database.number("select count(*) from parked").await, 0);
    let good = job("1");
    for _ in 0..2 {
        store.admit(&[&good], std::slice::from_ref(&bad)).await.unwrap();
    }
    assert_eq!(database.number("select count(*) from parked where source = 'queue'").await, 1);
    assert_eq!(database.number("select count(*) from charges").await, 1);
    database.end().await;
}

#[tokio::test]
async fn a_transition_is_written_only_over_the_state_it_was_decided_from() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let all = jobs(4, "1");
    admit(&store, &all).await;
    let transitions = [
        transition(&all[0], CALLING, succeeded()),
        transition(&all[1], State::Calling { attempt: 2, exposed: false }, succeeded()),
        transition(&all[2], State::Unknown { attempt: 1 }, succeeded()),
        transition(&all[3], State::Absent, succeeded()),
        transition(&job("1"), CALLING, succeeded()),
    ];
    let applied = store.apply(&transitions).await.unwrap();
    assert_eq!(applied.into_iter().collect::<Vec<_>>(), [all[0].charge.payment_id]);
    assert!(store.apply(&transitions).await.unwrap().is_empty(), "once");
    assert_eq!(state(&store, &all[0]).await, State::Succeeded);
    assert_eq!(state(&store, &all[1]).await, CALLING);
    let row = "select count(*) from charges where version = 2 and provider_reference = 'ch_1' and decided_at is not null";
    assert_eq!(database.number(row).await, 1);
    database.end().await;
}

#[tokio::test]
async fn what_did_not_settle_a_charge_is_noted_beside_it() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let three = jobs(3, "1");
    admit(&store, &three).await;
    let waiting = To::Waiting { attempt: 1, why: Cause::NotConnected };
    let lapsed = To::Unknown { attempt: 1, why: Cause::LeaseLapsed };
    let mut transitions = vec![
        transition(&three[0], CALLING, waiting),
        transition(&three[1], CALLING, unknown(1)),
        transition(&three[2], CALLING, lapsed),
    ];
    transitions.iter_mut().for_each(|transition| transition.pause = Duration::from_secs(700));
    assert_eq!(store.apply(&transitions).await.unwrap().len(), 3);
    let results = database.query("select a.kind, a.outcome, a.detail, a.seq, (next_at - at)::text
         from charge_attempts a join charges c using (payment_id, user_id) order by c.status desc, a.kind desc").await;
    let results: Vec<(&str, &str, &str, i32, Option<&str>)> =
        results.iter().map(|n| (n.get(0), n.get(1), n.get(2), n.get(3), n.get(4))).collect();
    let pause = Some("00:11:40");
    assert_eq!(
        results,
        [
            ("charge", "not_sent", "not_connected", 1, None),
            ("sweep", "unknown", "lease_lapsed", 1, pause),
            ("charge", "unknown", "timeout", 1, pause),
        ]
    );
    let pause = "select count(*) from charges where status = 'waiting' and lease_until - now() between '600 s' and '700 s'";
    assert_eq!(database.number(pause).await, 1);
    database.end().await;
}

#[tokio::test]
async fn a_first_call_after_a_pause_is_bound_by_the_deadline_and_a_repeated_one_is_not() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let two = jobs(2, "1");
    admit(&store, &two).await;
    let waiting = To::Waiting { attempt: 1, why: Cause::BreakerOpen };
    store
        .apply(&[transition(&two[0], CALLING, waiting), transition(&two[1], CALLING, unknown(1))])
        .await
        .unwrap();
    database.query("update charges set expires_at = now() - interval '1 s'").await;
    let again = To::Calling { attempt: 2 };
    let transitions = [
        transition(&two[0], State::Waiting { attempt: 1 }, again.clone()),
        transition(&two[1], State::Unknown { attempt: 1 }, again),
    ];
    let applied = store.apply(&transitions).await.unwrap();
    assert_eq!(applied.into_iter().collect::<Vec<_>>(), [two[1].charge.payment_id]);
    assert_eq!(state(&store, &two[1]).await, State::Calling { attempt: 2, exposed: true });
    let view = store.views(&[two[0].charge.payment_id]).await.unwrap();
    assert_eq!((view[0].due, view[0].past_deadline), (Due::Now, true));
    store.apply(&[transition(&two[0], State::Waiting { attempt: 1 }, To::Expired)]).await.unwrap();
    assert_eq!(state(&store, &two[0]).await, State::Expired);
    database.end().await;
}

#[tokio::test]
async fn an_inquiry_is_claimed_by_one_and_again_when_its_claim_or_pause_is_over() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    let id = job.charge.payment_id;
    admit(&store, std::slice::from_ref(&job)).await;
    let none = store.claim(&[id], LEASE, LEASE).await.unwrap();
    assert!(none.is_empty(), "it is not unknown");
    store.apply(&[transition(&job, CALLING, unknown(1))]).await.unwrap();

    let ids = [id];
    let claims = futures_util::future::join_all((0..8).map(|_| store.claim(&ids, LEASE, LEASE))).await;
    let claims: Vec<_> = claims.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claims.len(), 1);
    assert_eq!((claims[0].attempt, claims[0].seq, claims[0].conclusive), (1, 2, false));
    assert_eq!(claims[0].charge, job.charge);

    let record_inquiries = |seq, next| InquiryResult {
        payment_id: id,
        user_id: job.charge.user_id,
        attempt: 1,
        seq,
        outcome: "not_found",
        detail: None,
        next,
    };
    store.record_inquiries(&[record_inquiries(2, Some(LEASE))]).await.unwrap();
    assert!(store.claim(&[id], LEASE, NOW).await.unwrap().is_empty(), "not due yet");
    store.record_inquiries(&[record_inquiries(2, Some(NOW))]).await.unwrap();
    let claim = store.claim(&[id], NOW, NOW).await.unwrap();
    assert_eq!((claim[0].seq, claim[0].conclusive), (3, true), "the visibility delay has passed");
    assert_eq!(store.claim(&[id], LEASE, NOW).await.unwrap()[0].seq, 4, "its claim was over");
    database.end().await;
}

#[tokio::test]
async fn views_and_scans_show_what_is_due_and_what_is_live() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let all = jobs(4, "1");
    admit(&store, &all).await;
    let mut later = transition(&all[1], CALLING, unknown(1));
    later.pause = Duration::from_secs(200);
    store
        .apply(&[later, transition(&all[2], CALLING, succeeded()), transition(&all[3], CALLING, unknown(1))])
        .await
        .unwrap();
    let ids: Vec<Uuid> = all.iter().map(|job| job.charge.payment_id).collect();
    let view: HashMap<Uuid, _> =
        store.views(&ids).await.unwrap().into_iter().map(|view| (view.charge.payment_id, view)).collect();
    assert!(
        matches!(view[&ids[0]].due, Due::After(wait) if wait > Duration::from_secs(200) && wait <= LEASE)
    );
    assert!(
        matches!(view[&ids[1]].due, Due::After(wait) if wait > Duration::from_secs(100) && wait <= Duration::from_secs(200))
    );
    assert_eq!((view[&ids[2]].state, view[&ids[3]].due), (State::Succeeded, Due::Now));

    let (live, now) = store.scan(Timestamp::UNIX_EPOCH, 100).await.unwrap();
    let live: Vec<Uuid> = live.iter().map(|row| row.payment_id).collect();
    assert_eq!(live.len(), 3);
    assert!(!live.contains(&ids[2]));
    assert_eq!(store.scan(Timestamp::UNIX_EPOCH, 2).await.unwrap().0.len(), 2);
    assert!(store.scan(now, 100).await.unwrap().0.is_empty());
    database.end().await;
}

#[tokio::test]
async fn the_identity_is_readable_and_no_update_leaves_its_page() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let identity = store.identity().await.unwrap();
    assert_eq!((identity.split('/').count(), store.identity().await.unwrap()), (3, identity));
    let all = jobs(200, "1");
    admit(&store, &all).await;
    let transitions: Vec<Transition> = all.iter().map(|job| transition(job, CALLING, succeeded())).collect();
    assert_eq!(store.apply(&transitions).await.unwrap().len(), 200);
    database.query("select pg_stat_force_next_flush()").await;
    let hot = "select n_tup_upd - n_tup_hot_upd from pg_stat_user_tables where relname = 'charges' and n_tup_upd > 0";
    database.until(hot, 0).await;
    database.end().await;
}

#[tokio::test]
async fn the_service_can_neither_delete_nor_truncate() {
    let database = Database::new().await;
    let client = database.pool.get().await.unwrap();
    for forbidden in [
        "delete from charges",
        "truncate charges",
        "delete from charge_attempts",
        "update parked set reason = ''",
    ] {
        let error = client.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(error.code().unwrap().code(), "42501", "{forbidden}");
    }
    drop(client);
    database.end().await;
}

fn events() -> impl Strategy<Value = Event> {
    let attempt = 1..4i32;
    let outcome = prop_oneof![
        Just(Outcome::Succeeded { provider_reference: "ch_1".to_owned() }),
        Just(Outcome::Declined { code: "no".to_owned() }),
        Just(Outcome::NotSent { why: Cause::NotConnected }),
        Just(Outcome::Unknown { why: Cause::TimedOut }),
    ];
    let finding = prop_oneof![
        Just(Finding::Succeeded { provider_reference: "ch_1".to_owned() }),
        Just(Finding::NotFound { conclusive: true }),
        Just(Finding::NotFound { conclusive: false }),
    ];
    prop_oneof![
        2 => Just(Event::LeaseLapsed),
        1 => Just(Event::CancelRequested),
        1 => Just(Event::DeadlinePassed),
        4 => (attempt.clone(), outcome).prop_map(|(attempt, outcome)| Event::Called { attempt, outcome }),
        4 => (attempt, finding).prop_map(|(attempt, finding)| Event::Inquired { attempt, finding }),
    ]
}

/// Every transition the table allows is one the database accepts, and it reads back as the state it led to.
#[tokio::test]
async fn the_database_agrees_with_the_table_on_random_lives() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let all = jobs(200, "1");
    admit(&store, &all).await;
    let mut runner = TestRunner::deterministic();
    let mut lives: HashMap<Uuid, (State, i64)> =
        all.iter().map(|job| (job.charge.payment_id, (CALLING, 1))).collect();
    for _ in 0..25 {
        let mut expected = HashMap::new();
        let mut transitions = Vec::new();
        for job in &all {
            let id = job.charge.payment_id;
            let (from, version) = lives[&id];
            let event = events().new_tree(&mut runner).unwrap().current();
            let Step::Move(to) = decide(&from, &event) else { continue };
            expected.insert(id, (after(from, &to), version + 1));
            transitions.push(transition(job, from, to));
        }
        assert_eq!(store.apply(&transitions).await.unwrap().len(), transitions.len());
        lives.extend(expected);
        let rows = database.query("select payment_id, version::int8 from charges").await;
        let keys: Vec<ChargeKey> = all.iter().map(|job| job.charge.key()).collect();
        let states = store.states(&keys).await.unwrap();
        for row in rows {
            let id: Uuid = row.get(0);
            assert_eq!((states[&id], row.get::<_, i64>(1)), lives[&id]);
        }
    }
    let ended = lives.values().filter(|(state, _)| state.has_ended()).count();
    assert!(ended > 150, "{ended}");
    database.end().await;
}

fn after(from: State, to: &To) -> State {
    match *to {
        To::Waiting { attempt, .. } => State::Waiting { attempt },
        To::Calling { attempt } => State::Calling { attempt, exposed: matches!(from, State::Unknown { .. }) },
        To::Unknown { attempt, .. } => State::Unknown { attempt },
        To::Succeeded { .. } => State::Succeeded,
        To::Declined { .. } => State::Declined,
        To::Expired => State::Expired,
        To::Cancelled => State::Cancelled,
    }
}
