//! Tests records that Kafka refuses for good.
//!
//! * The relay gives the producer up.
//! * A new producer emits everything after the last confirmed transaction again.

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use crate::harness::{Harness, eventually};
use crate::kafka::{self, distinct};
use crate::load::under_load;

fn admin() -> AdminClient<DefaultClientContext> {
    kafka::admin().create().expect("admin")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_while_streaming_costs_no_later_row() {
    let mut harness = Harness::new("deleted").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    let topic = harness.topic();
    admin().delete_topics(&[&topic], &AdminOptions::new()).await.expect("delete");
    eventually("the topic to be gone", || async { kafka::read(&topic).is_empty().then_some(()) }).await;
    for id in 2..50 {
        harness.row("a", id, 1, "made").await;
    }
    let events = distinct(&topic, 48).await;
    let ids: Vec<i64> = events.iter().map(|event| event.json()["id"].as_i64().expect("id")).collect();
    assert!(ids.iter().copied().eq(2..50), "{ids:?}");
    harness.confirmed().await;
    drop(relay);
}

/// The relay checks the size against the limit it knows; the broker has another one now.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lowered_while_streaming_neither_wedges_nor_skips() {
    let mut harness = Harness::new("limit").await;
    let relay = harness.streaming().await;
    harness.row("a", 1, 1, "made").await;
    harness.confirmed().await;
    let topic = harness.topic();
    let lower = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "4000");
    admin().alter_configs([&lower], &AdminOptions::new()).await.expect("alter");
    eventually("the lower limit", || async {
        let (admin, resource) = (admin(), ResourceSpecifier::Topic(&topic));
        let topics = admin.describe_configs([&resource], &AdminOptions::new()).await;
        let topic = topics.ok()?.pop()?.ok()?;
        (topic.get("max.message.bytes")?.value.as_deref() == Some("4000")).then_some(())
    })
    .await;
    harness
        .sql
        .batch_execute(
            "insert into items (owner, id, version, note) select 'b', 2, 1, string_agg(md5(n::text), '')
             from generate_series(1, 300) n",
        )
        .await
        .expect("a large row");
    for id in 3..20 {
        harness.row("a", id, 1, "made").await;
    }
    let events = distinct(&topic, 18).await;
    let first = &kafka::first_emissions(&events)["a"];
    let ids: Vec<i64> = first.iter().map(|event| event.json()["id"].as_i64().expect("id")).collect();
    assert!(ids.is_sorted() && ids.len() == 18, "{ids:?}");
    let dead = kafka::read(&harness.dead_letter_topic());
    assert_eq!(
        dead.iter().map(|dead_letter| dead_letter.json()["row"]["id"].clone()).collect::<Vec<_>>(),
        ["2"]
    );
    harness.confirmed().await;
    drop(relay);
}

/// The load changes these keys all the time: their later rows stay behind the large row, in order.
#[tokio::test(flavor = "multi_thread")]
async fn rows_larger_than_the_broker_takes_under_load_cost_no_other_row_and_are_not_overtaken() {
    let mut harness = Harness::new("large").await;
    let (relay, oracle, load) = under_load(&mut harness, false).await;
    for (owner, id) in [("o1", 1000), ("o5", 1001), ("o1", 1002)] {
        load.more(30).await;
        let large = "insert into items (owner, id, version, note) values ($1, $2, 1, repeat('x', 2000000))";
        harness.sql.execute(large, &[&owner, &i64::from(id)]).await.expect("a large row");
    }
    load.more(100).await;
    relay.kill();
    load.more(50).await;
    let relay = harness.streaming().await;
    load.more(50).await;
    load.stop().await;
    let report = oracle.judge(&harness).await;
    report.expect(250);
    assert!(report.dead > 3, "nothing followed: {report:?}");
    drop(relay);
}
