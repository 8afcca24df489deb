//! One user whose calls hang, or one service that fails, does not hold up the others.

use processor_svc::work::Job;
use uuid::Uuid;

use crate::flow::{count, waiting};
use crate::harness::{Database, Gateway, NOWHERE, Processor, instead, jobs, rows_alone};
use crate::queue::{Queue, with_queue};

/// So many charges of one user.
fn of_one_user(count: usize, client_number: &str) -> Vec<Job> {
    let user_id = Uuid::now_v7();
    let mut all = jobs(count, client_number);
    all.iter_mut().for_each(|job| job.charge.user_id = user_id);
    all
}

fn of_service(mut all: Vec<Job>, service_id: &str) -> Vec<Job> {
    all.iter_mut().for_each(|job| service_id.clone_into(&mut job.charge.service_id));
    all
}

fn ended(jobs: &[Job]) -> String {
    let ids: Vec<String> = jobs.iter().map(|job| format!("'{}'", job.charge.payment_id)).collect();
    format!(
        "select count(*) from charges where decided_at is not null and payment_id in ({})",
        ids.join(", ")
    )
}

/// Calls that hang do so for longer than a test waits for anything.
const PATIENT: &str = "--call-ms=180000";

async fn hanging() -> Gateway {
    Gateway::with(&["--hang-ms", "181000"]).await
}

/// A processor whose breaker of the service `water` is open, for longer than a test lasts. Nothing was charged by the 20
/// calls, so that inquiries find nothing, and the charges are to be sent again.
async fn without_water(database: &Database, gateway: &Gateway, queue: &Queue) -> Processor {
    let flags = with_queue(database, gateway, queue, &format!("redis://{NOWHERE}"));
    let breaker = ["--breaker-faults=5", "--breaker-pause-ms=3600000"];
    let processor = Processor::with(instead(flags, &breaker)).await;
    queue.send(&of_service(jobs(20, "1-http500x99"), "water")).await;
    processor.until("processor_breaker_state", |state| state == 2.0).await;
    processor
}

#[tokio::test]
async fn calls_of_one_user_that_hang_do_not_hold_up_others() {
    let (database, gateway, queue) = (Database::new().await, hanging().await, Queue::new().await);
    let flags = with_queue(&database, &gateway, &queue, &format!("redis://{NOWHERE}"));
    let few = [PATIENT, "--calls-max=32", "--inquiries-max=16"];
    let processor = Processor::with(instead(flags, &few)).await;
    queue.send(&of_one_user(300, "1-hangx9")).await;
    let others = jobs(30, "5551234");
    queue.send(&others).await;
    database.until(&ended(&others), 30).await;
    assert_eq!(database.number(&count("unknown")).await, 0, "before a single call was given up");
    // Nobody is sent away: the rest has its row and waits, without an attempt.
    database.until("select count(*) from charges", 330).await;
    let waits = "select count(*) from charges where status = 'waiting' and version = 1 and attempt = 1";
    assert!(database.number(waits).await > 200);
    assert_eq!(database.number("select count(*) from charge_attempts").await, 0);
    processor.leave();
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn inquiries_of_one_user_that_hang_do_not_hold_up_others() {
    let (database, gateway) = (Database::new().await, hanging().await);
    let flags = instead(rows_alone(&database.url, gateway.address), &[PATIENT, "--inquiries-max=8"]);
    let hung = of_one_user(100, "1-thenhttp500-askhangx99");
    for job in &hung {
        gateway.charge(&job.charge).await;
    }
    let others = jobs(20, "1-thenhttp500");
    for job in &others {
        gateway.charge(&job.charge).await;
    }
    waiting(&database, &[hung, others.clone()].concat()).await;
    database.query("update charges set status = 'unknown', exposed = true, version = 3").await;
    let processor = Processor::with(flags).await;
    database.until(&ended(&others), 20).await;
    let given_up = "select count(*) from charge_attempts where kind = 'inquiry' and outcome = 'unavailable'";
    assert_eq!(database.number(given_up).await, 0, "before a single inquiry was given up");
    processor.leave();
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn a_service_that_fails_has_a_breaker_of_its_own() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let processor = without_water(&database, &gateway, &queue).await;
    let others = jobs(40, "5551234");
    queue.send(&others).await;
    database.until(&ended(&others), 40).await;
    assert_eq!(processor.metric("processor_breaker_state").await, 2.0);
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn the_refusal_of_an_open_breaker_is_no_attempt() {
    let (database, gateway, queue) = (Database::new().await, Gateway::new().await, Queue::new().await);
    let processor = without_water(&database, &gateway, &queue).await;
    // Of the same service, from the queue (kept open for others by one that works) and from a pause that is over.
    queue.send(&jobs(1, "5551234")).await;
    database.until(&count("succeeded"), 1).await;
    let refused = of_service(jobs(20, "5551234"), "water");
    queue.send(&refused).await;
    database.until("select count(*) from charges", 41).await;
    let resends = "processor_inquiries_total{finding=\"not_found\"}";
    processor.until(resends, |found| found >= 40.0).await;
    let scans = processor.metric("processor_scans_total").await;
    let rows = "select coalesce(sum(version + attempt), 0) from charges";
    let before = database.number(rows).await;
    processor.until("processor_scans_total", |now| now >= scans + 10.0).await;
    assert_eq!(database.number(rows).await, before, "no update, no event");
    assert_eq!(database.number("select count(*) from charge_attempts where kind = 'charge' and seq = 1 and outcome = 'not_sent'").await, 0);
    assert_eq!(database.number("select max(attempt)::int8 from charges where status = 'waiting'").await, 1);
    processor.end().await;
    queue.end().await;
    gateway.end().await;
    database.end().await;
}
