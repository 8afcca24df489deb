//! Resolutions and retried work: decided on the row as it is, written once, kept by whom and why.

use std::time::Duration;

use processor_svc::cause::Cause;
use processor_svc::charge::{Charge, ChargeKey};
use processor_svc::saga::resolution::Evidence;
use processor_svc::saga::{State, To};
use processor_svc::store::resolutions::{Confirmation, Confirmed, NewProposal, Proposed};
use processor_svc::store::{Admission, HoldBack, Intent, Store, Transition};
use processor_svc::work::{self, Job, Message};
use saga::parked;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::flow::waiting;
use crate::harness::{ADMIN_TOKEN, Database, Gateway, Processor, client, job, rows_alone};

const LEASE: Duration = Duration::from_secs(30);
const CALLING: State = State::Calling { attempt: 1, exposed: false };

fn succeeded() -> Evidence {
    Evidence::Succeeded { provider_reference: "ch_1".into(), amount: 15_000 }
}

fn proposal(terms: &Charge, evidence: Evidence) -> NewProposal {
    NewProposal {
        resolution_id: Uuid::new_v4(),
        terms: terms.clone(),
        evidence,
        operator: "alice".into(),
        reason: "seen at the gateway".into(),
    }
}

async fn confirmed(store: &Store, proposal: &NewProposal) -> Confirmation {
    match store.confirm(proposal.resolution_id, "bob", "seen too").await.unwrap() {
        Confirmed::Done(confirmation, _) => confirmation,
        other => panic!("{other:?}"),
    }
}

async fn proposed(store: &Store, terms: &Charge, evidence: Evidence) -> NewProposal {
    let proposal = proposal(terms, evidence);
    let answer = store.propose(&proposal).await.unwrap();
    assert!(matches!(answer, Proposed::Recorded(_)), "{answer:?}");
    proposal
}

fn transition(job: &Job, from: State, to: To) -> Transition {
    let ChargeKey { payment_id, user_id } = job.charge.key();
    Transition { payment_id, user_id, from, to, pause: Duration::ZERO }
}

/// A charge that was taken up, and whose outcome is not known; its lease is over.
async fn unknown(database: &Database, store: &Store, job: &Job) {
    assert_eq!(store.admit(&[job], &[]).await.unwrap(), [Admission::Calling]);
    let to = To::Unknown { attempt: 1, why: Cause::TimedOut };
    store.apply(&[transition(job, CALLING, to)]).await.unwrap();
    database.query("update charges set lease_until = now() where status = 'unknown'").await;
}

/// Status, version, user and amount.
async fn row(database: &Database, payment_id: Uuid) -> (String, i32, Uuid, i64) {
    let rows = database
        .query(&format!(
            "select status, version, user_id, amount from charges where payment_id = '{payment_id}'"
        ))
        .await;
    (rows[0].get(0), rows[0].get(1), rows[0].get(2), rows[0].get(3))
}

#[tokio::test]
async fn a_proposal_changes_nothing_and_its_confirmation_one_row_once() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("5551234");
    unknown(&database, &store, &job).await;
    let proposal = proposed(&store, &job.charge, succeeded()).await;
    // Its commit may be on no standby yet.
    let (repeated, waited) = database.barriers(store.propose(&proposal)).await;
    assert!(matches!(repeated.unwrap(), Proposed::Repeated(_)) && waited == 1);
    let other = NewProposal { evidence: Evidence::NeverMade, ..proposal.clone() };
    assert_eq!(store.propose(&other).await.unwrap(), Proposed::KeyReused);
    let id = job.charge.payment_id;
    assert_eq!(row(&database, id).await.0, "unknown");
    let own = store.confirm(proposal.resolution_id, "alice", "x").await.unwrap();
    assert!(matches!(own, Confirmed::Refused(_)), "{own:?}");
    assert_eq!(row(&database, id).await.0, "unknown");

    let confirmation = confirmed(&store, &proposal).await;
    assert_eq!(confirmation.outcome, "applied");
    let before = confirmation.before.clone().unwrap();
    assert_eq!((&before["status"], &confirmation.after["status"]), (&"unknown".into(), &"succeeded".into()));
    let (again, waited) = database.barriers(store.confirm(proposal.resolution_id, "bob", "once more")).await;
    assert_eq!((again.unwrap(), waited), (Confirmed::Repeated(confirmation), 1));
    let third = store.confirm(proposal.resolution_id, "carol", "x").await.unwrap();
    assert!(matches!(third, Confirmed::Refused(_)), "{third:?}");
    assert_eq!(row(&database, id).await, ("succeeded".into(), 3, job.charge.user_id, 15_000));
    assert_eq!(store.confirm(Uuid::new_v4(), "bob", "x").await.unwrap(), Confirmed::Unknown);
    database.end().await;
}

#[tokio::test]
async fn a_confirmation_is_decided_on_the_charge_as_it_is_then() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let (one, other) = (job("1"), job("2"));
    for job in [&one, &other] {
        unknown(&database, &store, job).await;
    }
    let never = proposed(&store, &one.charge, Evidence::NeverMade).await;
    let paid = proposed(&store, &other.charge, succeeded()).await;
    // Meanwhile inquiries find out: both were charged.
    for job in [&one, &other] {
        let to = To::Succeeded { provider_reference: "ch_1".into() };
        let from = State::Unknown { attempt: 1 };
        store.apply(&[transition(job, from, to)]).await.unwrap();
    }
    let refused = store.confirm(never.resolution_id, "bob", "x").await.unwrap();
    assert!(matches!(refused, Confirmed::Refused(_)), "what is charged is not released: {refused:?}");
    assert_eq!(confirmed(&store, &paid).await.outcome, "already");
    for job in [&one, &other] {
        assert_eq!(row(&database, job.charge.payment_id).await.1, 3, "no transition by either");
    }
    // A waiting charge that is called after the proposal: what was not charged then may be by now.
    let late = job("4");
    let held_back = Some(HoldBack { cause: Cause::BreakerOpen, pause: Duration::ZERO });
    store.admit_intents(&[Intent { job: &late, held_back }], &[]).await.unwrap();
    let never = proposed(&store, &late.charge, Evidence::NeverMade).await;
    let (payment_id, from) = (late.charge.payment_id, State::Waiting { attempt: 1 });
    store.apply(&[transition(&late, from, To::Calling { attempt: 2 })]).await.unwrap();
    let (from, why) = (State::Calling { attempt: 2, exposed: false }, Cause::TimedOut);
    let to = To::Unknown { attempt: 2, why };
    store.apply(&[transition(&late, from, to)]).await.unwrap();
    database.query("update charges set lease_until = now()").await;
    let refused = store.confirm(never.resolution_id, "bob", "x").await.unwrap();
    assert!(matches!(refused, Confirmed::Refused(_)), "{refused:?}");
    assert_eq!(row(&database, payment_id).await.0, "unknown");
    // A call that may be under way is waited for.
    let calling = job("3");
    store.admit(&[&calling], &[]).await.unwrap();
    let refused = store.propose(&proposal(&calling.charge, succeeded())).await.unwrap();
    assert!(matches!(refused, Proposed::Refused(_)), "{refused:?}");
    database.end().await;
}

/// Otherwise its outcome would be overwritten: money would be given back that was charged.
#[tokio::test]
async fn a_confirmation_waits_for_whoever_writes_the_charge_and_is_decided_on_that() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    unknown(&database, &store, &job).await;
    let never = proposed(&store, &job.charge, Evidence::NeverMade).await;
    let writer = database.owner().await;
    let write = "begin; update charges set status = 'succeeded', reason = null, provider_reference = 'ch_1',
                                           version = version + 1, decided_at = now()";
    writer.batch_execute(write).await.unwrap();
    let confirm = store.confirm(never.resolution_id, "bob", "x");
    let commit = async {
        // Whoever waits for a row holds its place in the queue.
        let waits =
            "select count(*) from pg_locks where locktype = 'tuple' and relation = 'charges'::regclass
                      and database = (select oid from pg_database where datname = current_database())";
        database.until(waits, 1).await;
        writer.batch_execute("commit").await.unwrap();
    };
    let (refused, ()) = tokio::join!(confirm, commit);
    assert!(matches!(refused.unwrap(), Confirmed::Refused(_)));
    assert_eq!(row(&database, job.charge.payment_id).await.0, "succeeded");
    drop(writer);
    database.end().await;
}

#[tokio::test]
async fn a_proposal_that_is_too_old_is_not_confirmed() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    unknown(&database, &store, &job).await;
    let proposal = proposed(&store, &job.charge, succeeded()).await;
    let owner = database.owner().await;
    owner.batch_execute("update resolutions set proposed_at = now() - interval '25 hours'").await.unwrap();
    let refused = store.confirm(proposal.resolution_id, "bob", "x").await.unwrap();
    assert!(matches!(refused, Confirmed::Refused(_)), "{refused:?}");
    assert_eq!(row(&database, job.charge.payment_id).await.0, "unknown");
    database.end().await;
}

#[tokio::test]
async fn a_charge_of_somebody_else_gets_the_terms_of_the_payment() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let forged = job("1");
    store.admit(&[&forged], &[]).await.unwrap();
    let to = To::Succeeded { provider_reference: "ch_1".into() };
    let payment_id = forged.charge.payment_id;
    store.apply(&[transition(&forged, CALLING, to)]).await.unwrap();
    let terms = Charge { user_id: Uuid::now_v7(), ..forged.charge.clone() };
    let proposal = proposed(&store, &terms, succeeded()).await;
    confirmed(&store, &proposal).await;
    assert_eq!(row(&database, payment_id).await, ("succeeded".into(), 3, terms.user_id, 15_000));
    // The true work message is a duplicate now, and the forged one another charge.
    let jobs = [Job { charge: terms, expires_at: None }, forged];
    assert_eq!(store.admit(&[&jobs[0]], &[]).await.unwrap(), [Admission::Already]);
    assert_eq!(store.admit(&[&jobs[1]], &[]).await.unwrap(), [Admission::Conflict]);
    database.end().await;
}

#[tokio::test]
async fn a_hold_without_a_charge_ends_uncalled_for_ever() {
    let database = Database::new().await;
    let store = database.store(LEASE);
    let job = job("1");
    let proposal = proposed(&store, &job.charge, Evidence::NeverMade).await;
    let confirmation = confirmed(&store, &proposal).await;
    assert_eq!((confirmation.before, confirmation.outcome.as_str()), (None, "applied"));
    assert_eq!(row(&database, job.charge.payment_id).await.0, "expired");
    assert_eq!(store.admit(&[&job], &[]).await.unwrap(), [Admission::Already], "its work comes too late");
    database.end().await;
}

/// Sends a request to the admin listener of a processor.
async fn post(processor: &Processor, path: &str, body: &Value) -> (u16, Value) {
    let request =
        client().post(format!("http://{}{path}", processor.admin)).bearer_auth(ADMIN_TOKEN).json(body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn work_that_was_parked_is_called_once_it_is_retried() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let job = job("5551234");
    let body = json!({"payload": {
        "user_id": job.charge.user_id, "client_number": job.charge.client_number, "service_id": job.charge.service_id,
        "amount": job.charge.amount.to_string(), "transaction_id": job.charge.payment_id,
    }});
    let message =
        Message { body: body.to_string().into_bytes(), message_id: Some("m".into()), ..Message::default() };
    let parked = work::park("PaymentInitiated", &message, "an older processor could not read it");
    let mut connection = database.pool.get().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    parked::insert(&transaction, std::slice::from_ref(&parked)).await.unwrap();
    transaction.commit().await.unwrap();
    drop(connection);
    let mut flags = rows_alone(&database.url, gateway.address);
    flags.extend(["--queue=PaymentInitiated".to_owned(), format!("--admin-token={ADMIN_TOKEN}")]);
    let processor = Processor::with(flags).await;
    let act = json!({"parked_id": parked.parked_id, "operator": "alice", "reason": "a test"});
    let (status, problem) = post(&processor, "/parked/dismiss", &act).await;
    assert_eq!((status, &problem["type"]), (409, &"urn:coro:problem:act-refused".into()), "{problem}");
    assert_eq!(database.number("select count(*) from charges").await, 0, "to be refused took up nothing");
    let (status, done) = post(&processor, "/parked/retry", &act).await;
    assert_eq!((status, &done["outcome"]), (200, &"applied".into()), "{done}");
    database.until("select count(*) from charges where status = 'succeeded'", 1).await;
    assert_eq!(post(&processor, "/parked/retry", &act).await, (200, done));
    assert_eq!(gateway.ledger().await, [(job.charge.payment_id.to_string(), job.charge.amount)]);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn a_charge_that_operators_ended_is_not_called_any_more() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let store = database.store(LEASE);
    let job = job("5551234");
    waiting(&database, std::slice::from_ref(&job)).await;
    database.query("update charges set lease_until = now() + interval '1 hour'").await;
    let proposal = proposed(&store, &job.charge, Evidence::NeverMade).await;
    confirmed(&store, &proposal).await;
    database.query("update charges set lease_until = now()").await;
    let processor = Processor::new(&database, gateway.address).await;
    processor.until("processor_scans_total", |scans| scans >= 2.0).await;
    assert_eq!(row(&database, job.charge.payment_id).await.0, "expired");
    assert!(gateway.ledger().await.is_empty());
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
