//! Endpoints that hang, however many they are, hold up no other channel.

use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::{Behaviour, Receiver, Smtp};

const HANGING: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn five_endpoints_that_hang_hold_up_neither_another_one_nor_e_mails() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    let smtp = Smtp::start().await;
    let flags = ["--deliveries-max=8", "--channel-max=2", "--attempt-s=600", "--retries-s=1,1,1,1,1,1"];
    let notifier = harness.notifier(&[&flags[..], &[&format!("--smtp-url={}", smtp.url())]].concat()).await;
    for number in 0..HANGING {
        let channel = format!("hang-{number}");
        receiver.set(&format!("/{channel}"), Behaviour::Hang);
        notifier.endpoint(&channel, receiver.url(&format!("/{channel}"))).await;
    }
    notifier.endpoint("works", receiver.url("/works")).await;
    let user = Uuid::now_v7();
    for _ in 0..40 {
        harness.end_payment(Uuid::now_v7(), "completed");
    }
    harness.until("channel like 'hang-%' and attempts > 0", 6).await;
    notifier.contact(user, "ann@example.org").await;
    for _ in 0..40 {
        harness.end_payment(user, "completed");
    }
    harness.until("channel = 'works' and delivered_at is not null", 80).await;
    harness.until("channel = 'email' and delivered_at is not null", 40).await;
    assert_eq!(harness.count("channel like 'hang-%' and attempts > 0").await, 6, "a quarter is kept");
    notifier.abandon();
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_has_one_delivery_at_a_time() {
    let (harness, receiver) = (Harness::new().await, Receiver::start().await);
    receiver.set("/", Behaviour::status("500 Internal Server Error"));
    let notifier = harness.notifier(&["--retries-s=3600", "--attempt-s=600"]).await;
    notifier.endpoint("billing", receiver.url("/")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("last_error = 'not accepted: 500'", 1).await;
    receiver.set("/", Behaviour::Hang);
    for _ in 0..10 {
        harness.end_payment(Uuid::now_v7(), "completed");
    }
    harness.until("true", 11).await;
    let under_way = async || (notifier.metric("notifier_deliveries_under_way").await == 1.0).then_some(());
    eventually("one is under way", under_way).await;
    receiver.set("/", Behaviour::status("200 OK"));
    notifier.endpoint("other", receiver.url("/other")).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("channel = 'other' and delivered_at is not null", 1).await;
    assert_eq!(harness.count("channel = 'billing' and attempts > 0").await, 2);
    notifier.abandon();
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauge_says_how_long_the_oldest_has_been_due() {
    let harness = Harness::new().await;
    let insert = "insert into endpoints (channel, url, secret, since, disabled_at, disabled_reason)
        values ('waits', 'https://127.0.0.1:1/', 'whsec_', '2026-01-01', null, null),
               ('disabled', 'https://127.0.0.1:1/', 'whsec_', '2026-01-01', now(), 'gone');
        insert into notifications
            (payment_id, channel, user_id, version, event, service_id, amount, ended_at, due_at)
        values (gen_random_uuid(), 'waits', gen_random_uuid(), 3, 'completed', 'x', 1, '2026-01-02',
                now() - interval '10 minutes'),
               (gen_random_uuid(), 'disabled', gen_random_uuid(), 3, 'completed', 'x', 1, '2026-01-02',
                now() - interval '10 days'),
               (gen_random_uuid(), 'email', gen_random_uuid(), 3, 'completed', 'x', 1, '2026-01-02',
                now() - interval '20 minutes')";
    harness.pool.get().await.unwrap().batch_execute(insert).await.unwrap();
    let oldest = async |email| notifier::store::oldest_due(&harness.pool, email).await.unwrap();
    let [email, webhook] = oldest(true).await.map(|age| age.as_secs() / 60);
    assert_eq!((email, webhook), (20, 10));
    assert_eq!(oldest(false).await[0].as_secs(), 0, "without an SMTP server e-mails wait");
    harness.finish().await;
}
