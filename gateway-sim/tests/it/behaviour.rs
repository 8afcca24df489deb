//! Changes of the behaviour in the middle of a run, and soft declines.

use serde_json::json;

use crate::gateway::{Gateway, WAIT_TIMEOUT, body};

#[tokio::test]
async fn a_soft_decline_is_pending_and_then_decided() {
    let gateway = Gateway::start(&[]).await;
    let (status, soft) = gateway.charge("r1", "1-soft2000").await;
    assert_eq!((status.as_u16(), &soft["retryable"]), (402, &json!(true)));
    assert_eq!(
        gateway.inquire("r1").await,
        json!({"status": "pending", "reference": "r1", "amount": 15_000})
    );
    let until = std::time::Instant::now() + WAIT_TIMEOUT;
    while gateway.inquire("r1").await["status"] != "succeeded" {
        assert!(std::time::Instant::now() < until, "decided in the end");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (status, declined) = gateway.charge("r2", "1-decline-soft1").await;
    assert_eq!((status.as_u16(), &declined["retryable"]), (402, &json!(true)));
    gateway.end().await;
}

#[tokio::test]
async fn in_an_outage_nobody_is_served_and_afterwards_everybody_is() {
    let gateway = Gateway::start(&["--hang-ms", "20"]).await;
    gateway.put("/outage", json!({"for_ms": 3_600_000})).await;
    let reply = gateway.send("r1", &body("r1", 15_000, "1")).await.unwrap();
    assert_eq!((reply.status().as_u16(), reply.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(gateway.get("/charges/r1").await.0, 503);
    assert_eq!(gateway.void("r1", json!({})).await.0, 503);
    assert_eq!(gateway.get("/health").await.0, 200);
    for how in ["reset", "hang"] {
        gateway.put("/outage", json!({"for_ms": 3_600_000, "how": how})).await;
        let error = gateway.fails("r1", "1").await;
        assert_eq!(format!("{error:?}").contains("ConnectionReset"), how == "reset", "{error:?}");
    }
    let ended = gateway.as_operator("DELETE", "/outage").send().await.unwrap();
    assert_eq!(ended.status(), 204);
    assert_eq!(gateway.charge("r1", "1").await.0, 200);
    assert_eq!(gateway.ledger().await.len(), 1);
    gateway.end().await;
}

#[tokio::test]
async fn a_mix_is_the_same_on_every_gateway_with_the_same_seed() {
    let words = json!({"default": "approve", "mix": [{"percent": 30, "words": "decline"}, {"percent": 20, "words": "http500"}]});
    let mut runs = Vec::new();
    for (seed, backwards) in [("5", false), ("5", true), ("6", false)] {
        let gateway = Gateway::start(&["--seed", seed]).await;
        gateway.put("/script", words.clone()).await;
        let (_, shown) = gateway.get("/script").await;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), words);
        let mut seen = Vec::new();
        for n in 0..40 {
            let n = if backwards { 39 - n } else { n };
            let reference = format!("r{n}");
            let reply = gateway.send(&reference, &body(&reference, 15_000, "5551234")).await.unwrap();
            seen.push((n, reply.status().as_u16()));
        }
        seen.sort_unstable();
        runs.push(seen);
        assert_eq!(gateway.charge("own", "1-approve").await.0, 200, "a word of its own");
        gateway.end().await;
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    for status in [200, 402, 500] {
        assert!(runs[0].iter().any(|(_, seen)| *seen == status), "{status}");
    }
}

#[tokio::test]
async fn whether_keys_count_can_be_changed() {
    let gateway = Gateway::start(&[]).await;
    let set = async |mode: &'static str| {
        let put = gateway.as_operator("PUT", "/idempotency").header("content-type", "text/plain");
        put.body(mode).send().await.unwrap().status().as_u16()
    };
    gateway.charge("r1", "1").await;
    gateway.charge("r1", "1").await;
    assert_eq!((set("ignored").await, set("maybe").await), (204, 400));
    gateway.charge("r1", "1").await;
    assert_eq!(gateway.ledger().await.len(), 2);
    assert_eq!(set("honoured").await, 204);
    gateway.charge("r1", "1").await;
    assert_eq!(gateway.ledger().await.len(), 2);
    gateway.end().await;
}

#[tokio::test]
async fn requests_are_read_strictly() {
    let gateway = Gateway::start(&[]).await;
    let ask = async |method: &str, path: &str| {
        gateway.http.request(method.parse().unwrap(), gateway.url(path)).send().await.unwrap()
    };
    for (method, path, allow) in [
        ("DELETE", "/charges", "POST, OPTIONS"),
        ("PUT", "/charges/a", "GET, HEAD, OPTIONS"),
        ("GET", "/charges/a/void", "POST, OPTIONS"),
        ("PATCH", "/script", "GET, HEAD, PUT, OPTIONS"),
        ("GET", "/outage", "PUT, DELETE, OPTIONS"),
    ] {
        let refused = ask(method, path).await;
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["allow"]),
            (405, &allow.parse().unwrap()),
            "{path}"
        );
    }
    assert_eq!(ask("HEAD", "/health").await.status(), 200);
    assert_eq!(ask("GET", "/health/").await.status(), 404);
    let twice = |path: &str, method: &str, body: &'static str| {
        let request = gateway.as_operator(method, path).body(body);
        request.header("content-type", "Application/JSON ; charset=utf-8").header("idempotency-key", "k")
    };
    for (path, method, body) in [
        (
            "/charges",
            "POST",
            r#"{"reference":"a","amount":1,"client_number":"1","service_id":"s","amount":2}"#,
        ),
        ("/charges/a/void", "POST", r#"{"keep":"ch_1","keep":"ch_2"}"#),
        ("/outage", "PUT", r#"{"for_ms":1,"for_ms":2}"#),
        ("/script", "PUT", r#"{"mix":[{"percent":1,"words":"hang","percent":2}]}"#),
    ] {
        assert_eq!(twice(path, method, body).send().await.unwrap().status(), 400, "{path}");
    }
    let keys = gateway
        .http
        .post(gateway.url("/charges"))
        .header("idempotency-key", "a")
        .header("idempotency-key", "b");
    assert_eq!(keys.json(&body("a", 1, "1")).send().await.unwrap().status(), 400);
    assert!(gateway.ledger().await.is_empty());
    gateway.end().await;
}
