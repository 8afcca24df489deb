//! An endpoint is disabled by what its present URL does, and its secret is rotated without a gap.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::{Behaviour, Receiver};

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_of_the_old_url_does_not_disable_the_new_one() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    for (channel, status) in [("gone", "410 Gone"), ("failing", "500 Internal Server Error")] {
        let (old, new) = (format!("/{channel}"), format!("/{channel}-new"));
        let allowed = Arc::new(Semaphore::new(0));
        receiver.set(&old, Behaviour::Later(allowed.clone(), Behaviour::head(status)));
        let notifier = harness.notifier(&["--retries-s=1,1", "--disable-after-s=1"]).await;
        notifier.endpoint(channel, receiver.url(&old)).await;
        let failing = "update endpoints set failing_since = now() - interval '1 hour'";
        harness.pool.get().await.unwrap().batch_execute(failing).await.unwrap();
        harness.end_payment(Uuid::now_v7(), "completed");
        eventually("it is being delivered", async || receiver.received(&old).first().cloned()).await;
        let body = json!({"url": receiver.url(&new)});
        assert_eq!(notifier.call("PUT", &format!("/endpoints/{channel}"), body).await.0, 200);
        allowed.add_permits(1);
        harness
            .until(&format!("channel = '{channel}' and attempts = 2 and delivered_at is not null"), 1)
            .await;
        let (_, listed) = notifier.call("GET", "/endpoints", Value::Null).await;
        assert_eq!(listed["endpoints"][0]["disabled_at"], Value::Null, "{channel}: {listed}");
        assert_eq!(listed["endpoints"][0]["failing_since"], Value::Null, "{channel}: {listed}");
        assert_eq!(notifier.call("DELETE", &format!("/endpoints/{channel}"), Value::Null).await.0, 204);
        notifier.stop().await;
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_signs_beside_the_previous_one_for_a_day() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    let rotate = async || notifier.call("POST", "/endpoints/billing/secret", json!({})).await;
    assert_eq!(rotate().await.0, 404);
    let previous = notifier.endpoint("billing", receiver.url("/")).await;
    assert_eq!(notifier.anonymous("POST", "/endpoints/billing/secret", json!({})).await, 401);
    let (status, body) = rotate().await;
    let present = body["secret"].as_str().unwrap().to_owned();
    assert!(status == 200 && present.starts_with("whsec_") && present != previous, "{body}");
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("delivered_at is not null", 1).await;
    let received = receiver.received("/");
    received[0].verify(&previous);
    received[0].verify(&present);
    let client = harness.pool.get().await.unwrap();
    let hours = "select extract(epoch from previous_until - now())::float8 / 3600 from endpoints";
    let hours: f64 = client.query_one(hours, &[]).await.unwrap().get(0);
    assert!((23.5..=24.0).contains(&hours), "{hours}");

    client.batch_execute("update endpoints set previous_until = now()").await.unwrap();
    drop(client);
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("delivered_at is not null", 2).await;
    let received = receiver.received("/");
    received[1].verify(&present);
    assert_eq!(received[1].headers["webhook-signature"].to_str().unwrap().matches("v1,").count(), 1);
    assert_eq!(notifier.call("DELETE", "/endpoints/billing", Value::Null).await.0, 204);
    assert_eq!(rotate().await.0, 404, "it is removed");
    notifier.stop().await;
    harness.finish().await;
}

/// Whoever had the name before may still know it.
#[tokio::test(flavor = "multi_thread")]
async fn the_previous_secret_of_a_removed_endpoint_signs_nothing_of_the_one_that_takes_its_name() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    assert_eq!(notifier.call("POST", "/endpoints/billing/secret", json!({})).await.0, 200);
    assert_eq!(notifier.call("DELETE", "/endpoints/billing", Value::Null).await.0, 204);
    let present = notifier.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("delivered_at is not null", 1).await;
    let received = receiver.received("/");
    received[0].verify(&present);
    assert_eq!(received[0].headers["webhook-signature"].to_str().unwrap().matches("v1,").count(), 1);
    notifier.stop().await;
    harness.finish().await;
}
