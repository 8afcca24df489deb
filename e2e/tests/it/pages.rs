//! Web pages: which origins a browser lets use the API, and what it lets them read.

use uuid::Uuid;

use crate::harness::Harness;
use crate::instance::FurtherInstance;
use crate::raw_http::{Answer, request};

const APP: &str = "https://app.example";
const BANK: &str = "https://bank.example";
const OTHER: &str = "https://other.example";
const SETTINGS: [(&str, &str); 2] = [("CORS_ORIGINS", APP), ("CORS_CREDENTIALS_ORIGINS", BANK)];

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", String::as_str)
}

/// What the answer says to a page: the origin, and whether it may send credentials.
fn allowed(answer: &Answer) -> (&str, &str) {
    let names = ["access-control-allow-origin", "access-control-allow-credentials"];
    (field(answer, names[0]), field(answer, names[1]))
}

async fn ask(door: &str, line: &str, origin: &str, more: &[(&str, &str)]) -> Answer {
    let headers: Vec<_> = [("host", "coro"), ("origin", origin)].iter().chain(more).copied().collect();
    request(door, &format!("{line} HTTP/1.1"), &headers, "").await
}

#[tokio::test]
async fn a_browser_is_answered_before_it_sends_the_request_of_a_page() {
    let _harness = Harness::shared().await;
    let payment = format!("/payments/{}", Uuid::now_v7());
    for (service, path, methods) in [
        ("payments-svc", "/payments", "GET, HEAD, OPTIONS, POST"),
        ("payments-svc", &format!("{payment}/cancel"), "OPTIONS, POST"),
        ("payments-svc", &format!("{payment}/events"), "GET, HEAD, OPTIONS"),
        ("balance-svc", "/balance", "GET, HEAD, OPTIONS"),
    ] {
        let instance = FurtherInstance::start(service, &SETTINGS).await;
        let asks = [
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,idempotency-key,authorization"),
        ];
        let line = format!("OPTIONS {path}");
        let answer = ask(&instance.url, &line, APP, &asks).await;
        assert_eq!((answer.status, allowed(&answer)), (204, (APP, "")), "{path}: {answer:?}");
        let mut named: Vec<&str> = field(&answer, "access-control-allow-methods").split(", ").collect();
        named.sort_unstable();
        assert_eq!(named.join(", "), methods, "{path}");
        let headers = field(&answer, "access-control-allow-headers").to_lowercase();
        for header in ["authorization", "content-type", "idempotency-key", "last-event-id", "x-user-id"] {
            assert!(headers.split(", ").any(|listed| listed == header), "{header}: {headers}");
        }
        assert_eq!(field(&answer, "vary"), "Origin");
        assert_eq!(allowed(&ask(&instance.url, &line, BANK, &asks).await), (BANK, "true"));
        let refused = ask(&instance.url, &line, OTHER, &asks).await;
        assert_eq!((allowed(&refused), field(&refused, "vary")), (("", ""), "Origin"));
        assert_eq!(field(&refused, "access-control-allow-methods"), "");
    }
}

#[tokio::test]
async fn a_page_reads_answers_and_refusals_and_their_fields() {
    let harness = Harness::shared().await;
    let instance = FurtherInstance::start("payments-svc", &SETTINGS).await;
    let user = Uuid::now_v7();
    let payment_id = harness.client.pay(user, "0812-hang", 100).await.unwrap();
    let text = user.to_string();
    let as_user = [("x-user-id", text.as_str())];
    for (line, status, more) in [
        ("GET /services".to_owned(), 200, &[][..]),
        (format!("GET /payments/{payment_id}"), 200, &as_user[..]),
        ("GET /payments".to_owned(), 401, &[][..]),
        ("GET /nowhere".to_owned(), 404, &[][..]),
        ("GET /payments/".to_owned(), 404, &as_user[..]),
        ("DELETE /payments".to_owned(), 405, &as_user[..]),
    ] {
        let answer = ask(&instance.url, &line, APP, more).await;
        assert_eq!((answer.status, allowed(&answer)), (status, (APP, "")), "{line}: {answer:?}");
        let exposed = field(&answer, "access-control-expose-headers").to_lowercase();
        for header in
            ["location", "request-id", "retry-after", "idempotent-replayed", "ratelimit", "ratelimit-policy"]
        {
            assert!(exposed.split(", ").any(|listed| listed == header), "{line}: {header} in {exposed}");
        }
        let other = ask(&instance.url, &line, OTHER, more).await;
        assert_eq!((other.status, allowed(&other)), (status, ("", "")), "{line}: {other:?}");
    }
    // The stream too: a browser's EventSource is such a page.
    let url = format!("{}/payments/{payment_id}/events", instance.url);
    let stream = reqwest::Client::new().get(url).header("x-user-id", &text).header("origin", BANK);
    let stream = stream.send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(stream.headers()["access-control-allow-origin"], BANK);
    assert_eq!(stream.headers()["access-control-allow-credentials"], "true");
}

#[tokio::test]
async fn without_a_setting_no_page_of_another_origin_is_allowed() {
    let harness = Harness::shared().await;
    for door in [&harness.stack.edge_url, &harness.stack.payments_url] {
        let answer = ask(door, "GET /services", APP, &[]).await;
        assert_eq!((answer.status, allowed(&answer)), (200, ("", "")), "{answer:?}");
        let asks = [("access-control-request-method", "POST")];
        let answer = ask(door, "OPTIONS /payments", APP, &asks).await;
        assert_eq!((answer.status, allowed(&answer)), (204, ("", "")), "{answer:?}");
    }
}
