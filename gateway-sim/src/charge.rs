//! `POST /charges`: decides charges and answers them as their scripts say.
//!
//! * A charge is decided in a task of its own, so a caller that goes away changes nothing.
//! * A misbehaving answer is independent of the decision: never, before or after it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use warp::http::header::{CONTENT_LENGTH, HeaderValue};
use warp::http::{Response as HttpResponse, StatusCode};
use warp::reply::{Reply, Response};

use crate::gateway::Gateway;
use crate::ledger::{Begin, KeyReservation};
use crate::planned::{About, Call};
use crate::record::{Request, Verdict};
use crate::script::{Answer, Fault, Script, When};
use crate::serve::Abort;

/// Largest integer every JSON reader keeps exact.
const AMOUNT_MAX: i64 = (1 << 53) - 1;

/// A call of `POST /charges`, and its script.
struct ChargeCall {
    key: String,
    request: Request,
    script: Script,
    /// Whether the answer of the call states the decision.
    answered: bool,
}

pub async fn charge(gateway: Arc<Gateway>, key: Option<String>, body: Bytes) -> Response {
    let request = match read(&body) {
        Ok(request) => request,
        Err(detail) => {
            let about = read_name(&body);
            return gateway.refuse_about("invalid", 400, "invalid-charge", &detail, &about);
        }
    };
    let key = match key {
        Some(key) if (1..=128).contains(&key.len()) => key,
        Some(_) | None => {
            let detail = "An Idempotency-Key of 1 to 128 characters is required.";
            let about = named(&request);
            return gateway.refuse_about("invalid", 400, "idempotency-key-required", detail, &about);
        }
    };
    let script = gateway.script(&request);
    gateway.planned_faults.plan(&request.reference, request.amount, &script);
    // Only scripts that misbehave count calls, since a count costs RAM per reference.
    let call = if script.fault.is_some() { gateway.ledger.count_call(&request.reference) } else { 1 };
    let delay = script.delay(gateway.latency, gateway.seed, &request.reference, call);
    let fault = script.fault(call);
    let call = ChargeCall { key, request, script, answered: fault.is_none() };
    let Some(fault) = fault else { return decide_detached(gateway, call, delay).await };
    let (reference, amount) = (call.request.reference.clone(), Some(call.request.amount));
    decide_unanswered(&gateway, call, fault, delay).await;
    misbehave(&gateway, fault.answer, About { call: Call::Charge, reference: &reference, amount }).await
}

async fn decide_unanswered(gateway: &Arc<Gateway>, call: ChargeCall, fault: Fault, delay: Duration) {
    match fault.when {
        When::Never => {}
        When::Before => drop(decide_detached(gateway.clone(), call, delay).await),
        When::Later(later) => {
            if fault.answer == Answer::Soft {
                gateway.ledger.pend(&call.request.reference, call.request.amount);
            }
            tokio::spawn(decide(gateway.clone(), call, later));
        }
    }
}

/// Decides; in a task of its own when that takes time, so that a caller that goes away changes nothing.
async fn decide_detached(gateway: Arc<Gateway>, call: ChargeCall, delay: Duration) -> Response {
    if delay.is_zero() {
        return decide(gateway, call, delay).await;
    }
    match tokio::spawn(decide(gateway.clone(), call, delay)).await {
        Ok(response) => response,
        Err(error) => gateway.refuse("failed", 500, "internal", &error.to_string()),
    }
}

async fn decide(gateway: Arc<Gateway>, call: ChargeCall, delay: Duration) -> Response {
    let reservation = match begin(&gateway, &call) {
        Ok(reservation) => reservation,
        Err(response) => return *response,
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let verdict = match call.script.declines(gateway.seed, &call.request.reference) {
        Some(status) => Verdict::Declined { code: "declined_by_issuer".into(), status },
        None => Verdict::Approved,
    };
    match gateway.ledger.record(&reservation, &call.request, verdict, call.script.lag) {
        Ok(decision) => {
            gateway.hooks.notify(&decision, call.script.hook, call.answered);
            let answer = if decision.verdict == Verdict::Approved { "approved" } else { "declined" };
            gateway.answer_decision(answer, &decision, &[])
        }
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "the ledger cannot be written; the charge is answered 500 and nothing was charged"
            );
            gateway.refuse(
                "failed",
                500,
                "internal",
                "The ledger cannot be written; nothing was charged. Try again.",
            )
        }
    }
}

/// Reserves the key.
///
/// # Errors
/// The answer, when there is nothing to decide.
fn begin(gateway: &Gateway, call: &ChargeCall) -> Result<KeyReservation, Box<Response>> {
    if !gateway.honours_keys() {
        return Ok(gateway.ledger.begin_anew(&call.key));
    }
    Err(Box::new(match gateway.ledger.begin(&call.key, &call.request) {
        Begin::Fresh(reservation) => return Ok(reservation),
        Begin::Known(decision) => gateway.answer_decision("replayed", &decision, &[]),
        Begin::InProgress => gateway.in_progress(&named(&call.request)),
        Begin::Reused => {
            let detail = "This key was used with another body.";
            gateway.refuse_about("reused", 422, "idempotency-key-reused", detail, &named(&call.request))
        }
    }))
}

/// The members that name the charge in every answer.
fn named(request: &Request) -> Value {
    json!({"reference": request.reference, "amount": request.amount})
}

/// The members that name the charge, as far as a refused request has them.
fn read_name(body: &[u8]) -> Value {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let part = |field: &str| document.get(field).filter(|value| value.is_string() || value.is_i64());
    ["reference", "amount"].into_iter().filter_map(|field| Some((field, part(field)?.clone()))).collect()
}

fn read(body: &[u8]) -> Result<Request, String> {
    let request: Request = listener::json::read(body).map_err(|error| error.to_string())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if !(1..=64).contains(&request.reference.len()) || !request.reference.chars().all(plain) {
        return Err("reference must have 1 to 64 letters, digits or ._:-".to_owned());
    }
    if !(1..=AMOUNT_MAX).contains(&request.amount) {
        return Err(format!("amount must be 1 to {AMOUNT_MAX}"));
    }
    Ok(request)
}

pub async fn misbehave(gateway: &Gateway, answer: Answer, about: About<'_>) -> Response {
    let name = json!({"reference": about.reference, "amount": about.amount});
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
        Answer::InProgress => return gateway.in_progress(&name),
        Answer::Soft => {
            let body = json!({"status": "declined", "code": "try_again_later", "retryable": true,
                "reference": about.reference, "amount": about.amount});
            response = warp::reply::json(&body).into_response();
            *response.status_mut() = StatusCode::PAYMENT_REQUIRED;
            "soft_declined"
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
        Answer::Foreign(foreign) => {
            response = gateway.foreign(foreign, about);
            "foreign"
        }
    };
    gateway.metrics.calls.with_label_values(&[name]).inc();
    response
}
