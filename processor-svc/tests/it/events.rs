//! Requests to cancel from Kafka, consumed by a whole processor.

use std::time::Duration;

use crate::harness::{Database, Gateway, Processor, WAIT_TIMEOUT, job, rows_alone};
use crate::topic::{CANCEL_REQUESTED, Topic, cancel_request, golden};

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_and_an_absent_charge_end_cancelled_and_are_never_made() {
    let (database, gateway, topic) = (Database::new().await, Gateway::new().await, Topic::new().await);
    let waiting = job("5551234");
    let store = database.store(Duration::from_millis(1));
    store.admit(&[&waiting], &[]).await.unwrap();
    // Not called again for so long that the cancel comes first.
    database
        .query("update charges set status = 'waiting', version = 2, lease_until = now() + interval '1 h'")
        .await;
    let absent = job("5551234");

    let processor = Processor::with(topic.reading(rows_alone(&database.url, gateway.address))).await;
    topic.produce("payment.authorized.v1", &golden("payment.authorized.v1"));
    topic.produce(CANCEL_REQUESTED, "{}");
    for job in [&absent, &waiting, &absent, &waiting] {
        topic.produce(CANCEL_REQUESTED, &cancel_request(job));
    }
    let records = async |outcome: &str| {
        processor.metric(&format!("consumer_records_total{{outcome=\"{outcome}\"}}")).await
    };
    let reading = async {
        while records("applied").await + records("already").await < 4.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, reading).await.expect("four requests are consumed");
    assert_eq!((records("applied").await, records("already").await), (2.0, 2.0));
    assert_eq!((records("ignored").await, records("parked").await), (1.0, 1.0));
    let rows = "select count(*) from charges where status = 'cancelled' and reason = 'cancel_requested'";
    assert_eq!(database.number(rows).await, 2);
    assert_eq!(
        database.number("select count(*) from parked where type = 'payment.cancel_requested.v1'").await,
        1
    );
    assert_eq!(processor.metric("processor_transitions_total{to=\"cancelled\"}").await, 2.0);
    processor.end().await;
    assert_eq!(gateway.ledger().await, []);
    gateway.end().await;
    database.end().await;
}

/// A request that says of itself what cannot all be so ends no charge, and raises the alarm; so does one about
/// another charge than the row's.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_contradicts_itself_or_the_row_cancels_nothing() {
    let (database, gateway, topic) = (Database::new().await, Gateway::new().await, Topic::new().await);
    let taken = job("5551234");
    database.store(Duration::from_secs(60)).admit(&[&taken], &[]).await.unwrap();
    database
        .query("update charges set status = 'waiting', version = 2, lease_until = now() + interval '1 h'")
        .await;
    let processor = Processor::with(topic.reading(rows_alone(&database.url, gateway.address))).await;
    let request = cancel_request(&taken);
    topic.produce(CANCEL_REQUESTED, &request.replace("\"cancel_requested\"", "\"authorized\""));
    // Asked for while there is no hold: payments-svc never writes that.
    topic
        .produce(CANCEL_REQUESTED, &request.replace("\"status\":\"authorized\"", "\"status\":\"initiated\""));
    topic.produce_under(&uuid::Uuid::now_v7().to_string(), CANCEL_REQUESTED, &request);
    topic.produce(CANCEL_REQUESTED, &request.replace("15000", "1"));
    processor.until("consumer_records_total{outcome=\"parked\"}", |parked| parked >= 4.0).await;
    assert_eq!(database.number("select count(*) from parked where reason like 'differs: %'").await, 4);
    assert_eq!(database.number("select count(*) from charges where status = 'waiting'").await, 1);
    assert_eq!(processor.metric("saga_contradictions_total").await, 4.0);
    topic.produce(CANCEL_REQUESTED, &request);
    database.until("select count(*) from charges where status = 'cancelled'", 1).await;
    processor.end().await;
    assert_eq!(gateway.ledger().await, []);
    gateway.end().await;
    database.end().await;
}
