//! Admin listeners are for operators: not for a web page that a browser shows, and not for whoever reaches the port.

mod acts;
mod attacks;
mod command;
mod databases;

use serde_json::json;
use uuid::Uuid;

use crate::harness::Harness;
use crate::raw_http::{Answer, request};

const JSON: (&str, &str) = ("content-type", "application/json");

/// `Authorization` of an operator.
fn bearer(harness: &Harness) -> String {
    format!("Bearer {}", harness.stack.admin_token)
}

fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}

/// Every listener that is not for clients, with a path of it.
fn listeners(harness: &Harness) -> [(String, &'static str); 7] {
    let stack = &harness.stack;
    let relay = std::env::var("RELAY_ADMIN_URL").unwrap();
    [
        (stack.payments_admin_url.clone(), "/metrics"),
        (stack.payments_2_admin_url.clone(), "/ready"),
        (stack.balance_admin_url.clone(), "/metrics"),
        (stack.processor_admin_url.clone(), "/metrics"),
        (stack.gateway_url.clone(), "/ledger"),
        (relay, "/metrics"),
        (stack.edge_admin_url.clone(), "/stats"),
    ]
}

async fn deposit(harness: &Harness, user: Uuid, headers: &[(&str, &str)]) -> Answer {
    let door = &harness.stack.balance_admin_url;
    let body = json!({"user_id": user, "amount": 100, "idempotency_key": "k"}).to_string();
    let host = ("host", address(door));
    let given = headers.iter().any(|(name, _)| *name == "host");
    let all: Vec<(&str, &str)> = headers.iter().copied().chain((!given).then_some(host)).collect();
    request(door, "POST /deposits HTTP/1.1", &all, &body).await
}

#[tokio::test]
async fn a_deposit_needs_an_operator() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let token = bearer(&harness);
    let operator = ("authorization", token.as_str());
    let (short, long) = (&token[..token.len() - 1], format!("{token}0"));
    let secret = token.trim_start_matches("Bearer ");
    let basic = format!("Basic {secret}");
    for given in ["Bearer", "Bearer ", "Bearer wrong-token-of-some-length", short, &long, secret, &basic, ""]
    {
        let answer = deposit(&harness, user, &[JSON, ("authorization", given)]).await;
        answer.expect_problem(401, "unauthorized", given);
        assert!(answer.headers["www-authenticate"].starts_with("Bearer"), "{answer:?}");
    }
    deposit(&harness, user, &[JSON]).await.expect_problem(401, "unauthorized", "no token");
    // What a page's fetch can send without being asked first.
    deposit(&harness, user, &[operator]).await.expect_problem(415, "media-type", "no type");
    let plain = ("content-type", "text/plain");
    deposit(&harness, user, &[operator, plain]).await.expect_problem(415, "media-type", "another type");
    for origin in
        ["http://attacker.example", "null", "file://", "https://127.0.0.1", "http://localhost:1", ""]
    {
        let answer = deposit(&harness, user, &[operator, JSON, ("origin", origin)]).await;
        answer.expect_problem(403, "foreign-origin", origin);
    }
    for host in [
        "attacker.example",
        "attacker.example:80",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
    ] {
        let answer = deposit(&harness, user, &[operator, JSON, ("host", host)]).await;
        answer.expect_problem(421, "misdirected", host);
    }
    let balance = harness.client.balance(user).await;
    assert!(balance.is_err(), "something was credited: {balance:?}");

    let own = format!("http://{}", address(&harness.stack.balance_admin_url));
    for headers in [vec![operator, JSON], vec![operator, JSON, ("origin", &own)]] {
        assert_eq!(deposit(&harness, user, &headers).await.status, 201, "{headers:?}");
    }
    let lower = token.replace("Bearer", "bearer");
    assert_eq!(
        deposit(&harness, user, &[JSON, ("authorization", &lower)]).await.status,
        201,
        "a scheme has no case"
    );
    assert_eq!(harness.client.balance(user).await.unwrap(), (100, 0));
}

#[tokio::test]
async fn every_admin_listener_answers_to_its_own_names_only() {
    let harness = Harness::shared().await;
    for (door, path) in listeners(&harness) {
        let ask = async |headers: &[(&str, &str)]| {
            request(&door, &format!("GET {path} HTTP/1.1"), headers, "").await.status
        };
        let port = door.rsplit(':').next().unwrap();
        for host in
            ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", &format!("127.0.0.1:{port}"), "127.0.0.2:9"]
        {
            assert_eq!(ask(&[("host", host)]).await, 200, "{host} at {door}");
        }
        for host in ["attacker.example", "attacker.example:80", "localhost.attacker.example", "10.1.2.3", "1"]
        {
            assert_eq!(ask(&[("host", host)]).await, 421, "{host} at {door}");
        }
        let local = ("host", "localhost");
        for origin in ["http://attacker.example", "null", "http://localhost:1"] {
            assert_eq!(ask(&[local, ("origin", origin)]).await, 403, "{origin} at {door}");
        }
        assert_eq!(ask(&[local, ("origin", "http://localhost")]).await, 200, "{door}");
        let old = request(&door, &format!("GET {path} HTTP/1.0"), &[], "").await;
        assert_eq!(old.status, 421, "without a name, at {door}");
    }
}

#[tokio::test]
async fn the_gateway_misbehaves_for_operators_only() {
    // Alone, since an outage is everybody's.
    let harness = Harness::alone().await;
    let door = &harness.stack.gateway_url;
    let (token, host) = (bearer(&harness), ("host", address(door)));
    let operator = ("authorization", token.as_str());
    for (line, body) in [
        ("PUT /outage", r#"{"for_ms":1}"#),
        ("DELETE /outage", ""),
        ("PUT /script", r#"{"default":"approve"}"#),
        ("PUT /idempotency", "honoured"),
    ] {
        let line = format!("{line} HTTP/1.1");
        assert_eq!(request(door, &line, &[host, JSON], body).await.status, 401, "{line}");
        assert_eq!(request(door, &line, &[host, JSON, operator], body).await.status, 204, "{line}");
        if !body.is_empty() {
            assert_eq!(request(door, &line, &[host, operator], body).await.status, 415, "{line}");
        }
    }
    // What merchants call needs no operator: it is answered for what it says.
    let charge = request(door, "POST /charges HTTP/1.1", &[host, JSON], "{}").await;
    assert_eq!(charge.status, 400, "{charge:?}");
}

#[tokio::test]
async fn what_is_not_offered_is_said_before_who_may_have_it() {
    let harness = Harness::shared().await;
    let door = &harness.stack.balance_admin_url;
    let host = ("host", address(door));
    let answer = request(door, "DELETE /deposits HTTP/1.1", &[host], "").await;
    answer.expect_problem(405, "method-not-allowed", "DELETE");
    assert_eq!(answer.allow(), ["OPTIONS", "POST"]);
    request(door, "POST /nowhere HTTP/1.1", &[host], "").await.expect_problem(404, "not-found", "POST");
}
