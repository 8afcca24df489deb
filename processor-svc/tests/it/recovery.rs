//! A database is restored from a copy that is older, and recovered from the topics and the gateway.

use std::time::{Duration, Instant};

use clap::Parser;
use processor_svc::charge::{Charge, ChargeKey};
use processor_svc::saga::{State, To};
use processor_svc::store::Transition;
use processor_svc::work::Job;
use processor_svc::{Config, cause, recovery};
use saga::contract::{EventBody, HEADER_POSITION, HEADER_TYPE, PAYMENT_RESULT_TOPIC};
use saga::postgres;
use saga::recovery::Program;

use crate::flow::{count, references, waiting};
use crate::harness::{Database, Gateway, Processor, WAIT_TIMEOUT, env, jobs};
use crate::topic::{CANCEL_REQUESTED, Topic, cancel_request, golden};

/// Calls of the tests are over when their database is lost.
const LEASE: Duration = Duration::from_millis(1);
const AUTHORIZED: &str = "payment.authorized.v1";

async fn recover(database: &Database, topic: &Topic, flags: &[&str]) -> anyhow::Result<()> {
    let fixed = [
        "processor-svc".to_owned(),
        "recover".to_owned(),
        "--operator=ada".to_owned(),
        "--reason=a test".to_owned(),
        format!("--database-url={}", database.url),
        format!("--kafka-brokers={}", env("KAFKA_BROKERS")),
        format!("--topic-prefix={}", topic.prefix),
    ];
    let all = fixed.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned()));
    let Program::Recover(settings) = Program::<Config>::try_parse_from(all).unwrap() else {
        unreachable!("the command is recover")
    };
    recovery::run_within(LEASE, *settings).await
}

/// The event that the payment was authorized, as the relay emits it.
fn authorized(Job { charge, .. }: &Job) -> String {
    golden(AUTHORIZED)
        .replace("0198c0de-0000-7000-8000-000000000001", &charge.user_id.to_string())
        .replace("0198c0de-0000-7000-8000-000000000002", &charge.payment_id.to_string())
        .replace("081234567890", &charge.client_number)
        .replace("electricity", &charge.service_id)
}

fn authorize(topic: &Topic, jobs: &[Job]) {
    jobs.iter().for_each(|job| topic.produce(AUTHORIZED, &authorized(job)));
}

/// Emits the outcomes that the database has of these charges, as the relay does.
async fn emit_outcomes(topic: &Topic, database: &Database, jobs: &[Job]) {
    let keys: Vec<_> = jobs.iter().map(|job| job.charge.key()).collect();
    let mut client = database.pool.get().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let rows = database.store(LEASE).published(&transaction, &keys).await.unwrap();
    for row in rows.values() {
        let kind = row.event_type().unwrap().as_str();
        let headers = [(HEADER_TYPE, kind), (HEADER_POSITION, "0/1;0;0/0")];
        let body = serde_json::to_string(row).unwrap();
        topic.produce_on(PAYMENT_RESULT_TOPIC, &row.user_id.to_string(), &headers, &body);
    }
}

/// Commits the intents, and the outcome of each.
async fn end(database: &Database, jobs: &[Job], from: State, to: To) {
    let store = database.store(LEASE);
    store.admit(&jobs.iter().collect::<Vec<_>>(), &[]).await.unwrap();
    let transition = |job: &Job| {
        let ChargeKey { payment_id, user_id } = job.charge.key();
        Transition { payment_id, user_id, from, to: to.clone(), pause: LEASE }
    };
    let transitions: Vec<Transition> = jobs.iter().map(transition).collect();
    assert_eq!(store.apply(&transitions).await.unwrap().len(), jobs.len());
}

const CALLING: State = State::Calling { attempt: 1, exposed: false };

fn succeeded() -> To {
    To::Succeeded { provider_reference: "gw-1".to_owned() }
}

async fn charge(gateway: &Gateway, jobs: &[Job]) {
    for Job { charge, .. } in jobs {
        gateway.charge(charge).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_charge_that_the_backup_lacks_is_found_again_and_made_once() {
    let (database, gateway, topic) = (Database::new().await, Gateway::new().await, Topic::new().await);
    let group = |number: &str| jobs(5, number);
    let (waited, waited_charged, ended) = (group("1"), group("1"), group("1"));
    waiting(&database, &[waited.clone(), waited_charged.clone()].concat()).await;
    end(&database, &ended, CALLING, succeeded()).await;
    charge(&gateway, &ended).await;
    let restored = database.copy().await;

    // After the backup: some are charged, and of some of those the outcome was emitted before the loss.
    let (emitted, declined, unknown) = (group("1"), group("1"), group("1"));
    let (lost, uncalled, cancelled) = (group("1"), group("1"), group("1"));
    end(&database, &emitted, CALLING, succeeded()).await;
    end(&database, &declined, CALLING, To::Declined { code: "do_not_honor".into() }).await;
    end(&database, &unknown, CALLING, To::Unknown { attempt: 1, why: cause::Cause::TimedOut }).await;
    for called in [&emitted, &unknown, &lost, &waited_charged] {
        charge(&gateway, called).await;
    }
    for gone in [&ended, &emitted, &declined, &unknown] {
        emit_outcomes(&topic, &database, gone).await;
    }
    for work in [&ended, &waited, &waited_charged, &emitted, &declined, &unknown, &lost, &uncalled] {
        authorize(&topic, work);
    }
    // Cancelled before they were authorized: they never were work.
    cancelled.iter().for_each(|job| topic.produce(CANCEL_REQUESTED, &cancelled_first(job)));
    // Cancelled since: a call may have been made, so it comes too late.
    lost.iter().for_each(|job| topic.produce(CANCEL_REQUESTED, &cancel_request(job)));

    // The service runs all the time, and touches nothing while the database is closed.
    let processor = Processor::new(&restored, gateway.address).await;
    let (status, why) = processor.get("/ready").await;
    assert!(status == 503 && why.contains("processor-svc recover"), "{status} {why}");
    recover(&restored, &topic, &["--dry-run"]).await.unwrap();
    assert_eq!(restored.number(&count("waiting")).await, 10, "nothing was changed");
    recover(&restored, &topic, &[]).await.unwrap();
    restored.until(&count("succeeded"), 35).await;
    assert_eq!(restored.number(&count("declined")).await, 5);
    assert_eq!(restored.number(&count("cancelled")).await, 5);
    assert_eq!(restored.number("select count(*) from charges").await, 45);

    let all = [waited, waited_charged, ended, emitted.clone(), unknown, lost, uncalled];
    assert_eq!(gateway.ledger().await, references(&all.concat()), "each was charged, and once");
    // What was emitted is as it was. What follows it, or was never emitted, has a version of its own.
    for same in [&emitted, &declined] {
        assert_eq!(published(&restored, same).await, published(&database, same).await);
    }
    let versions = "select count(*) from charges where exposed and version >= 3 and status = 'succeeded'";
    assert_eq!(restored.number(versions).await, 25);
    assert_eq!(processor.alarms().await, [""; 0]);
    processor.end().await;
    gateway.end().await;
    restored.end().await;
    database.end().await;
}

/// The user asked to cancel before the payment was authorized.
fn cancelled_first(job: &Job) -> String {
    let mut body: serde_json::Value = serde_json::from_str(&cancel_request(job)).unwrap();
    body["cancel_requested_at"] = body["initiated_at"].clone();
    body.to_string()
}

/// The published columns of these charges.
async fn published(database: &Database, jobs: &[Job]) -> Vec<String> {
    let ids: Vec<String> =
        jobs.iter().map(|Job { charge: Charge { payment_id, .. }, .. }| format!("'{payment_id}'")).collect();
    let sql = format!(
        "select (to_jsonb(c) - 'lease_until' - 'exposed')::text from charges c where payment_id in ({}) order by 1",
        ids.join(", ")
    );
    database.query(&sql).await.iter().map(|row| row.get(0)).collect()
}

/// Whether processor-svc gets a connection.
async fn is_open(database: &Database) -> bool {
    let (began, pool) = (Instant::now(), postgres::guarded_pool(&database.url, 1, "processor-svc").unwrap());
    loop {
        match postgres::reachable(&pool).await {
            Ok(()) => return true,
            Err(why) if why.contains("processor-svc recover") => return false,
            // A busy machine may take longer for a connection than a service waits.
            Err(why) => assert!(began.elapsed() < WAIT_TIMEOUT, "{why}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_that_contradicts_its_events_keeps_the_database_closed() {
    let (database, topic) = (Database::new().await, Topic::new().await);
    let job = jobs(1, "1");
    end(&database, &job, CALLING, succeeded()).await;
    let restored = database.copy().await;
    emit_outcomes(&topic, &database, &job).await;
    let owner = restored.owner().await;
    owner.batch_execute("update charges set provider_reference = 'gw-2'").await.unwrap();
    let refused = recover(&restored, &topic, &[]).await.unwrap_err().to_string();
    assert!(refused.starts_with("1 findings"), "{refused}");
    assert!(!is_open(&restored).await, "it stays closed");
    assert_eq!(restored.number("select count(*) from charges where provider_reference = 'gw-2'").await, 1);
    recover(&restored, &topic, &["--open-despite-findings"]).await.unwrap();
    assert!(is_open(&restored).await);
    drop(owner);
    restored.end().await;
    database.end().await;
}

/// Work waited in the queue for a long time before it was taken up, after the backup.
#[tokio::test(flavor = "multi_thread")]
async fn work_from_before_the_backup_may_have_been_taken_up_after_it() {
    let (database, topic) = (Database::new().await, Topic::new().await);
    let (recent, old) = (jobs(1, "1"), jobs(1, "1"));
    let restored = database.copy().await;
    let now = jiff::Timestamp::now();
    let before = |minutes: i64| now - jiff::SignedDuration::from_mins(minutes);
    topic.produce_at(before(70), AUTHORIZED, &authorized(&old[0]));
    topic.produce_at(before(50), AUTHORIZED, &authorized(&recent[0]));
    recover(&restored, &topic, &[&format!("--since={now}")]).await.unwrap();
    let exposed = "select count(*) from charges where status = 'calling' and exposed and attempt = 1";
    assert_eq!(restored.number(exposed).await, 1, "an hour before the time, and no more");
    restored.end().await;
    database.end().await;
}
