//! E-mails, through a real SMTP server.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::receiver::Smtp;

#[tokio::test(flavor = "multi_thread")]
async fn each_end_is_one_e_mail_and_a_replay_has_the_same_message_id() {
    let (harness, smtp) = (Harness::new().await, Smtp::start().await);
    let notifier =
        harness.notifier(&[&format!("--smtp-url={}", smtp.url()), "--retries-s=1,1,1,1,1,1"]).await;
    let user = Uuid::now_v7();
    notifier.contact(user, "ann@example.org").await;
    let payment = harness.end_payment(user, "completed");
    harness.end_payment(Uuid::now_v7(), "completed"); // of somebody without a contact
    harness.until("delivered_at is not null", 1).await;
    let (status, _) = notifier.call("POST", "/replay", json!({"payment_id": payment})).await;
    assert_eq!(status, 200);
    let mails = eventually("two e-mails", async || Some(smtp.mails()).filter(|mails| mails.len() == 2)).await;
    let id = format!("Message-ID: <{payment}-3@localhost>");
    for mail in &mails {
        assert!(mail.contains(&id) && mail.contains("To: ann@example.org"), "{mail}");
        assert!(mail.contains("Subject: Payment to electricity: completed"), "{mail}");
        assert!(mail.contains("150.00 to electricity") && mail.contains("text/html"), "{mail}");
    }
    harness.until("delivered_at is not null", 1).await;
    assert_eq!(harness.count("true").await, 1);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_e_mails_wait() {
    let (harness, mut smtp) = (Harness::new().await, Smtp::away());
    let retries = ["1"; 50].join(",");
    let notifier =
        harness.notifier(&[&format!("--smtp-url={}", smtp.url()), &format!("--retries-s={retries}")]).await;
    let user = Uuid::now_v7();
    notifier.contact(user, "bob@example.org").await;
    for event in ["completed", "failed"] {
        harness.end_payment(user, event);
    }
    harness.until("attempts > 0 and last_error is not null", 2).await;
    smtp.begin();
    harness.until("delivered_at is not null", 2).await;
    let ids: BTreeSet<String> = smtp
        .mails()
        .iter()
        .filter_map(|mail| mail.lines().find(|line| line.starts_with("Message-ID")).map(str::to_owned))
        .collect();
    assert_eq!(ids.len(), 2);
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_does_not_exist_or_was_erased_is_given_up_at_once() {
    let (harness, smtp) = (Harness::new().await, Smtp::start().await);
    let away = harness.notifier(&[]).await;
    let (unknown, erased) = (Uuid::now_v7(), Uuid::now_v7());
    away.contact(unknown, "nobody-such@example.org").await;
    away.contact(erased, "carol@example.org").await;
    harness.end_payment(unknown, "completed");
    harness.end_payment(erased, "completed");
    // Without an SMTP server the channel is not claimed.
    harness.until("attempts = 0", 2).await;
    assert_eq!(away.call("DELETE", &format!("/contacts/{erased}"), Value::Null).await.0, 204);
    assert_eq!(away.call("DELETE", &format!("/contacts/{erased}"), Value::Null).await.0, 404);
    away.stop().await;
    let notifier = harness.notifier(&[&format!("--smtp-url={}", smtp.url())]).await;
    harness.until("failed_at is not null and attempts = 1 and last_error = 'no recipient'", 2).await;
    assert!(smtp.mails().is_empty());
    harness.end_payment(erased, "failed");
    harness.end_payment(unknown, "failed");
    harness.until("failed_at is not null", 3).await;
    notifier.stop().await;
    harness.finish().await;
}
