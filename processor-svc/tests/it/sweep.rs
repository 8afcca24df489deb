//! Every charge that has not ended is found and counted, however it came to be there.

use std::time::Duration;

use processor_svc::work::Job;

use crate::flow::{count, references};
use crate::harness::{ADMIN_TOKEN, Database, Gateway, Processor, client, instead, jobs, rows_alone};

const OLDEST: &str = "processor_oldest_live_seconds";
const SCANS: &str = "processor_scans_total";
const DUE_QUEUE_CHARGES: &str = "processor_due_queue_charges";

/// Rows that appear with this age, as a restore brings them, or a transaction that was open for as long: a third each
/// waiting, calling with a lease that is over, and unknown.
async fn appear(database: &Database, jobs: &[Job], age: &str) {
    let client = database.pool.get().await.unwrap();
    client.batch_execute("begin").await.unwrap();
    for (n, job) in jobs.iter().enumerate() {
        let (status, exposed) = [("waiting", false), ("calling", false), ("unknown", true)][n % 3];
        let charge = &job.charge;
        let row = format!(
            "insert into charges (payment_id, user_id, client_number, service_id, amount, status, exposed,
                                  lease_until, created_at)
             values ('{}', '{}', '{}', '{}', {}, '{status}', {exposed},
                     now() - interval '{age}', now() - interval '{age}')",
            charge.payment_id, charge.user_id, charge.client_number, charge.service_id, charge.amount
        );
        client.batch_execute(&row).await.unwrap();
    }
    client.batch_execute("commit").await.unwrap();
}

/// Begins or ends an outage of the gateway.
pub async fn set_outage(gateway: &Gateway, on: bool) {
    let url = format!("http://{}/outage", gateway.address);
    let request = if on {
        client().put(&url).json(&serde_json::json!({"for_ms": 3_600_000}))
    } else {
        client().delete(&url)
    };
    assert_eq!(request.bearer_auth(ADMIN_TOKEN).send().await.unwrap().status(), 204);
}

/// Scans are rarer where leases are long, and no test here minds a lease that is too short.
async fn often_scanning(database: &Database, gateway: &Gateway) -> Processor {
    let flags = rows_alone(&database.url, gateway.address);
    Processor::with(instead(flags, &["--lease-grace-ms=200"])).await
}

/// Until so many more scans were made.
async fn scans(processor: &Processor, more: f64) {
    let before = processor.metric(SCANS).await;
    processor.until(SCANS, |scans| scans >= before + more).await;
}

#[tokio::test]
async fn rows_that_appear_behind_the_mark_are_swept() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    let processor = often_scanning(&database, &gateway).await;
    // From now on everything older than the slack counts as looked at.
    scans(&processor, 2.0).await;
    let (old, older) = (jobs(30, "5551234"), jobs(30, "5551234"));
    appear(&database, &old, "9 minutes").await;
    appear(&database, &older, "400 days").await;
    database.until(&count("succeeded"), 60).await;
    assert_eq!(gateway.ledger().await, references(&[old, older].concat()));
    processor.until(OLDEST, |age| age == 0.0).await;
    processor.until(DUE_QUEUE_CHARGES, |charges| charges == 0.0).await;
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn the_age_of_the_oldest_is_that_of_what_is_there() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    set_outage(&gateway, true).await;
    appear(&database, &jobs(9, "5551234"), "9 minutes").await;
    let processor = often_scanning(&database, &gateway).await;
    database.until(&count("unknown"), 9).await;
    // Scan after scan, though the mark has long passed them.
    for _ in 0..4 {
        scans(&processor, 1.0).await;
        let age = processor.metric(OLDEST).await;
        assert!((540.0..600.0).contains(&age), "{age}");
    }
    appear(&database, &jobs(3, "5551234"), "2 days").await;
    processor.until(OLDEST, |age| age >= 172_800.0).await;
    set_outage(&gateway, false).await;
    database.until(&count("succeeded"), 12).await;
    processor.until(OLDEST, |age| age == 0.0).await;
    processor.end().await;
    gateway.end().await;
    database.end().await;
}

#[tokio::test]
async fn rows_that_are_gone_are_not_waited_for() {
    let (database, gateway) = (Database::new().await, Gateway::new().await);
    set_outage(&gateway, true).await;
    let gone = jobs(30, "5551234");
    appear(&database, &gone, "1 hour").await;
    let processor = often_scanning(&database, &gateway).await;
    database.until(&count("unknown"), 30).await;
    processor.until(DUE_QUEUE_CHARGES, |charges| charges == 30.0).await;
    // As a restore does: the table is emptied, and filled again later.
    let owner = database.owner().await;
    owner.batch_execute("truncate charges, charge_attempts").await.unwrap();
    processor.until(DUE_QUEUE_CHARGES, |charges| charges == 0.0).await;
    processor.until(OLDEST, |age| age == 0.0).await;
    appear(&database, &gone, "1 hour").await;
    processor.until(OLDEST, |age| age >= 3_600.0).await;
    set_outage(&gateway, false).await;
    database.until(&count("succeeded"), 30).await;
    assert_eq!(gateway.ledger().await, references(&gone));
    processor.end().await;
    gateway.end().await;
    database.end().await;
}
/// The walk is bounded block by block, and what it finds does not depend on where it was cut.
#[tokio::test]
async fn a_walk_through_the_table_finds_what_lives_in_every_block() {
    let database = Database::new().await;
    let store = database.store(Duration::from_secs(1));
    let ended =
        "insert into charges (payment_id, user_id, client_number, service_id, amount, status, lease_until,
                                      decided_at, created_at)
                 select gen_random_uuid(), gen_random_uuid(), '5551234', 'power', 1, 'declined', now(), now(),
                        now() - interval '1 year' from generate_series(1, 4000)";
    let mut alive = Vec::new();
    for _ in 0..3 {
        database.query(ended).await;
        let live = jobs(2, "5551234");
        appear(&database, &live, "1 year").await;
        alive.extend(live.iter().map(|job| job.charge.payment_id));
    }
    alive.sort();
    for blocks in [1, 7, 100_000] {
        let (mut found, mut from, mut steps) = (Vec::new(), 0, 0);
        while let Some(next) = {
            let step = store.walk(from, blocks).await.unwrap();
            found.extend(step.live.iter().map(|live| live.payment_id));
            step.next
        } {
            assert_eq!(next, from + blocks);
            (from, steps) = (next, steps + 1);
        }
        found.sort();
        assert_eq!(found, alive, "{blocks} blocks at a time");
        assert!(steps > 0 || blocks > 1_000, "it took one step");
    }
    database.end().await;
}
