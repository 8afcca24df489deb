//! Settle times, and payments without an end, on a real Postgres.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use payments_svc::metrics::Metrics;
use payments_svc::saga::Event;
use payments_svc::store;
use payments_svc::unsettled::Unsettled;
use prometheus::Registry;
use uuid::Uuid;

use crate::{Payments, command};

/// Of the gauge with this name: label value (or none) and value.
fn gauge(registry: &Registry, name: &str) -> Vec<(String, f64)> {
    let family = registry.gather().into_iter().find(|family| family.name() == name);
    let metrics = family.map(|family| family.get_metric().to_vec()).unwrap_or_default();
    let label = |metric: &prometheus::proto::Metric| {
        metric.get_label().first().map(|label| label.value().to_owned()).unwrap_or_default()
    };
    metrics.iter().map(|metric| (label(metric), metric.get_gauge().get_value())).collect()
}

#[tokio::test]
async fn a_payment_settles_once_and_its_settle_time_is_from_acceptance_to_end() {
    let payments = Payments::new().await;
    let payment = payments.accepted().await;
    payments.age(payment.1, 100.0).await;
    for event in [Event::Held, Event::OutcomeUnknown] {
        let outcome = payments.apply(&[command(payment, event)]).await.unwrap();
        assert!(outcome.applied.applied == 1 && outcome.settle_times.is_empty(), "{event:?}: {outcome:?}");
    }
    let outcome = payments.apply(&[command(payment, Event::Captured)]).await.unwrap();
    let [settle_time] = outcome.settle_times[..] else { panic!("{outcome:?}") };
    assert!(settle_time >= Duration::from_secs(100), "{settle_time:?}");
    let dated = "select count(*) from payments where abs(extract(epoch from completed_at - initiated_at)::float8 - $1) < 1e-6";
    let client = payments.pool.get().await.unwrap();
    let rows: i64 = client.query_one(dated, &[&settle_time.as_secs_f64()]).await.unwrap().get(0);
    assert_eq!(rows, 1, "the end is dated by the same clock");
    let again = payments.apply(&[command(payment, Event::Captured)]).await.unwrap();
    assert!(again.settle_times.is_empty(), "a duplicate ends nothing");

    let (first, second) = (payments.accepted().await, payments.accepted().await);
    let whole = [
        command(first, Event::HoldRejected),
        command(second, Event::Held),
        command(second, Event::ReleasedUncharged),
    ];
    assert_eq!(payments.apply(&whole).await.unwrap().settle_times.len(), 2, "a decline is an end, too");
    payments.finish().await;
}

#[tokio::test]
async fn a_payment_without_an_end_is_found_after_a_restart_and_forgotten_at_its_end() {
    let payments = Payments::new().await;
    let (stuck, ended, young) =
        (payments.accepted().await, payments.accepted().await, payments.accepted().await);
    payments.age(stuck.1, 4000.0).await;
    payments.age(ended.1, 4000.0).await;
    payments.apply(&[command(ended, Event::HoldRejected)]).await.unwrap();

    let metrics = Metrics::register().unwrap();
    let mut unsettled = Unsettled::new(payments.router.clone(), metrics.settling.clone());
    unsettled.look().await.unwrap();
    let counts = gauge(&metrics.registry, "payments_unsettled");
    let expected = [("10m", 1.0), ("1d", 0.0), ("1h", 1.0), ("1m", 1.0)];
    assert_eq!(counts, expected.map(|(age, count)| (age.to_owned(), count)));
    let oldest = gauge(&metrics.registry, "payments_oldest_unsettled_seconds");
    assert!((4000.0..5000.0).contains(&oldest[0].1), "{oldest:?}");

    payments.apply(&[command(stuck, Event::HoldRejected)]).await.unwrap();
    unsettled.look().await.unwrap();
    let oldest = gauge(&metrics.registry, "payments_oldest_unsettled_seconds");
    assert_eq!(oldest, [(String::new(), 0.0)], "payment {} is younger than what is read", young.1);
    payments.finish().await;
}

#[tokio::test]
async fn payments_without_an_end_are_read_by_age_in_order() {
    let payments = Payments::new().await;
    let mut accepted = Vec::new();
    for seconds in [3_000.0, 1_000.0, 2_000.0, 500.0] {
        let payment = payments.accepted().await;
        payments.age(payment.1, seconds).await;
        accepted.push(payment);
    }
    payments.apply(&[command(accepted[2], Event::HoldRejected)]).await.unwrap();
    let now = store::clock(&payments.pool).await.unwrap();
    let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    let read = async |from: Timestamp, until: Timestamp, rows_max| {
        let found = store::unsettled_by_age(&payments.pool, from, until, rows_max).await.unwrap();
        found.into_iter().map(|payment| payment.payment_id).collect::<Vec<Uuid>>()
    };
    assert_eq!(read(ago(10_000), now, 9).await, [accepted[0].1, accepted[1].1, accepted[3].1]);
    assert_eq!(read(ago(10_000), now, 1).await, [accepted[0].1]);
    assert_eq!(read(ago(2_500), ago(600), 9).await, [accepted[1].1]);
    payments.finish().await;
}

#[tokio::test]
async fn a_look_by_age_reads_the_range_index_and_a_walk_its_blocks() {
    let payments = Payments::new().await;
    let client = payments.pool.get().await.unwrap();
    for (sql, node) in [
        ("initiated_at >= now() - interval '1 minute' and initiated_at < now()", "payments_initiated_at"),
        ("ctid >= '(0,0)'::tid and ctid < '(512,0)'::tid", "Tid Range Scan"),
    ] {
        let explain = format!("explain select 1 from payments where {sql}");
        let plan: Vec<String> =
            client.query(&explain, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(plan.join("\n").contains(node), "{plan:#?}");
    }
    let workers = client.query_one("show max_parallel_workers_per_gather", &[]).await.unwrap();
    assert_eq!(workers.get::<_, &str>(0), "0", "a look starts no workers");
    drop(client);
    payments.finish().await;
}
