//! The rules of HTTP, at the edge and at a service itself: what RFC 9110 and 9112 leave no choice about, and one spelling
//! for everything that identifies.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::Harness;
use crate::raw_http::{Answer, request, send};

const HOST: (&str, &str) = ("host", "coro");
const JSON: (&str, &str) = ("content-type", "application/json");
const POST: &str = "POST /payments HTTP/1.1";

/// Where requests come in.
fn doors(harness: &Harness) -> [String; 2] {
    [harness.stack.edge_url.clone(), harness.stack.payments_url.clone()]
}

/// Pays as `user`, with further header lines.
async fn pay(door: &str, user: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let all: Vec<(&str, &str)> = [HOST, ("x-user-id", user)].iter().chain(headers).copied().collect();
    request(door, POST, &all, body).await
}

fn field_of(problem: &Value) -> &str {
    problem["errors"][0]["field"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_header_that_has_one_value_is_given_once() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let (text, other) = (user.to_string(), Uuid::now_v7().to_string());
    let body = harness.order(100, "twice").to_string();
    for door in doors(&harness) {
        for second in [&text, &other] {
            let headers = [JSON, ("X-User-Id", second.as_str())];
            let problem = pay(&door, &text, &headers, &body).await.expect_problem(400, "validation", &door);
            assert_eq!(field_of(&problem), "X-User-ID", "{problem}");
        }
        for second in ["application/json", "text/plain"] {
            let answer = pay(&door, &text, &[JSON, ("content-type", second)], &body).await;
            assert_eq!(field_of(&answer.expect_problem(400, "validation", &door)), "Content-Type");
        }
        let key = ("idempotency-key", "a");
        let answer = pay(&door, &text, &[JSON, key, key], &body).await;
        assert_eq!(field_of(&answer.expect_problem(400, "validation", &door)), "Idempotency-Key");
        pay(&door, &text, &[JSON, ("host", "other")], &body).await.expect_problem(400, "malformed", &door);
    }
    assert_eq!(harness.payments_of(user).await, 0);
}

#[tokio::test]
async fn a_host_is_named_since_http_1_1() {
    let harness = Harness::shared().await;
    for door in doors(&harness) {
        let line = "GET /services HTTP/1.1";
        request(&door, line, &[], "").await.expect_problem(400, "malformed", "no Host");
        for host in ["", "a b", "user@coro", "coro/x"] {
            let what = format!("Host {host:?} at {door}");
            request(&door, line, &[("host", host)], "").await.expect_problem(400, "malformed", &what);
        }
        for host in ["coro", "coro:80", "127.0.0.1:21000", "[::1]:21000", "CORO.example"] {
            assert_eq!(request(&door, line, &[("host", host)], "").await.status, 200, "{host} at {door}");
        }
        let old = request(&door, "GET /services HTTP/1.0", &[], "").await;
        assert_eq!(old.status, 200, "HTTP/1.0 has none, at {door}: {old:?}");
    }
}

#[tokio::test]
async fn a_member_of_a_body_is_given_once() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let good = harness.order(100, "member").to_string();
    let inside = good.trim_end_matches('}');
    for door in doors(&harness) {
        for again in [r#""amount":100"#, r#""amount":1"#, r#""a\u006dount":1"#, r#""fee":{"a":1,"a":1}"#] {
            let body = format!("{inside},{again}}}");
            let answer = pay(&door, &user.to_string(), &[JSON], &body).await;
            let problem = answer.expect_problem(400, "malformed", again);
            assert!(problem["detail"].as_str().unwrap().contains("twice"), "{problem}");
        }
    }
    assert_eq!(harness.payments_of(user).await, 0);
}

#[tokio::test]
async fn a_trace_context_that_is_none_is_ignored() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let other = good.replace("4bf9", "4bf8");
    let cases: [&[&str]; 5] = [&["h\u{e9}"], &["nonsense"], &[""], &[good, &other], &["\u{201c}00\u{201d}"]];
    for (nth, (door, values)) in
        doors(&harness).iter().flat_map(|door| cases.map(|values| (door, values))).enumerate()
    {
        let mut headers = vec![JSON];
        headers.extend(values.iter().map(|value| ("traceparent", *value)));
        let body = harness.order(100, &format!("trace-{nth}")).to_string();
        let answer = pay(door, &user.to_string(), &headers, &body).await;
        assert_eq!(answer.status, 201, "{values:?} at {door}: {answer:?}");
    }
    let client = coroctl::databases::connect(&harness.stack.payments_database_url).await.unwrap();
    let query = "select count(*) from payments where user_id = $1 and traceparent in ($2, $3)";
    let row = client.query_one(query, &[&user, &good, &other]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0, "of two contexts neither is ours");
}

#[tokio::test]
async fn media_types_are_compared_as_rfc_9110_says() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let json = [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "application/json ; charset=Utf-8",
        "application/json;",
        "application/json; profile=\"a;b\"",
    ];
    let other = [
        "application/jsonx",
        "application/json-patch+json",
        "application/problem+json",
        "text/plain",
        "text/json",
        "application",
        "application/json, text/plain",
        "application/json; charset=iso-8859-1",
        "application/json; charset",
        "json",
        "",
    ];
    for (nth, door) in doors(&harness).iter().enumerate() {
        for (at, kind) in json.iter().enumerate() {
            let body = harness.order(100, &format!("type-{nth}-{at}")).to_string();
            let answer = pay(door, &user.to_string(), &[("content-type", kind)], &body).await;
            assert_eq!(answer.status, 201, "{kind} at {door}: {answer:?}");
        }
        for kind in other {
            let body = harness.order(100, "type").to_string();
            let answer = pay(door, &user.to_string(), &[("content-type", kind)], &body).await;
            answer.expect_problem(415, "media-type", &format!("{kind} at {door}"));
        }
        let body = harness.order(100, "coded").to_string();
        let answer = pay(door, &user.to_string(), &[JSON, ("content-encoding", "gzip")], &body).await;
        answer.expect_problem(415, "media-type", door);
    }
}

/// Each offered path of a payment, with its methods besides OPTIONS.
fn offered(payment_id: &str) -> [(String, Vec<&'static str>); 8] {
    let read = || vec!["GET", "HEAD"];
    [
        ("/payments".to_owned(), vec!["GET", "HEAD", "POST"]),
        ("/payments/search".to_owned(), read()),
        (format!("/payments/{payment_id}"), read()),
        (format!("/payments/{payment_id}/events"), read()),
        (format!("/payments/{payment_id}/cancel"), vec!["POST"]),
        ("/services".to_owned(), read()),
        ("/openapi.yaml".to_owned(), read()),
        ("/health".to_owned(), read()),
    ]
}

#[tokio::test]
async fn every_path_says_which_methods_it_has() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let payment_id = harness.client.pay(user, "0812", 100).await.unwrap().to_string();
    let user = user.to_string();
    for door in doors(&harness) {
        for (path, methods) in offered(&payment_id) {
            let ask = async |method: &str| {
                request(&door, &format!("{method} {path} HTTP/1.1"), &[HOST, ("x-user-id", &user)], "").await
            };
            let mut listed: Vec<&str> = methods.iter().copied().chain(["OPTIONS"]).collect();
            listed.sort_unstable();
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
                if methods.contains(&method) {
                    continue;
                }
                let answer = ask(method).await;
                let what = format!("{method} {path} at {door}");
                if method == "HEAD" {
                    assert_eq!(answer.status, 405, "{what}");
                } else {
                    answer.expect_problem(405, "method-not-allowed", &what);
                }
                assert_eq!(answer.allow(), listed, "{what}: {answer:?}");
            }
            let options = ask("OPTIONS").await;
            assert_eq!((options.status, options.allow()), (204, listed), "{path} at {door}");
        }
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let payment_id = harness.client.pay(user, "0812-hang", 100).await.unwrap();
    let user = user.to_string();
    let payment = format!("/payments/{payment_id}");
    let (edge, payments, balance) =
        (&harness.stack.edge_url, &harness.stack.payments_url, &harness.stack.balance_url);
    let nowhere = format!("/payments/{}", Uuid::now_v7());
    let cases =
        [(edge, payment.as_str()), (payments, &payment), (edge, "/services"), (payments, "/services")];
    let statement = [(edge, "/balance/movements"), (balance, "/balance/movements")];
    let more = [(edge, "/balance"), (balance, "/balance"), (edge, "/health"), (balance, "/health")];
    let last = [(payments, "/health"), (edge, nowhere.as_str()), (payments, &nowhere), (edge, "/nowhere")];
    for (door, path) in cases.into_iter().chain(statement).chain(more).chain(last) {
        let ask = async |method: &str| {
            request(door, &format!("{method} {path} HTTP/1.1"), &[HOST, ("x-user-id", &user)], "").await
        };
        let (get, head) = (ask("GET").await, ask("HEAD").await);
        assert_eq!(head.status, get.status, "{path} at {door}");
        assert_eq!(head.headers.get("content-type"), get.headers.get("content-type"), "{path} at {door}");
        assert_eq!(head.body, "", "{path} at {door}");
    }
}

#[tokio::test]
async fn a_path_has_one_spelling_at_edge_and_service() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let payment_id = harness.client.pay(user, "0812", 100).await.unwrap().to_string();
    let user = user.to_string();
    let encoded = format!("/payments/%30{}", &payment_id[1..]);
    let slash = format!("/payments/{payment_id}/");
    let double = format!("/payments//{payment_id}");
    let cancel = format!("/payments/{payment_id}/cancel/");
    let others =
        ["/services/", "/health/", "/payments/", "//services", "/./services", "/%73ervices", "/SERVICES"];
    let more = [
        "/services/%00",
        "/payments/%zz",
        "/services;a=b",
        "/payments/..%2fservices",
        "/payments/../services",
    ];
    for door in doors(&harness) {
        for path in others.iter().chain(&more).copied().chain([&*encoded, &slash, &double, &cancel]) {
            // A slash at the end makes another path, whatever its method.
            let methods: &[&str] = if path.ends_with('/') { &["GET", "POST"] } else { &["GET"] };
            for method in methods {
                let line = format!("{method} {path} HTTP/1.1");
                let answer = request(&door, &line, &[HOST, JSON, ("x-user-id", &user)], "").await;
                answer.expect_problem(404, "not-found", &format!("{line} at {door}"));
            }
        }
        for path in ["/services?", "/services?a=b", "http://coro/services"] {
            let answer = request(&door, &format!("GET {path} HTTP/1.1"), &[HOST], "").await;
            assert_eq!(answer.status, 200, "{path} at {door}: {answer:?}");
        }
        let long = format!("GET /payments/{} HTTP/1.1", "9".repeat(9_000));
        request(&door, &long, &[HOST], "").await.expect_problem(414, "uri-too-long", &door);
    }
    // Balance is routed by the same edge, to another service.
    for door in [&harness.stack.edge_url, &harness.stack.balance_url] {
        for path in ["/balance/", "/balance/movements/", "/balance/nowhere"] {
            let line = format!("GET {path} HTTP/1.1");
            let answer = request(door, &line, &[HOST, ("x-user-id", &user)], "").await;
            answer.expect_problem(404, "not-found", door);
        }
    }
}

#[tokio::test]
async fn an_identifier_has_one_spelling() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let payment_id = harness.client.pay(user, "0812", 100).await.unwrap();
    let forms = |id: Uuid| [id.simple().to_string(), id.braced().to_string(), id.urn().to_string()];
    let text = user.to_string();
    for door in doors(&harness) {
        // Upper and lower case are the same UUID, which is rendered in lower case (RFC 9562, section 4).
        let line = format!("GET /payments/{} HTTP/1.1", payment_id.to_string().to_uppercase());
        let answer = request(&door, &line, &[HOST, ("x-user-id", &text.to_uppercase())], "").await;
        let payment: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (&payment["payment_id"], &payment["user_id"]),
            (&json!(payment_id), &json!(user)),
            "{door}"
        );
        for spelling in forms(payment_id) {
            for (method, rest) in [("GET", ""), ("POST", "/cancel")] {
                let line = format!("{method} /payments/{spelling}{rest} HTTP/1.1");
                let answer = request(&door, &line, &[HOST, ("x-user-id", &text)], "").await;
                // What braces are to a URI is the edge's to say, too.
                assert!([400, 404].contains(&answer.status), "{line} at {door}: {answer:?}");
            }
        }
        for spelling in forms(user) {
            let body = harness.order(100, "spelling").to_string();
            let answer = pay(&door, &spelling, &[JSON], &body).await;
            assert_eq!(field_of(&answer.expect_problem(401, "no-user", &spelling)), "X-User-ID");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_seen_is_refused() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let good = harness.order(100, "visible");
    let unseen = [
        " ",
        "   ",
        "\u{a0}",
        "\u{3000}",
        "\t",
        "\u{200b}",
        "\u{feff}",
        "\u{2060}",
        "\u{ad}",
        "\u{202e}",
        "\u{2066}",
        "\u{200d}",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{34f}",
        "\u{115f}",
        "\u{3164}",
        "\u{2800}",
        "\u{fe0f}",
        "\u{e0041}",
        "\u{180e}",
    ];
    for door in doors(&harness) {
        for field in ["idempotency_key", "client_number", "service_id"] {
            for unseen in unseen {
                for text in [unseen.to_owned(), format!("a{unseen}"), format!("{unseen}a")] {
                    let mut body = good.clone();
                    body[field] = json!(text);
                    let answer = pay(&door, &user.to_string(), &[JSON], &body.to_string()).await;
                    let what = format!("{field} {text:?} at {door}");
                    assert_eq!(field_of(&answer.expect_problem(400, "validation", &what)), field, "{what}");
                }
            }
        }
        // One field says nothing about another.
        let mut body = good.clone();
        body["client_number"] = json!("\u{200b}");
        body["idempotency_key"] = json!(" ");
        let problem = pay(&door, &user.to_string(), &[JSON], &body.to_string()).await;
        assert_eq!(problem.expect_problem(400, "validation", &door)["errors"].as_array().unwrap().len(), 2);
    }
    assert_eq!(harness.payments_of(user).await, 0);
    for visible in ["0812 3456", "Øre-4/7", "客戶 12", "كهرباء", "🔌", "e\u{301}"] {
        let mut body = good.clone();
        body["client_number"] = json!(visible);
        body["idempotency_key"] = json!(visible);
        let answer = pay(&doors(&harness)[1], &user.to_string(), &[JSON], &body.to_string()).await;
        assert_eq!(answer.status, 201, "{visible}: {answer:?}");
    }
}

#[tokio::test]
async fn a_length_has_one_meaning() {
    let harness = Harness::shared().await;
    let user = Uuid::now_v7();
    let body = harness.order(100, "length").to_string();
    let head = format!(
        "{POST}\r\nhost: coro\r\nconnection: close\r\nx-user-id: {user}\r\ncontent-type: application/json\r\n"
    );
    let length = format!("content-length: {}\r\n", body.len());
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let cases = [
        ("two lengths", format!("{head}{length}content-length: 2\r\n\r\n{body}")),
        ("a list of lengths", format!("{head}content-length: {}, 2\r\n\r\n{body}", body.len())),
        ("no number", format!("{head}content-length: +{}\r\n\r\n{body}", body.len())),
        ("another coding", format!("{head}transfer-encoding: gzip, chunked, gzip\r\n\r\n{chunked}")),
    ];
    for door in doors(&harness) {
        for (name, bytes) in &cases {
            let answer = send(&door, bytes.as_bytes()).await;
            assert!([400, 501].contains(&answer.status), "{name} at {door}: {answer:?}");
        }
        // Whichever of the two is believed, the body is the same one, and the connection ends.
        let both = format!("{head}{length}transfer-encoding: chunked\r\n\r\n{chunked}");
        let answer = send(&door, both.as_bytes()).await;
        assert!([201, 400].contains(&answer.status), "both at {door}: {answer:?}");
    }
    assert!(harness.payments_of(user).await <= 1);
}

/// The edge's own answers have the form of the services' answers.
#[tokio::test]
async fn the_edge_refuses_in_problem_documents() {
    let harness = Harness::shared().await;
    let edge = &harness.stack.edge_url;
    let many: String = (0..200).map(|nth| format!("x-{nth}: y\r\n")).collect();
    let large = format!("x-large: {}\r\n", "y".repeat(40_000));
    let broken = [
        ("no HTTP", "nonsense\r\n\r\n".to_owned()),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\r\n\r\n".to_owned()),
        ("no version", "GET /services\r\nhost: coro\r\n\r\n".to_owned()),
        (
            "a space in a header's name",
            "GET /services HTTP/1.1\r\nhost: coro\r\nbad name: x\r\n\r\n".to_owned(),
        ),
        ("a control character in the path", "GET /ser\u{1}vices HTTP/1.1\r\nhost: coro\r\n\r\n".to_owned()),
        ("too many headers", format!("GET /services HTTP/1.1\r\nhost: coro\r\n{many}\r\n")),
        ("too large a head", format!("GET /services HTTP/1.1\r\nhost: coro\r\n{large}\r\n")),
        ("two hosts", "GET /services HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned()),
    ];
    for (name, bytes) in broken {
        send(edge, bytes.as_bytes()).await.expect_problem(400, "malformed", name);
    }
    let large = "{".repeat(20_000);
    let answer = request(edge, POST, &[HOST, JSON], &large).await;
    answer.expect_problem(413, "too-large", "a large body");
    let slow = send(edge, b"GET /services HTTP/1.1\r\nhost: co").await;
    slow.expect_problem(408, "timeout", "half a head");
}
