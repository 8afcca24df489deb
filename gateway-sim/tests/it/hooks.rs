//! Webhooks, as a receiver sees them.

use standardwebhooks::Webhook;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use warp::Filter;
use warp::http::{HeaderMap, StatusCode};

use crate::gateway::{Gateway, WAIT_TIMEOUT};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

struct Hook {
    id: String,
    genuine: bool,
    reference: String,
}

/// A receiver that refuses the first `refusals` deliveries, its address, and what it received.
async fn receiver(mut refusals: u32) -> (String, UnboundedReceiver<Hook>) {
    let (seen, hooks) = unbounded_channel();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(move |headers: HeaderMap, body: bytes::Bytes| {
        if refusals > 0 {
            refusals -= 1;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(document["type"], "charge.decided");
        let genuine = Webhook::new(SECRET).unwrap().verify(&body, &headers).is_ok();
        let id = headers["webhook-id"].to_str().unwrap().to_owned();
        let reference = document["data"]["reference"].as_str().unwrap().to_owned();
        seen.send(Hook { id, genuine, reference }).unwrap();
        StatusCode::NO_CONTENT
    }));
    let route = warp::post()
        .and(warp::header::headers_cloned())
        .and(warp::body::bytes())
        .map(move |headers, body| (seen.lock().unwrap())(headers, body));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(warp::serve(route).incoming(listener).run());
    (format!("http://{address}/hook"), hooks)
}

async fn next(hooks: &mut UnboundedReceiver<Hook>) -> Hook {
    tokio::time::timeout(WAIT_TIMEOUT, hooks.recv()).await.expect("a webhook").expect("a receiver")
}

#[tokio::test]
async fn a_caller_without_an_answer_gets_a_webhook() {
    let (url, mut hooks) = receiver(1).await;
    let gateway =
        Gateway::start(&["--webhook-url", &url, "--webhook-secret", SECRET, "--hang-ms", "20"]).await;
    gateway.charge("quiet", "1").await;
    gateway.fails("r1", "1-thenhang").await;
    let hook = next(&mut hooks).await;
    assert_eq!((hook.reference.as_str(), hook.genuine), ("r1", true), "delivered at the second try");
    gateway.fails("r2", "1-late50").await;
    assert_eq!(next(&mut hooks).await.reference, "r2");
    assert_eq!(gateway.charge("r3", "1-soft20").await.0, 402);
    assert_eq!(next(&mut hooks).await.reference, "r3");
    assert!(hooks.try_recv().is_err(), "and nobody else");
    gateway.end().await;
}

#[tokio::test]
async fn words_make_webhooks_many_late_lost_or_forged() {
    let (url, mut hooks) = receiver(0).await;
    let gateway = Gateway::start(&["--webhook-url", &url, "--webhook-secret", SECRET]).await;
    gateway.charge("lost", "1-hooklost").await;
    gateway.charge("many", "1-hookx3").await;
    let many = [next(&mut hooks).await, next(&mut hooks).await, next(&mut hooks).await];
    assert!(many.iter().all(|hook| hook.reference == "many" && hook.id == many[0].id));
    gateway.charge("late", "1-hooklate1500").await;
    gateway.charge("bad", "1-hookbad").await;
    let bad = next(&mut hooks).await;
    assert_eq!((bad.reference.as_str(), bad.genuine), ("bad", false));
    let late = next(&mut hooks).await;
    assert_eq!((late.reference.as_str(), late.genuine), ("late", true));
    assert!(hooks.try_recv().is_err());
    gateway.end().await;
}
