//! Input that must be met, at the edge and at a service itself: a clear problem, or a closed connection, and never a
//! row.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::harness::{Harness, http};

/// Where requests come in.
fn doors(harness: &Harness) -> [&str; 2] {
    [&harness.stack.edge_url, &harness.stack.payments_url]
}

async fn post_raw(door: &str, user: Option<&str>, body: Vec<u8>) -> (u16, Value) {
    let request = reqwest::Client::new().post(format!("{door}/payments")).body(body);
    let request = request.header("content-type", "application/json");
    let request = if let Some(user) = user { request.header("x-user-id", user) } else { request };
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{status}");
    (status, response.json().await.unwrap())
}

#[tokio::test]
async fn bad_input_is_a_clear_problem_and_no_row() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let good = harness.order(100, "key");
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string().into_bytes()
    };
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body.to_string().into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("not JSON", b"{".to_vec(), 400, "malformed"),
        ("not UTF-8", b"{\"a\":\"\xff\"}".to_vec(), 400, "malformed"),
        ("empty", Vec::new(), 400, "malformed"),
        ("an array", b"[]".to_vec(), 400, "malformed"),
        ("amount 0", with("amount", json!(0)), 400, "validation"),
        ("amount negative", with("amount", json!(-1)), 400, "validation"),
        ("amount float", with("amount", json!(1.5)), 400, "validation"),
        ("amount string", with("amount", json!("100")), 400, "validation"),
        ("amount over the limit", with("amount", json!(9_007_199_254_740_992_i64)), 400, "validation"),
        ("no amount", without("amount"), 400, "validation"),
        ("no key", without("idempotency_key"), 400, "validation"),
        ("unknown field", with("fee", json!(1)), 400, "validation"),
        ("long number", with("client_number", json!("9".repeat(65))), 400, "validation"),
        ("long key", with("idempotency_key", json!("k".repeat(256))), 400, "validation"),
        ("NUL", with("client_number", json!("a\u{0}b")), 400, "validation"),
        ("over 16 kB", with("client_number", json!("9".repeat(17_000))), 413, "too-large"),
    ];
    for (door, (name, body, status, kind)) in
        doors(&harness).into_iter().flat_map(|door| cases.iter().map(move |case| (door, case)))
    {
        let (found, problem) = post_raw(door, Some(&user.to_string()), body.clone()).await;
        assert_eq!(found, *status, "{name} at {door}: {problem}");
        assert_eq!(problem["type"], format!("urn:coro:problem:{kind}"), "{name} at {door}: {problem}");
        assert_eq!(problem["status"], *status, "{name} at {door}");
        if *kind == "validation" {
            assert!(problem["errors"][0]["field"].is_string(), "{name} at {door}: {problem}");
        }
    }
    assert_eq!(harness.payments_of(user).await, 0);
}

#[tokio::test]
async fn a_user_is_a_uuid_and_nothing_else() {
    let harness = Harness::shared().await;
    let body = harness.order(100, "key").to_string().into_bytes();
    for user in [None, Some(""), Some("bob"), Some("0198c0de00007000800000000000000"), Some("' or 1=1 --")] {
        for door in doors(&harness) {
            let (status, problem) = post_raw(door, user, body.clone()).await;
            let field = &problem["errors"][0]["field"];
            assert_eq!((status, field), (401, &"X-User-ID".into()), "{user:?} at {door}");
        }
    }
}

#[tokio::test]
async fn what_is_not_offered_is_a_problem_too() {
    let harness = Harness::shared().await;
    let http = http();
    for door in doors(&harness) {
        let get = async |path: &str| http.get(format!("{door}{path}")).send().await.unwrap();
        for path in ["/nowhere", "/paymentsandmore"] {
            let nowhere = get(path).await;
            assert_eq!(nowhere.status(), 404, "{path} at {door}");
            assert_eq!(nowhere.headers()["content-type"], "application/problem+json", "{path} at {door}");
        }
        for path in ["/metrics", "/ready", "/deposits", "/stats"] {
            assert_eq!(get(path).await.status(), 404, "{path} is on admin listeners only, not at {door}");
        }
        assert_eq!(http.delete(format!("{door}/payments")).send().await.unwrap().status(), 405);
        assert_eq!(get("/health").await.status(), 200);
        assert_eq!(get("/services").await.status(), 200);
    }
}

/// How long the server lets a client dawdle after it sent `start`.
async fn timeout_with(door: &str, start: &str) -> (Duration, String) {
    let mut stream = TcpStream::connect(door.trim_start_matches("http://")).await.unwrap();
    stream.write_all(start.as_bytes()).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A reset is a way of closing, too.
    let _ = tokio::time::timeout(Duration::from_secs(40), read)
        .await
        .expect("the connection stays open for ever");
    (began.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn slow_clients_are_cut_and_leave_no_row() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let head = format!(
        "POST /payments HTTP/1.1\r\nhost: coro\r\nx-user-id: {user}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    );
    let body = format!("{head}content-length: 100\r\n\r\n{{\"client_number\":");
    for door in doors(&harness) {
        let (slow_head, slow_body) = tokio::join!(timeout_with(door, &head), timeout_with(door, &body));
        assert!(slow_head.0 < Duration::from_secs(30), "{slow_head:?} at {door}");
        assert!(slow_body.0 < Duration::from_secs(30), "{slow_body:?} at {door}");
        assert!(slow_body.1.contains(" 408 "), "{slow_body:?} at {door}");
    }
    assert_eq!(harness.payments_of(user).await, 0);
}
