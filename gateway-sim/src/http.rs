//! The gateway's interface.
//!
//! * `POST /charges`, header `Idempotency-Key`, body `{"reference", "amount", "client_number", "service_id"}`.
//!   200 `succeeded`, or 402 `declined`. The same key again: the same answer, nothing happens. The same key
//!   with another body: 422. The same key while its first call is undecided: 409, try again later.
//!   A charge once begun is decided even if its caller goes away.
//! * `GET /charges/{reference}`: the same document, or 404 `charge-not-found`.
//! * `GET /ledger`: every charge as NDJSON, in the order in which they were made.
//! * `PUT /script`, plain text: the default script from now on (see the table in `script.rs`).
//! * `GET /health`, `GET /metrics`.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::ledger::{Begin, Ledger};
use crate::metrics::Metrics;
use crate::record::{Decided, Request, Verdict};
use crate::script::{Answer, Script, When, roll};
use crate::serve::Abort;

const BODY_BYTES_MAX: u64 = 16 * 1024;
const EXPORT_LINES: usize = 1_000;
/// Largest integer every JSON reader keeps exact.
const AMOUNT_MAX: i64 = (1 << 53) - 1;

/// Everything a handler needs.
pub struct Gateway {
    pub ledger: Arc<Ledger>,
    pub metrics: Metrics,
    /// For client numbers without a word of their own.
    pub script: RwLock<Script>,
    pub seed: u64,
    pub latency: Duration,
    /// After this a hanging call is closed.
    pub hang: Duration,
    pub shutdown: CancellationToken,
}

pub fn routes(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let with = move || {
        let gateway = gateway.clone();
        warp::any().map(move || gateway.clone())
    };
    let charge = warp::path!("charges")
        .and(warp::post())
        .and(warp::header::optional("idempotency-key"))
        .and(warp::body::content_length_limit(BODY_BYTES_MAX))
        .and(warp::body::bytes())
        .and(with())
        .then(|key: Option<String>, body: Bytes, gateway: Arc<Gateway>| charge(gateway, key, body));
    let inquire = warp::path!("charges" / String)
        .and(warp::get())
        .and(with())
        .map(|reference: String, gateway: Arc<Gateway>| inquire(&gateway, &reference));
    let ledger = warp::path!("ledger").and(warp::get()).and(with()).map(|gateway: Arc<Gateway>| {
        let pages = stream::iter(Pages { ledger: gateway.ledger.clone(), from: 0 });
        let reply = warp::reply::stream(pages);
        warp::reply::with_header(reply, CONTENT_TYPE, "application/x-ndjson").into_response()
    });
    let script = warp::path!("script")
        .and(warp::put())
        .and(warp::body::content_length_limit(BODY_BYTES_MAX))
        .and(warp::body::bytes())
        .and(with())
        .map(|words: Bytes, gateway: Arc<Gateway>| set_script(&gateway, &words));
    let health = warp::path!("health").and(warp::get()).and(with()).map(|gateway: Arc<Gateway>| {
        let (counts, version) = (gateway.ledger.counts(), env!("CARGO_PKG_VERSION"));
        let undecided = gateway.ledger.undecided();
        let body = json!({"status": "ok", "service": "gateway-sim", "version": version,
            "ledger": counts, "undecided": undecided});
        warp::reply::json(&body).into_response()
    });
    let metrics = warp::path!("metrics")
        .and(warp::get())
        .and(with())
        .map(|gateway: Arc<Gateway>| render_metrics(&gateway));
    let rest = inquire.or(ledger).unify().or(script).unify().or(health).unify().or(metrics).unify();
    charge.or(rest).unify().recover(recover).unify().boxed()
}

async fn charge(gateway: Arc<Gateway>, key: Option<String>, body: Bytes) -> Response {
    let request = match read(&body) {
        Ok(request) => request,
        Err(detail) => return gateway.refuse("invalid", 400, "invalid-charge", &detail),
    };
    let key = match key {
        Some(key) if (1..=128).contains(&key.len()) => key,
        Some(_) | None => {
            let detail = "An Idempotency-Key of 1 to 128 characters is required.";
            return gateway.refuse("invalid", 400, "idempotency-key-required", detail);
        }
    };
    let script = {
        let default = gateway.script.read().unwrap_or_else(PoisonError::into_inner);
        Script::of(&request.client_number, &default)
    };
    // Only scripts that misbehave count calls: the count costs memory per reference.
    let call = if script.fault.is_some() { gateway.ledger.count_call(&request.reference) } else { 1 };
    let delay = script.delay(gateway.latency, gateway.seed, &request.reference, call);
    let Some(fault) = script.fault(call) else {
        return decide_detached(gateway, key, request, script, delay).await;
    };
    match fault.when {
        When::Never => {}
        When::Before => drop(decide_detached(gateway.clone(), key, request, script, delay).await),
        When::Later(later) => {
            tokio::spawn(decide(gateway.clone(), key, request, script, later));
        }
    }
    misbehave(&gateway, fault.answer).await
}

/// Decides in a task of its own when it takes time, so that a caller who goes away changes nothing.
async fn decide_detached(
    gateway: Arc<Gateway>,
    key: String,
    request: Request,
    script: Script,
    delay: Duration,
) -> Response {
    if delay.is_zero() {
        return decide(gateway, key, request, script, delay).await;
    }
    match tokio::spawn(decide(gateway.clone(), key, request, script, delay)).await {
        Ok(response) => response,
        Err(error) => gateway.refuse("failed", 500, "internal", &error.to_string()),
    }
}

async fn decide(
    gateway: Arc<Gateway>,
    key: String,
    request: Request,
    script: Script,
    delay: Duration,
) -> Response {
    let ticket = match gateway.ledger.begin(&key, &request) {
        Begin::Fresh(ticket) => ticket,
        Begin::Known(decided) => return gateway.tell("replayed", &decided),
        Begin::InProgress => {
            let detail = "The first call under this key is not decided yet. Try again later.";
            return gateway.refuse("in_progress", 409, "in-progress", detail);
        }
        Begin::Reused => {
            let detail = "This key was used with another body.";
            return gateway.refuse("reused", 422, "idempotency-key-reused", detail);
        }
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let (verdict, answer) = match script.declines(gateway.seed, &request.reference) {
        Some(status) => (Verdict::Declined { code: "declined_by_issuer".into(), status }, "declined"),
        None => (Verdict::Approved, "approved"),
    };
    match gateway.ledger.record(&ticket, &request, verdict, script.lag) {
        Ok(decided) => gateway.tell(answer, &decided),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "a charge was refused");
            gateway.refuse("failed", 500, "internal", "The ledger cannot be written; nothing was charged.")
        }
    }
}

fn read(body: &[u8]) -> Result<Request, String> {
    let request: Request = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if !(1..=64).contains(&request.reference.len()) || !request.reference.chars().all(plain) {
        return Err("reference: 1 to 64 letters, digits or ._:-".to_owned());
    }
    if !(1..=AMOUNT_MAX).contains(&request.amount) {
        return Err(format!("amount: 1 to {AMOUNT_MAX}"));
    }
    Ok(request)
}

async fn misbehave(gateway: &Gateway, answer: Answer) -> Response {
    let mut response = Response::default();
    let name = match answer {
        Answer::Hang => {
            tokio::select! {
                () = tokio::time::sleep(gateway.hang) => {}
                () = gateway.shutdown.cancelled() => {}
            }
            response.extensions_mut().insert(Abort::Close);
            "hang"
        }
        Answer::Reset => {
            response.extensions_mut().insert(Abort::Reset);
            "reset"
        }
        Answer::Status500 => return gateway.refuse("http500", 500, "internal", "Asked for by the script."),
        Answer::TooMany => {
            return gateway.refuse("http429", 429, "too-many-requests", "Asked for by the script.");
        }
        Answer::Html502 => {
            response =
                warp::reply::html("<html><body><h1>502 Bad Gateway</h1></body></html>").into_response();
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            "http502"
        }
        Answer::Garbage => {
            response = HttpResponse::new("{\"status\":\"succ").into_response();
            "garbage"
        }
        Answer::Cut => {
            let part =
                stream::iter([Ok(Bytes::from_static(b"{\"status\":")), Err(std::io::ErrorKind::Other)]);
            let part = futures_util::StreamExt::map(part, |part| part.map_err(std::io::Error::from));
            response = warp::reply::stream(part).into_response();
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("120"));
            "cut"
        }
    };
    gateway.metrics.calls.with_label_values(&[name]).inc();
    response
}

fn inquire(gateway: &Gateway, reference: &str) -> Response {
    match gateway.ledger.find(reference) {
        Some(decided) => gateway.tell("inquiry_found", &decided),
        None => gateway.refuse("inquiry_not_found", 404, "charge-not-found", "No charge has this reference."),
    }
}

fn set_script(gateway: &Gateway, words: &[u8]) -> Response {
    match std::str::from_utf8(words).ok().and_then(|words| Script::parse(words.trim())) {
        Some(script) => {
            *gateway.script.write().unwrap_or_else(PoisonError::into_inner) = script;
            StatusCode::NO_CONTENT.into_response()
        }
        None => problem(400, "unknown-script", "The script has no word that is known."),
    }
}

fn render_metrics(gateway: &Gateway) -> Response {
    match gateway.metrics.render(gateway.ledger.counts()) {
        Ok(text) => warp::reply::with_header(text, CONTENT_TYPE, "text/plain; version=0.0.4").into_response(),
        Err(error) => problem(500, "internal", &error.to_string()),
    }
}

impl Gateway {
    fn tell(&self, answer: &str, decided: &Decided) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        let (reference, amount) = (decided.reference.to_string(), decided.amount);
        let (status, body) = match &decided.verdict {
            Verdict::Approved => {
                // A function of the key: the same at every telling, whatever was lost in between.
                let provider = format!("ch_{:016x}", roll(self.seed, &decided.key.to_string(), 0));
                let body = json!({"status": "succeeded", "provider_reference": provider,
                    "reference": reference, "amount": amount});
                (200, body)
            }
            Verdict::Declined { code, status } => {
                let body =
                    json!({"status": "declined", "code": code, "reference": reference, "amount": amount});
                (*status, body)
            }
        };
        let status = if answer == "inquiry_found" { 200 } else { status };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        response
    }

    fn refuse(&self, answer: &str, status: u16, kind: &str, detail: &str) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        problem(status, kind, detail)
    }
}

/// RFC 9457.
fn problem(status: u16, kind: &str, detail: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = status.canonical_reason().unwrap_or("Error");
    let kind = format!("urn:gateway-sim:problem:{kind}");
    let body = json!({"type": kind, "title": title, "status": status.as_u16(), "detail": detail});
    let mut response = warp::reply::json(&body).into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

async fn recover(rejection: Rejection) -> Result<Response, Rejection> {
    use warp::reject::{LengthRequired, MethodNotAllowed, PayloadTooLarge};
    Ok(if rejection.find::<PayloadTooLarge>().is_some() {
        problem(413, "too-large", "The body is too large.")
    } else if rejection.find::<LengthRequired>().is_some() {
        problem(411, "length-required", "A body with a Content-Length is required.")
    } else if rejection.find::<MethodNotAllowed>().is_some() {
        problem(405, "method-not-allowed", "This method is not offered here.")
    } else if rejection.is_not_found() {
        problem(404, "not-found", "There is no such resource.")
    } else {
        problem(400, "bad-request", "The request could not be read.")
    })
}

/// The export in pages, so that neither the lock nor the memory is held for all of it.
struct Pages {
    ledger: Arc<Ledger>,
    from: usize,
}

impl Iterator for Pages {
    type Item = Result<String, std::convert::Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let (page, next) = self.ledger.export(self.from, EXPORT_LINES)?;
        self.from = next;
        Some(Ok(page))
    }
}
