//! From rows alone: whatever a crash or the gateway left open is brought to its end, with one charge at most.

use std::time::{Duration, Instant};

use processor_svc::work::Job;

use crate::harness::{
    Database, Gateway, NOWHERE, Processor, WAIT_TIMEOUT, bound, instead, job, jobs, rows_alone,
};

/// Rows as a processor leaves them that dies right after it committed its intents: leases about to lapse.
async fn intents_of_the_dead(database: &Database, jobs: &[Job]) {
    let (store, began) = (database.store(Duration::from_millis(1)), Instant::now());
    // A busy machine may take longer for a connection than a service waits. What is there already is left as it is.
    while let Err(error) = store.admit(&jobs.iter().collect::<Vec<_>>(), &[]).await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{error:#}");
    }
}

/// Rows whose pause is over: the next processor calls the gateway for them.
pub async fn waiting(database: &Database, jobs: &[Job]) {
    intents_of_the_dead(database, jobs).await;
    database.query("update charges set status = 'waiting', version = 2").await;
}

pub fn count(status: &str) -> String {
    format!("select count(*) from charges where status = '{status}'")
}

pub fn references(jobs: &[Job]) -> Vec<(String, i64)> {
    let mut all: Vec<_> = jobs.iter().map(|j| (j.charge.payment_id.to_string(), j.charge.amount)).collect();
    all.sort();
    all
}

#[tokio::test]
async fn intents_of_a_dead_process_are_inquired_about_and_sent_again() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let (never_sent, sent) = (jobs(20, "5551234"), jobs(20, "5551234"));
    intents_of_the_dead(&database, &[never_sent.clone(), sent.clone()].concat()).await;
    for job in &sent {
        gateway.charge(&job.charge).await;
    }
    let flags = instead(rows_alone(&database.url, gateway.address), &["--call-ms=10000"]);
    let processor = Processor::with(flags).await;
    database.until(&count("succeeded"), 40).await;
    assert_eq!(gateway.ledger().await, references(&[never_sent, sent].concat()));
    // Found: calling, unknown, succeeded. Not found: calling, unknown, calling again, succeeded.
    let lives = "select count(*) from charges where exposed and (attempt, version) = ";
    assert_eq!(database.number(&format!("{lives} (1, 3)")).await, 20);
    assert_eq!(database.number(&format!("{lives} (2, 4)")).await, 20);
    let asked = "select count(*) from charge_attempts where kind = 'inquiry' and outcome = 'asking'";
    assert_eq!(database.number(asked).await, 0, "every inquiry says what it found");
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn whatever_the_gateway_does_the_outcome_is_definite_and_charged_once() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let charged = [
        "1",
        "1-slow50",
        "1-hang",
        "1-reset",
        "1-http500",
        "1-http502",
        "1-http429",
        "1-garbage",
        "1-cut",
        "1-thenhang",
        "1-thenreset",
        "1-thenhttp500",
        "1-thenhttp502",
        "1-thengarbage",
        "1-thencut",
        "1-late250",
        "1-thenhang-lag200",
        "1-resetx3",
        // Charged later than the gateway promised, after we sent it again: only the constant key helps.
        "1-late1500",
    ];
    let declined =
        ["1-decline", "1-decline200", "1-decline-thenhang", "1-decline-http500", "1-decline-late200"];
    let good: Vec<Job> = charged.iter().map(|number| job(number)).collect();
    let bad: Vec<Job> = declined.iter().map(|number| job(number)).collect();
    waiting(&database, &[good.clone(), bad.clone()].concat()).await;
    let processor = Processor::new(&database, gateway.address).await;
    database.until(&count("succeeded"), good.len() as i64).await;
    database.until(&count("declined"), bad.len() as i64).await;
    assert_eq!(gateway.ledger().await, references(&good));
    let row = "select count(*) from charges where status = 'declined' and reason = 'declined_by_issuer'";
    assert_eq!(database.number(row).await, bad.len() as i64);
    let named =
        "select count(*) from charges where status = 'succeeded' and provider_reference like 'ch\\_%'";
    assert_eq!(database.number(named).await, good.len() as i64);
    assert_eq!(processor.alarms().await, [""; 0]);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn what_was_not_sent_waits_for_the_gateway_or_its_deadline() {
    let database = Database::new().await;
    // Nobody listens there yet.
    let socket = bound();
    let address = socket.local_addr().unwrap();
    let (patient, hurried) = (jobs(5, "5551234"), jobs(5, "5554321"));
    waiting(&database, &[patient.clone(), hurried].concat()).await;
    let processor = Processor::new(&database, address).await;
    database.until("select count(distinct payment_id) from charge_attempts where outcome = 'not_sent' and attempt > 1", 10).await;
    assert_eq!(database.number("select count(*) from charges where exposed").await, 0);
    database.query("update charges set expires_at = now() where client_number = '5554321'").await;
    database.until(&count("expired"), 5).await;
    let gateway = Gateway::listening(socket);
    database.until(&count("succeeded"), 5).await;
    assert_eq!(gateway.ledger().await, references(&patient));
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn several_processors_share_the_work_without_a_second_charge() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let all = [jobs(150, "5551234"), jobs(50, "1-thenhang"), jobs(50, "1-hang")].concat();
    intents_of_the_dead(&database, &all).await;
    let processors = [
        Processor::new(&database, gateway.address).await,
        Processor::new(&database, gateway.address).await,
        Processor::new(&database, gateway.address).await,
    ];
    database.until(&count("succeeded"), 250).await;
    assert_eq!(gateway.ledger().await, references(&all));
    let twice = "select count(*) from (select payment_id, attempt, seq from charge_attempts
                 group by 1, 2, 3 having count(*) > 1) x";
    assert_eq!(database.number(twice).await, 0);
    for processor in processors {
        assert_eq!(processor.alarms().await, [""; 0]);
        processor.end().await;
    }
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn an_answer_about_another_amount_is_never_an_outcome() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let mut job = job("5551234");
    gateway.charge(&job.charge).await;
    job.charge.amount += 1;
    waiting(&database, std::slice::from_ref(&job)).await;
    let processor = Processor::new(&database, gateway.address).await;
    database
        .until("select count(*) from charges where status = 'unknown' and reason = 'key_reused'", 1)
        .await;
    database.until("select least(count(*), 2) from charge_attempts where outcome = 'unavailable' and detail = 'answer_mismatch'", 2).await;
    assert_eq!(database.number(&count("unknown")).await, 1);
    assert!(processor.metric("processor_alarms_total{what=\"mismatch\"}").await >= 3.0);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn a_stopping_processor_finishes_its_calls() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let all = jobs(10, "1-slow3000");
    waiting(&database, &all).await;
    let flags = instead(rows_alone(&database.url, gateway.address), &["--call-ms=10000"]);
    let processor = Processor::with(flags).await;
    database.until(&count("calling"), 10).await;
    processor.end().await;
    assert_eq!(database.number(&count("succeeded")).await, 10);
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn readiness_is_that_of_the_database() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let processor = Processor::new(&database, gateway.address).await;
    processor.until_ready().await;
    assert_eq!(processor.get("/health").await.0, 200);
    processor.end().await;
    let nowhere = format!("postgresql://nobody@{NOWHERE}/x");
    let processor = Processor::with(rows_alone(&nowhere, NOWHERE.parse().unwrap())).await;
    assert_eq!(processor.get("/ready").await.0, 503);
    assert_eq!(processor.get("/health").await.0, 200);
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
