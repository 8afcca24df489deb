//! The admin listener.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::Harness;

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_token_writes_and_what_is_wrong_is_named() {
    let harness = Harness::new().await;
    let notifier = harness.notifier(&[]).await;
    let good = json!({"url": "https://example.org:8443/hook?token=s3cret"});
    let channel = "x".repeat(65);
    let too_long = format!("/endpoints/{channel}");
    let user = format!("/contacts/{}", Uuid::now_v7());
    let cases = [
        ("PUT", "/endpoints/email", good.clone(), 400),
        ("PUT", "/endpoints/Billing", good.clone(), 400),
        ("PUT", too_long.as_str(), good.clone(), 400),
        ("PUT", "/endpoints/a", json!({"url": "https://user:password@example.org/"}), 400),
        ("PUT", "/endpoints/a", json!({"url": "ftp://example.org/"}), 400),
        ("PUT", "/endpoints/a", json!({"url": "https://example.org:/"}), 400),
        ("PUT", "/endpoints/a", json!({"url": "https://example.org:0/"}), 400),
        ("PUT", "/endpoints/a", json!({"url": "https://example.org:65536/"}), 400),
        ("PUT", "/endpoints/a", json!({"url": "https://example.org/", "secret": "whsec_"}), 400),
        ("PUT", "/endpoints/a", good.clone(), 201),
        ("PUT", "/endpoints/a", good.clone(), 200),
        ("DELETE", "/endpoints/a", Value::Null, 204),
        ("DELETE", "/endpoints/a", Value::Null, 204),
        ("DELETE", "/endpoints/never", Value::Null, 404),
        ("POST", "/endpoints/a/secret", json!({}), 404),
        ("PUT", "/endpoints/a", good, 201),
        ("PUT", "/contacts/x", json!({"email": "a@example.org"}), 404),
        ("PUT", &user, json!({"email": "nobody"}), 400),
        ("PUT", &user, json!({"email": "a@example.org\nBcc: b@example.org"}), 400),
        ("PUT", &user, json!({"email": "a@example.org"}), 204),
        ("POST", "/replay", json!({}), 400),
        ("POST", "/replay", json!({"channel": "a", "from": "yesterday"}), 400),
        ("POST", "/replay", json!({"payment_id": "x"}), 400),
        ("POST", "/replay", json!({"payment_id": Uuid::now_v7()}), 200),
        ("GET", "/notifications/x", Value::Null, 404),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = notifier.call(method, path, body.clone()).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        if expected == 400 {
            assert!(!answer["errors"].as_array().unwrap().is_empty(), "{answer}");
        }
    }
    assert_eq!(notifier.anonymous("PUT", "/endpoints/b", json!({"url": "https://example.org/"})).await, 401);
    assert_eq!(notifier.anonymous("POST", "/replay", json!({"payment_id": Uuid::now_v7()})).await, 401);
    let (_, listed) = notifier.call("GET", "/endpoints", Value::Null).await;
    assert_eq!(listed["endpoints"].as_array().unwrap().len(), 1);
    assert!(!listed.to_string().contains("whsec_"), "a secret is shown once");
    assert_eq!(listed["endpoints"][0]["origin"], "https://example.org:8443");
    assert!(!listed.to_string().contains("hook") && !listed.to_string().contains("s3cret"), "{listed}");
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_at_most_a_hundred_endpoints() {
    let harness = Harness::new().await;
    let notifier = harness.notifier(&[]).await;
    let insert = "insert into endpoints (channel, url, secret)
        select 'e-' || n, 'https://example.org/', 'whsec_' from generate_series(1, 99) n";
    harness.pool.get().await.unwrap().batch_execute(insert).await.unwrap();
    let body = || json!({"url": "https://example.org/"});
    for (method, path, expected) in [
        ("PUT", "/endpoints/a", 201),
        ("PUT", "/endpoints/b", 409),
        ("PUT", "/endpoints/a", 200),
        ("DELETE", "/endpoints/a", 204),
        ("PUT", "/endpoints/b", 201),
        ("PUT", "/endpoints/a", 409),
    ] {
        let (status, answer) = notifier.call(method, path, body()).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_reads_addresses_and_secrets() {
    let database = sql::harness::Harness::new(sql::Database::Notifier).await.unwrap();
    for role in ["coro_checker", "coro_relay"] {
        let reader = sql::connect(&database.url(role).unwrap()).await.unwrap();
        for query in
            ["select email from contacts", "select secret from endpoints", "select url from endpoints"]
        {
            let error = reader.query(query, &[]).await.unwrap_err();
            assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{role}: {query}");
        }
    }
    let notifier = sql::connect(&database.service_url().unwrap()).await.unwrap();
    for statement in [
        "delete from notifications",
        "truncate contacts",
        "update parked set reason = ''",
        "update notifications set payment_id = user_id",
        "update endpoints set channel = 'other'",
        "update contacts set user_id = gen_random_uuid()",
    ] {
        let error = notifier.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{statement}");
    }
    drop(notifier);
    database.finish().await.unwrap();
}
