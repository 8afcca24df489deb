//! The HTTP interface of the gateway.
//!
//! * `POST /charges`, header `Idempotency-Key`, body `{"reference", "amount", "client_number", "service_id"}`.
//!   200 `succeeded`, or 402 `declined`. The same key again: the same answer, nothing happens. The same key
//!   with another body: 422. The same key while its first call is undecided: 409, try again later.
//!   Every answer about a charge names it by `reference` and `amount`, as far as they are known.
//!   A charge that has begun is decided even if its caller goes away. 402 with `"retryable": true` is no decision.
//! * `GET /charges/{reference}`: the same document, with `surplus` if further charges stand; `pending`; `voided`; or
//!   404 `charge-not-found`.
//! * `POST /charges/{reference}/void`, body `{"keep": "ch_…"}` and optionally `amount`: voids every other charge of the
//!   reference. Body `{}`: voids all, and the reference is never charged again. It may be repeated.
//! * `GET /ledger`: every charge and void as NDJSON, in the order in which they were made.
//! * `GET /script`, `PUT /script` (directives, or JSON: see `mix.rs`), `PUT /outage`, `DELETE /outage` (`outage.rs`),
//!   `PUT /idempotency` (`honoured` or `ignored`): the behaviour from now on.
//! * `GET /health`, `GET /metrics`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use listener::{Reason, Refused};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use warp::reply::{Reply, Response};
use warp::{Filter, Rejection};

use crate::charge::{charge, misbehave};
use crate::foreign::{About, Call, PlannedFaults, Recent};
use crate::hooks::Hooks;
use crate::ledger::{Ledger, Lookup, VoidOutcome};
use crate::metrics::Metrics;
use crate::mix::Mix;
use crate::outage::{How, Outage};
use crate::record::{Decision, Request, Verdict};
use crate::script::{Answer, Script};

const BODY_BYTES_MAX: u64 = 16 * 1024;
const EXPORT_LINES_MAX: usize = 1_000;

/// The state that handlers share.
pub struct Gateway {
    pub ledger: Arc<Ledger>,
    pub metrics: Metrics,
    pub hooks: Hooks,
    /// The faults of inquiries and voids.
    pub planned_faults: PlannedFaults,
    pub recent: Recent,
    /// Scripts for client numbers without a directive.
    pub mix: RwLock<Mix>,
    pub outage: RwLock<Option<(Outage, Instant)>>,
    pub ignores_keys: AtomicBool,
    pub seed: u64,
    pub latency: Duration,
    /// The connection of a hanging call is closed after this.
    pub hang: Duration,
    pub shutdown: CancellationToken,
}

pub fn routes(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let serving = business(gateway.clone());
    let admin = behaviour(gateway.clone());
    let with = with(gateway);
    let ledger = warp::path!("ledger").and(listener::get()).and(with.clone()).map(|gateway: Arc<Gateway>| {
        let pages = stream::iter(Pages { ledger: gateway.ledger.clone(), from: 0 });
        let reply = warp::reply::stream(pages);
        warp::reply::with_header(reply, CONTENT_TYPE, "application/x-ndjson").into_response()
    });
    let health = warp::path!("health").and(listener::get()).and(with.clone()).map(|gateway: Arc<Gateway>| {
        let (counts, version) = (gateway.ledger.counts(), env!("CARGO_PKG_VERSION"));
        let undecided = gateway.ledger.undecided();
        let body = json!({"status": "ok", "service": "gateway-sim", "version": version,
            "ledger": counts, "undecided": undecided});
        warp::reply::json(&body).into_response()
    });
    let metrics = warp::path!("metrics")
        .and(listener::get())
        .and(with)
        .map(|gateway: Arc<Gateway>| render_metrics(&gateway));
    let rest = ledger.or(admin).unify().or(health).unify().or(metrics).unify();
    serving.or(rest).unify().recover(recover).unify().boxed()
}

type With = BoxedFilter<(Arc<Gateway>,)>;

fn with(gateway: Arc<Gateway>) -> With {
    warp::any().map(move || gateway.clone()).boxed()
}

fn body() -> BoxedFilter<(Bytes,)> {
    warp::body::content_length_limit(BODY_BYTES_MAX).and(warp::body::bytes()).boxed()
}

/// The routes of merchants, which an outage takes away.
fn business(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let with = with(gateway);
    let charge = warp::path!("charges")
        .and(listener::unguarded_post())
        .and(warp::header::optional("idempotency-key"))
        .and(body())
        .and(with.clone())
        .then(|key: Option<String>, body: Bytes, gateway: Arc<Gateway>| async move {
            match gateway.outage() {
                Some(how) => unserved(&gateway, how, "").await,
                None => charge(gateway, key, body).await,
            }
        });
    let inquire = warp::path!("charges" / String).and(listener::get()).and(with.clone()).then(
        |reference: String, gateway: Arc<Gateway>| async move {
            match gateway.outage() {
                Some(how) => unserved(&gateway, how, &reference).await,
                None => match gateway.planned_faults.take(Call::Inquiry, &reference) {
                    Some((answer, amount)) => {
                        let (call, amount) = (Call::Inquiry, Some(amount));
                        misbehave(&gateway, answer, About { call, reference: &reference, amount }).await
                    }
                    None => inquire(&gateway, &reference),
                },
            }
        },
    );
    let void =
        warp::path!("charges" / String / "void").and(listener::unguarded_post()).and(body()).and(with).then(
            |reference: String, body: Bytes, gateway: Arc<Gateway>| async move {
                match gateway.outage() {
                    Some(how) => unserved(&gateway, how, &reference).await,
                    None => match gateway.planned_faults.take(Call::Void, &reference) {
                        Some((answer, amount)) => {
                            let (call, amount) = (Call::Void, Some(amount));
                            misbehave(&gateway, answer, About { call, reference: &reference, amount }).await
                        }
                        None => void(&gateway, &reference, &body),
                    },
                }
            },
        );
    charge.or(inquire).unify().or(void).unify().boxed()
}

/// The routes of operators, which change the behaviour.
fn behaviour(gateway: Arc<Gateway>) -> BoxedFilter<(Response,)> {
    let with = with(gateway);
    let show = warp::path!("script")
        .and(listener::get())
        .and(with.clone())
        .map(|gateway: Arc<Gateway>| warp::reply::json(read(&gateway.mix).config()).into_response());
    let script = warp::path!("script")
        .and(listener::put())
        .and(warp::header::headers_cloned())
        .and(body())
        .and(with.clone())
        .map(|headers: HeaderMap, body: Bytes, gateway: Arc<Gateway>| {
            let json = headers.get(CONTENT_TYPE).is_some_and(listener::media::is_json);
            changed(mix(json, &body).map(|mix| *write(&gateway.mix) = mix), "unknown-script")
        });
    let outage = warp::path!("outage").and(listener::put()).and(body()).and(with.clone()).map(
        |body: Bytes, gateway: Arc<Gateway>| {
            let outage = listener::json::read(&body).map_err(|error| error.to_string());
            let set = |outage| *write(&gateway.outage) = Some((outage, Instant::now()));
            changed(outage.map(set), "unknown-outage")
        },
    );
    let over =
        warp::path!("outage").and(listener::delete()).and(with.clone()).map(|gateway: Arc<Gateway>| {
            *write(&gateway.outage) = None;
            StatusCode::NO_CONTENT.into_response()
        });
    let keys = warp::path!("idempotency").and(listener::put()).and(body()).and(with).map(
        |body: Bytes, gateway: Arc<Gateway>| {
            let ignored = match body.as_ref() {
                b"honoured" => Ok(false),
                b"ignored" => Ok(true),
                _ => Err("the body must be `honoured` or `ignored`".to_owned()),
            };
            let set = |ignored| gateway.ignores_keys.store(ignored, Ordering::Relaxed);
            changed(ignored.map(set), "unknown-idempotency")
        },
    );
    show.or(script).unify().or(outage).unify().or(over).unify().or(keys).unify().boxed()
}

fn mix(json: bool, body: &[u8]) -> Result<Mix, String> {
    if json {
        return listener::json::read(body).map_err(|error| error.to_string()).and_then(Mix::of);
    }
    Mix::plain(std::str::from_utf8(body).map_err(|error| error.to_string())?.trim())
}

fn changed(set: Result<(), String>, kind: &str) -> Response {
    match set {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(detail) => problem(400, kind, &detail),
    }
}

// The guarded values are valid after any panic.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

async fn unserved(gateway: &Gateway, how: How, reference: &str) -> Response {
    let about = About { call: Call::Charge, reference, amount: None };
    match how {
        How::Unavailable => gateway.refuse("outage", 503, "unavailable", "Out of order, as asked for."),
        How::Reset => misbehave(gateway, Answer::Reset, about).await,
        How::Hang => misbehave(gateway, Answer::Hang, about).await,
    }
}

fn inquire(gateway: &Gateway, reference: &str) -> Response {
    let status = |status: &str, amount: Option<i64>| {
        warp::reply::json(&json!({"status": status, "reference": reference, "amount": amount}))
    };
    match gateway.ledger.find(reference) {
        Lookup::Decision { decision, surplus } => {
            gateway.answer_decision("inquiry_found", &decision, &surplus)
        }
        Lookup::Pending { amount } => {
            gateway.metrics.calls.with_label_values(&["inquiry_pending"]).inc();
            status("pending", Some(amount)).into_response()
        }
        Lookup::Voided { amount } => {
            gateway.metrics.calls.with_label_values(&["inquiry_voided"]).inc();
            status("voided", amount).into_response()
        }
        Lookup::Nothing => {
            let (detail, about) = ("No charge has this reference.", json!({"reference": reference}));
            gateway.refuse_about("inquiry_not_found", 404, "charge-not-found", detail, &about)
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct VoidRequest {
    #[serde(default)]
    keep: Option<String>,
    /// The amount that answers name if the reference was never charged.
    #[serde(default)]
    amount: Option<i64>,
}

fn void(gateway: &Gateway, reference: &str, body: &[u8]) -> Response {
    // An object: serde would take `[]` for one with nothing in it.
    let object = listener::json::read(body).map(serde_json::Value::Object);
    let request: VoidRequest = match object.and_then(serde_json::from_value) {
        Ok(request) => request,
        Err(error) => return gateway.refuse("invalid", 400, "invalid-void", &error.to_string()),
    };
    match gateway.ledger.void(reference, request.keep.as_deref(), request.amount) {
        Ok(VoidOutcome::Done { voided, barred, amount }) => {
            gateway.metrics.calls.with_label_values(&["voided"]).inc();
            let voided: Vec<_> = voided.iter().map(|decision| gateway.charge_line(decision)).collect();
            let body = json!({"status": "voided", "reference": reference, "amount": amount,
                "voided": voided, "barred": barred});
            warp::reply::json(&body).into_response()
        }
        Ok(VoidOutcome::UnknownKeep) => {
            let detail = "The charge to keep does not stand; nothing was voided.";
            let about = json!({"reference": reference});
            gateway.refuse_about("void_refused", 422, "unknown-charge", detail, &about)
        }
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "the ledger cannot be written; the void is answered 500"
            );
            gateway.refuse("failed", 500, "internal", "The ledger cannot be written; try again.")
        }
    }
}

fn render_metrics(gateway: &Gateway) -> Response {
    match gateway.metrics.render(gateway.ledger.counts()) {
        Ok(text) => warp::reply::with_header(text, CONTENT_TYPE, "text/plain; version=0.0.4").into_response(),
        Err(error) => problem(500, "internal", &error.to_string()),
    }
}

impl Gateway {
    pub fn script(&self, request: &Request) -> Script {
        Script::of(&request.client_number, read(&self.mix).script(self.seed, &request.reference))
    }

    pub fn honours_keys(&self) -> bool {
        !self.ignores_keys.load(Ordering::Relaxed)
    }

    fn outage(&self) -> Option<How> {
        let (outage, since) = (*read(&self.outage))?;
        outage.is_on(since.elapsed()).then_some(outage.how)
    }

    fn charge_line(&self, decision: &Decision) -> serde_json::Value {
        json!({"provider_reference": self.ledger.provider_reference(decision), "amount": decision.amount})
    }

    pub fn answer_decision(&self, answer: &str, decision: &Decision, surplus: &[Decision]) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        self.recent.record(decision);
        let call = if answer == "inquiry_found" { Call::Inquiry } else { Call::Charge };
        self.charge_document(decision, surplus, call)
    }

    /// The document of a charge, as the answer to this call.
    pub fn charge_document(&self, decision: &Decision, surplus: &[Decision], call: Call) -> Response {
        let (reference, amount) = (decision.reference.to_string(), decision.amount);
        let (status, mut body) = match &decision.verdict {
            Verdict::Approved => {
                let provider = self.ledger.provider_reference(decision);
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
        if !surplus.is_empty() {
            body["surplus"] = surplus.iter().map(|decision| self.charge_line(decision)).collect();
        }
        let status = if call == Call::Inquiry { 200 } else { status };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        response
    }

    pub fn in_progress(&self, about: &Value) -> Response {
        let detail = "The first call under this key is not decided yet. Try again later.";
        self.refuse_about("in_progress", 409, "in-progress", detail, about)
    }

    pub fn refuse(&self, answer: &str, status: u16, kind: &str, detail: &str) -> Response {
        self.refuse_about(answer, status, kind, detail, &Value::Null)
    }

    /// A problem document. `about`: the members that name the charge.
    pub fn refuse_about(
        &self,
        answer: &str,
        status: u16,
        kind: &str,
        detail: &str,
        about: &Value,
    ) -> Response {
        self.metrics.calls.with_label_values(&[answer]).inc();
        let mut document = problem_document(status, kind, detail);
        for (field, value) in about.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            document[field] = value.clone();
        }
        problem_response(status, &document)
    }
}

/// The answer to a request that was refused before any route ran.
pub fn refuse(refused: &Refused) -> Response {
    let mut response = problem(refused.reason.status().as_u16(), refused.reason.as_str(), &refused.detail);
    if refused.reason == Reason::Unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// RFC 9457.
pub fn problem_document(status: u16, kind: &str, detail: &str) -> Value {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let kind = format!("urn:gateway-sim:problem:{kind}");
    json!({"type": kind, "title": title.unwrap_or("Error"), "status": status, "detail": detail})
}

fn problem(status: u16, kind: &str, detail: &str) -> Response {
    problem_response(status, &problem_document(status, kind, detail))
}

fn problem_response(status: u16, document: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = warp::reply::json(document).into_response();
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

async fn recover(rejection: Rejection) -> Result<Response, Rejection> {
    use warp::reject::{LengthRequired, PayloadTooLarge};
    if let Some(refused) = listener::refusal(&rejection) {
        return Ok(refuse(&refused));
    }
    Ok(if rejection.find::<PayloadTooLarge>().is_some() {
        problem(413, "too-large", "The body is too large.")
    } else if rejection.find::<LengthRequired>().is_some() {
        problem(411, "length-required", "A body with a Content-Length is required.")
    } else if rejection.is_not_found() {
        problem(404, "not-found", "There is no such resource.")
    } else {
        problem(400, "bad-request", "The request could not be read.")
    })
}

/// The export in pages, so that neither the lock nor RAM is held for the whole ledger.
struct Pages {
    ledger: Arc<Ledger>,
    from: usize,
}

impl Iterator for Pages {
    type Item = Result<String, std::convert::Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let (page, next) = self.ledger.export(self.from, EXPORT_LINES_MAX)?;
        self.from = next;
        Some(Ok(page))
    }
}
