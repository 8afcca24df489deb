//! Endpoints that were removed: nothing of theirs ever goes to another one that takes their name.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::harness::{Harness, Instance, eventually};
use crate::receiver::{Behaviour, Receiver};

async fn remove(notifier: &Instance) {
    assert_eq!(notifier.call("DELETE", "/endpoints/billing", Value::Null).await.0, 204);
}

/// A notification of `billing` that a batch inserts late, of a payment that ended before the endpoint of that name was
/// there.
async fn insert_late(harness: &Harness) -> Uuid {
    let payment = Uuid::now_v7();
    let insert = "insert into notifications
        (payment_id, channel, user_id, version, event, service_id, amount, ended_at)
        values ($1, 'billing', $1, 3, 'completed', 'electricity', 100, '2026-01-02')";
    harness.pool.get().await.unwrap().execute(insert, &[&payment]).await.unwrap();
    payment
}

/// Until the endpoint that took the name has got a payment of its own, and nothing else.
async fn gets_only_its_own(harness: &Harness, receiver: &Receiver, path: &str) {
    let own = harness.end_payment(Uuid::now_v7(), "completed");
    harness.until(&format!("payment_id = '{own}' and delivered_at is not null"), 1).await;
    let received = receiver.received(path);
    assert_eq!(received.len(), 1, "{received:?}");
    assert!(received[0].id().starts_with(&own.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_under_way_does_not_revive_what_was_given_up() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let allowed = Arc::new(Semaphore::new(0));
    receiver.set("/", Behaviour::Later(allowed.clone(), Behaviour::head("500 Internal Server Error")));
    let notifier = harness.notifier(&["--retries-s=1,1,1"]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    eventually("it is being delivered", async || receiver.received("/").first().cloned()).await;
    remove(&notifier).await;
    notifier.endpoint("billing", receiver.url("/second")).await;
    allowed.add_permits(1);
    let recorded = async || (notifier.metric("notifier_attempts_total").await > 0.0).then_some(());
    eventually("the attempt has ended", recorded).await;
    gets_only_its_own(&harness, &receiver, "/second").await;
    harness.until("failed_at is not null and last_error = 'endpoint removed'", 1).await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_inserted_after_the_end_of_an_endpoint_is_never_delivered() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    remove(&notifier).await;
    let early = insert_late(&harness).await;
    // The call once more goes on; and a new endpoint of the name begins by it.
    remove(&notifier).await;
    harness.until(&format!("payment_id = '{early}' and last_error = 'endpoint removed'"), 1).await;
    let early = insert_late(&harness).await;
    notifier.endpoint("billing", receiver.url("/second")).await;
    harness.until(&format!("payment_id = '{early}' and last_error = 'endpoint removed'"), 1).await;
    let late = insert_late(&harness).await;
    gets_only_its_own(&harness, &receiver, "/second").await;
    harness.until(&format!("payment_id = '{late}' and attempts = 0"), 1).await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_leaves_what_belongs_to_a_removed_endpoint() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    remove(&notifier).await;
    let payment = insert_late(&harness).await;
    remove(&notifier).await;
    let replay = async |body: Value| notifier.call("POST", "/replay", body).await;
    let of_payment = || json!({"payment_id": payment});
    let of_channel = || json!({"channel": "billing", "from": "2026-01-01T00:00:00Z"});
    for body in [of_payment(), of_channel()] {
        assert_eq!(replay(body).await, (200, json!({"replayed": 0})), "it is removed");
    }
    notifier.endpoint("billing", receiver.url("/second")).await;
    for body in [of_payment(), of_channel()] {
        assert_eq!(replay(body).await, (200, json!({"replayed": 0})), "it is another one");
    }
    gets_only_its_own(&harness, &receiver, "/second").await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_much_waits_is_given_up() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    remove(&notifier).await;
    let insert = "insert into notifications
        (payment_id, channel, user_id, version, event, service_id, amount, ended_at)
        select gen_random_uuid(), 'billing', gen_random_uuid(), 3, 'completed', 'electricity', 100, '2026-01-02'
          from generate_series(1, 25000)";
    harness.pool.get().await.unwrap().batch_execute(insert).await.unwrap();
    remove(&notifier).await;
    assert_eq!(harness.count("last_error = 'endpoint removed'").await, 25_000);
    notifier.stop().await;
    harness.finish().await;
}
