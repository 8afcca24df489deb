//! Public listeners by HTTP/2, as the edge speaks it for streams of events: the same rules, and many streams on one connection.

use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::{Harness, WAIT_TIMEOUT};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Settings without any: the first frame of a client.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const STREAMS: usize = 25;

fn authority(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

async fn connected(url: &str) -> SendRequest<Full<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(authority(url)).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

async fn send(sender: &SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Incoming> {
    timeout(WAIT_TIMEOUT, sender.clone().send_request(request)).await.expect("an answer in time").unwrap()
}

async fn json(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn many_streams_share_a_connection_and_each_ends_with_its_payment() {
    // What other tests have under way would not add up.
    let harness = Harness::alone().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let url = &harness.stack.payments_url;
    let sender = &connected(url).await;
    let follow = |nth: usize| async move {
        // Slow enough for all of them to be open at once.
        let payment_id = paid(url, sender, user, nth).await;
        let request = Request::get(format!("{url}/payments/{payment_id}/events"));
        let request = request.header("x-user-id", user.to_string()).body(Full::default()).unwrap();
        let response = send(sender, request).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let stream = timeout(WAIT_TIMEOUT, response.into_body().collect()).await.expect("an end in time");
        let text = String::from_utf8(stream.unwrap().to_bytes().to_vec()).unwrap();
        let last = text.lines().rev().find_map(|line| line.strip_prefix("data:")).unwrap();
        assert!(last.contains(r#""status":"completed""#), "{text}");
    };
    join_all((0..STREAMS).map(follow)).await;
    harness.adds_up().await;
}

/// The id of a payment that was accepted on this connection.
async fn paid(url: &str, sender: &SendRequest<Full<Bytes>>, user: Uuid, nth: usize) -> Uuid {
    let body = format!(
        r#"{{"client_number":"0812-slow200","service_id":"electricity","amount":10,"idempotency_key":"http2 {nth}"}}"#
    );
    let request = Request::post(format!("{url}/payments"));
    let request = request.header("x-user-id", user.to_string()).header("content-type", "application/json");
    let response = send(sender, request.body(Full::from(body)).unwrap()).await;
    assert_eq!(response.status(), 201);
    json(response).await["payment_id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_rules_are_those_of_http_1() {
    let harness = Harness::shared().await;
    let url = &harness.stack.payments_url;
    let sender = connected(url).await;
    let services = || Request::get(format!("{url}/services"));
    let answer = send(&sender, services().body(Full::default()).unwrap()).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("request-id"), "{answer:?}");
    // The target names the host; a header that names another one does not count.
    let other = services().header(HOST, "elsewhere@example").body(Full::default()).unwrap();
    assert_eq!(send(&sender, other).await.status(), 200);
    for (path, header, status, problem) in [
        ("/payments/", None, 404, "not-found"),
        ("/balance", None, 404, "not-found"),
        ("/payments", None, 401, "no-user"),
        ("/payments", Some(("content-encoding", "gzip")), 415, "media-type"),
    ] {
        let mut request = Request::get(format!("{url}{path}"));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = send(&sender, request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status(), status, "{path}");
        let document = json(answer).await;
        assert!(document["type"].as_str().unwrap().ends_with(problem), "{path}: {document}");
    }
    let user = Uuid::now_v7().to_string();
    let twice = Request::get(format!("{url}/payments")).header("x-user-id", &user).header("x-user-id", &user);
    assert_eq!(send(&sender, twice.body(Full::default()).unwrap()).await.status(), 400);
}

#[tokio::test]
async fn an_admin_listener_speaks_http_1_alone() {
    let harness = Harness::shared().await;
    let mut stream = TcpStream::connect(authority(&harness.stack.payments_admin_url)).await.unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut answer)).await.expect("it is closed");
    read.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_is_closed() {
    let harness = Harness::shared().await;
    let authority = authority(&harness.stack.payments_url);
    let closed = |beginning: &'static [u8]| async move {
        let mut stream = TcpStream::connect(authority).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut answer = Vec::new();
        let closed = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "still open after {beginning:?}");
    };
    let asked = connected(&harness.stack.payments_url).await;
    let services = Request::get(format!("{}/services", harness.stack.payments_url));
    assert_eq!(send(&asked, services.body(Full::default()).unwrap()).await.status(), 200);
    let whole: &[u8] = [PREFACE, SETTINGS].concat().leak();
    join_all([&b""[..], b"PRI * HTT", whole, b"GET /services HTTP/1.1\r\nhost: x\r\n"].map(closed)).await;
    assert!(!asked.is_closed(), "one on which something was asked stays");
}
