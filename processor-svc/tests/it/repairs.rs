//! Charges that must not stand are given back before anything is believed about the payment.

use processor_svc::work::Job;

use crate::flow::{count, references, waiting};
use crate::harness::{Database, Gateway, Processor, instead, job, jobs, rows_alone};
use crate::sweep::set_outage;

#[tokio::test]
async fn surplus_found_by_an_inquiry_is_given_back_before_the_charge_succeeds() {
    let (database, gateway) = (Database::new().await, Gateway::with(&["--idempotency", "ignored"]).await);
    let all = jobs(5, "1-thenhttp500x9");
    for job in &all {
        // Charged twice before: by somebody who sent it again to a gateway that does not look at keys.
        gateway.charge(&job.charge).await;
        gateway.charge(&job.charge).await;
    }
    waiting(&database, &all).await;
    let processor = Processor::new(&database, gateway.address).await;
    database.until(&count("succeeded"), 5).await;
    assert_eq!(gateway.ledger().await, references(&all), "one each");
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn where_keys_are_ignored_nothing_is_sent_twice_and_what_is_not_found_is_reversed() {
    let forgets = ["--idempotency", "ignored", "--hang-ms", "1000"];
    let (database, gateway) = (Database::new().await, Gateway::with(&forgets).await);
    let good: Vec<Job> = ["1", "1-thenhang", "1-thenreset", "1-thenhttp500", "1-thencut"].map(job).into();
    // Nothing was charged, or too late: the reversal keeps the late one out.
    let bad: Vec<Job> = ["1-hang", "1-reset", "1-http500", "1-garbage", "1-late6000"].map(job).into();
    waiting(&database, &[good.clone(), bad.clone()].concat()).await;
    let mut flags = rows_alone(&database.url, gateway.address);
    flags.push("--gateway-idempotent=false".to_owned());
    // Calls end by what the gateway does, long before the late charge comes.
    let processor = Processor::with(instead(flags, &["--connect-ms=10000", "--call-ms=10000"])).await;
    database.until(&count("succeeded"), good.len() as i64).await;
    database.until(&count("declined"), bad.len() as i64).await;
    assert_eq!(gateway.ledger().await, references(&good));
    let voided = "select count(*) from charges where status = 'declined' and reason = 'voided'";
    assert_eq!(database.number(voided).await, bad.len() as i64);
    let called = "select count(*) from charges where attempt > 2";
    assert_eq!(database.number(called).await, 0, "the pause, then one call");
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn a_charge_stays_unknown_until_its_void_is_confirmed() {
    let (database, gateway) = (Database::new().await, Gateway::with(&["--idempotency", "ignored"]).await);
    // Would be charged if it were sent again.
    let one = jobs(1, "5551234");
    waiting(&database, &one).await;
    set_outage(&gateway, true).await;
    let mut flags = rows_alone(&database.url, gateway.address);
    flags.push("--gateway-idempotent=false".to_owned());
    let processor = Processor::with(flags).await;
    database.until(&count("unknown"), 1).await;
    processor.until("processor_inquiries_total{finding=\"unavailable\"}", |n| n >= 3.0).await;
    assert_eq!(database.number(&count("unknown")).await, 1);
    set_outage(&gateway, false).await;
    database.until(&count("declined"), 1).await;
    assert!(gateway.ledger().await.is_empty());
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
