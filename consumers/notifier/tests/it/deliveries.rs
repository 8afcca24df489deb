//! What becomes of a webhook, by what its receiver does.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::{Behaviour, Receiver};

const ENDS: [&str; 4] = ["completed", "rejected", "failed", "cancelled"];

#[tokio::test(flavor = "multi_thread")]
async fn each_end_is_delivered_once_per_endpoint_and_signed() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    let secret = notifier.endpoint("billing", receiver.url("/a?b=c")).await;
    notifier.endpoint("crm", receiver.url("/crm")).await;
    let user = Uuid::now_v7();
    let payments = ENDS.map(|event| (event, harness.end_payment(user, event)));
    harness.publish(user, Uuid::now_v7(), "initiated");
    harness.until("delivered_at is not null", 8).await;
    // The same events once more, then one that is new.
    for (event, payment) in payments {
        harness.publish(user, payment, event);
    }
    harness.end_payment(user, "completed");
    harness.until("delivered_at is not null", 10).await;
    assert_eq!(harness.count("true").await, 10);

    let received = receiver.received("/a?b=c");
    assert_eq!((received.len(), receiver.received("/crm").len()), (5, 5));
    let ids: BTreeSet<&str> = received.iter().map(|received| received.id()).collect();
    assert_eq!(ids.len(), 5, "one id per payment");
    for received in &received {
        received.verify(&secret);
        let body: Value = serde_json::from_str(&received.body).unwrap();
        assert!(received.id().starts_with(body["data"]["payment_id"].as_str().unwrap()), "{body}");
        assert!(!received.body.contains("081234567890"), "the client number is not sent");
    }
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_gets_nothing_from_before_it_was_there() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let notifier = harness.notifier(&[]).await;
    notifier.endpoint("late", receiver.url("/late")).await;
    let later = "update endpoints set since = '2099-06-01'";
    harness.pool.get().await.unwrap().batch_execute(later).await.unwrap();
    notifier.endpoint("early", receiver.url("/early")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("delivered_at is not null", 1).await;
    assert_eq!(harness.count("channel = 'early'").await, 1);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_retried_then_given_up_and_replayed_under_the_same_id() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::status("500 Internal Server Error"));
    let notifier = harness.notifier(&["--retries-s=1,1"]).await;
    let secret = notifier.endpoint("billing", receiver.url("/")).await;
    let payment = harness.end_payment(Uuid::now_v7(), "failed");
    harness.until("failed_at is not null and attempts = 3 and last_error = 'not accepted: 500'", 1).await;
    assert_eq!(receiver.received("/").len(), 3);

    receiver.set("/", Behaviour::status("200 OK"));
    let failed = json!({"channel": "billing", "from": "2026-01-01T00:00:00Z"});
    assert_eq!(notifier.call("POST", "/replay", failed.clone()).await, (200, json!({"replayed": 1})));
    harness.until("delivered_at is not null", 1).await;
    assert_eq!(notifier.call("POST", "/replay", failed).await, (200, json!({"replayed": 0})));
    let again = json!({"payment_id": payment});
    assert_eq!(notifier.call("POST", "/replay", again).await, (200, json!({"replayed": 1})));
    let received = eventually("five requests", async || {
        Some(receiver.received("/")).filter(|received| received.len() == 5)
    })
    .await;
    for request in &received {
        request.verify(&secret);
        assert_eq!((request.id(), &request.body), (received[0].id(), &received[0].body));
    }
    harness.until("delivered_at is not null", 1).await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_everything_wrong_costs_one_attempt() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let redirect = format!("HTTP/1.1 302 Found\r\nlocation: {}\r\n\r\n", receiver.url("/elsewhere"));
    let cases = [
        ("hang", Behaviour::Hang, "timed out"),
        ("redirect", Behaviour::Answer(redirect), "not accepted: 302"),
        ("garbage", Behaviour::Answer("SSH-2.0-OpenSSH\r\n".to_owned()), "no answer"),
        ("closed", Behaviour::Answer(String::new()), "no answer"),
        ("headers", Behaviour::Endless("x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n"), "no answer"),
        ("busy", Behaviour::status("429 Too Many Requests"), "not accepted: 429"),
    ];
    let notifier = harness.notifier(&["--attempt-s=5", "--retries-s=3600"]).await;
    for (name, behaviour, _) in &cases {
        receiver.set(&format!("/{name}"), behaviour.clone());
        notifier.endpoint(name, receiver.url(&format!("/{name}"))).await;
    }
    let body = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\nx".to_owned();
    receiver.set("/body", Behaviour::Answer(body));
    notifier.endpoint("body", receiver.url("/body")).await;
    notifier.endpoint("refused", "http://127.0.0.1:1/").await;
    harness.end_payment(Uuid::now_v7(), "completed");
    for (name, _, error) in cases.iter().chain([&("refused", Behaviour::Hang, "not connected")]) {
        let retried =
            format!("channel = '{name}' and attempts = 1 and due_at > now() + interval '50 minutes'");
        harness.until(&format!("{retried} and last_error = '{error}'"), 1).await;
    }
    // The body of an answer is never read.
    harness.until("channel = 'body' and delivered_at is not null", 1).await;
    assert!(receiver.received("/elsewhere").is_empty(), "redirects are not followed");
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_is_disabled_and_what_waits_is_delivered_when_it_is_back() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::status("410 Gone"));
    let notifier = harness.notifier(&[]).await;
    let secret = notifier.endpoint("billing", receiver.url("/")).await;
    let user = Uuid::now_v7();
    harness.end_payment(user, "completed");
    let listed = async || notifier.call("GET", "/endpoints", Value::Null).await.1["endpoints"][0].clone();
    let reason = async || listed().await["disabled_reason"].as_str().map(str::to_owned);
    assert_eq!(eventually("it is disabled", reason).await, "gone");
    assert!(!listed().await.to_string().contains(&secret));
    harness.end_payment(user, "failed");
    harness.until("delivered_at is null and failed_at is null", 2).await;
    let requests = receiver.received("/").len();

    receiver.set("/moved", Behaviour::status("200 OK"));
    let moved = json!({"url": receiver.url("/moved")});
    let (status, body) = notifier.call("PUT", "/endpoints/billing", moved).await;
    assert_eq!((status, body.get("secret")), (200, None));
    harness.until("delivered_at is not null", 2).await;
    assert_eq!(receiver.received("/").len(), requests, "nothing was sent meanwhile");
    receiver.received("/moved")[0].verify(&secret);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_takes_the_name_of_a_removed_one_gets_nothing_of_it() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::status("500 Internal Server Error"));
    let notifier = harness.notifier(&["--retries-s=3600"]).await;
    let first = notifier.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("attempts = 1 and last_error is not null", 1).await;
    assert_eq!(notifier.call("DELETE", "/endpoints/billing", Value::Null).await.0, 204);
    harness.until("failed_at is not null and last_error = 'endpoint removed'", 1).await;
    let second = notifier.endpoint("billing", receiver.url("/second")).await;
    assert_ne!(first, second, "a secret is of one endpoint");
    let last = harness.end_payment(Uuid::now_v7(), "completed");
    harness.until(&format!("payment_id = '{last}' and delivered_at is not null"), 1).await;
    for received in receiver.received("/second") {
        received.verify(&second);
    }
    harness.until("failed_at is not null", 1).await;
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_only_fails_is_disabled_and_one_success_begins_anew() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::status("503 Service Unavailable"));
    let notifier = harness.notifier(&["--retries-s=1,1,1,1,1,1,1,1,1", "--disable-after-s=600"]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    let endpoint = async |column: &str| -> Option<String> {
        let query = format!("select {column}::text from endpoints");
        harness.pool.get().await.unwrap().query_one(&query, &[]).await.unwrap().get(0)
    };
    let fails = async || eventually("it fails", async || endpoint("failing_since").await).await;
    fails().await;
    receiver.set("/", Behaviour::status("200 OK"));
    harness.until("delivered_at is not null", 1).await;
    eventually("it succeeds", async || endpoint("failing_since").await.is_none().then_some(())).await;

    receiver.set("/", Behaviour::status("503 Service Unavailable"));
    harness.end_payment(Uuid::now_v7(), "completed");
    fails().await;
    let long_ago = "update endpoints set failing_since = now() - interval '1 hour'";
    harness.pool.get().await.unwrap().batch_execute(long_ago).await.unwrap();
    let reason = eventually("it is disabled", async || endpoint("disabled_reason").await).await;
    assert_eq!(reason, "failing");
    assert!(notifier.metric("notifier_endpoints_disabled_total").await > 0.0);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_hangs_does_not_hold_up_the_others() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/hang", Behaviour::Hang);
    let notifier = harness.notifier(&["--deliveries-max=4", "--channel-max=2", "--attempt-s=600"]).await;
    notifier.endpoint("hang", receiver.url("/hang")).await;
    notifier.endpoint("works", receiver.url("/works")).await;
    for _ in 0..40 {
        harness.end_payment(Uuid::now_v7(), "completed");
    }
    harness.until("channel = 'works' and delivered_at is not null", 40).await;
    assert_eq!(harness.count("channel = 'hang' and attempts > 0").await, 2, "its share");
    // Its deliveries end with their receiver, not in ten minutes.
    notifier.abandon();
    harness.finish().await;
}
